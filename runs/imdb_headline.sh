#!/usr/bin/env bash
# The IMDb experiment of "Dense Reward for Free in RLHF" (arXiv 2402.00782), in small, on a CPU:
# a language model and two reward models trained on IMDb, then PPO by seven methods.
#
#   runs/imdb_headline.sh                 models, tuning, 5 seeds, long responses, both protocols
#   runs/imdb_headline.sh full            the rest of the published sweep as well
#
# Other models by name: add --policy, --reward-model and --pad-token to the line of imdb_study.py,
# and write the curves to another folder. Whatever is done already is skipped, so an interrupted
# study goes on where it stopped.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

models=output/imdb
export OMP_NUM_THREADS=1
python=.venv/bin/python
tokencredit=.venv/bin/tokencredit
# PRECISION=bf16 trains the models faster where the processor has instructions for it.
common=(--device cpu --training.mixed_precision "${PRECISION:-no}")

[ -f "$models/prompts.jsonl" ] || "$python" runs/imdb_data.py "$models"
"$tokencredit" train-language-model "${common[@]}" --data "$models/texts.jsonl" \
  --output "$models/language-model" --vocab_size 4096 --max_length 256 --training.batch_size 16 \
  --training.epochs 1 --training.learning_rate 1e-3 --evaluation.share 0.02

# Each reward model sees one half of the labels; the policy never meets the second.
reward_model() {
  "$tokencredit" train-reward-model "${common[@]}" --data "$models/labels-$1.jsonl" \
    --evaluation.data "$models/labels-test.jsonl" --objective classification --positions every \
    --model "$models/language-model" --output "$models/$2" --max_length 128 --training.epochs 1 \
    --training.learning_rate 3e-4 --reading.append_eos false --seed "$3"
}
reward_model first reward-model 0 &
reward_model second held-out-reward-model 1
wait

stages=(rates lambdas short target middle protocol long beta)
[ "${1:-}" = full ] && stages+=(full)
"$python" runs/imdb_study.py --models "$models" --curves docs/results/imdb --stages "${stages[@]}"
"$python" runs/imdb_report.py --models "$models" --curves docs/results/imdb
