#!/usr/bin/env bash
# Models on dialogues of Anthropic's HH: a language model, a reward model of every beginning, one of
# whole answers, and one that is never guided by, from the other half of the pairs.
#
#   runs/hh_models.sh
#
# About 40 minutes of one core. What is there already is skipped.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
tokencredit=.venv/bin/tokencredit
models=output/hh

[ -f "$models/short-prompts.jsonl" ] || .venv/bin/python runs/hh_data.py "$models"
[ -f "$models/language-model/config.json" ] || "$tokencredit" train-language-model \
  --device cpu --progress false --data "$models/texts.jsonl" --output "$models/language-model" \
  --vocab_size 4096 --max_length 256 --training.batch_size 16 --training.epochs 2 \
  --training.learning_rate 1e-3 --evaluation.share 0.02

reward_model() { # half of the pairs, positions, folder, seed
  [ -f "$models/$3/config.json" ] || "$tokencredit" train-reward-model --device cpu \
    --progress false --data "$models/pairs-$1.jsonl" --evaluation.data "$models/pairs-test.jsonl" \
    --positions "$2" --model "$models/language-model" --output "$models/$3" \
    --max_length 256 --training.epochs 1 --training.learning_rate 3e-4 --seed "$4"
}
reward_model first every reward-model 0
reward_model first last reward-model-last 0
reward_model second every held-out-reward-model 1
