#!/usr/bin/env bash
# How fast policies learn by each credit: the same grid and seeds for every method.
#
#   runs/credit_learning.sh toy            the built-in task by fourteen methods
#   runs/credit_learning.sh toy-high-rate  the same at a learning rate that is too high
#   runs/credit_learning.sh toy-training   the same by prefix differences of six reward models
#   runs/credit_learning.sh hh             dialogues of Anthropic's HH
#
# IMDb has a study of its own, runs/imdb_headline.sh. What is done already is skipped.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
tokencredit=.venv/bin/tokencredit
python=.venv/bin/python
out=output/learning

toy() {
  toy_models
  "$tokencredit" compare-learning --config runs/learning/toy.yaml
}

toy_high_rate() {
  toy_models
  "$tokencredit" compare-learning --config runs/learning/toy-high-rate.yaml
}

toy_models() {
  "$tokencredit" quickstart
  "$tokencredit" train-implicit-reward --data output/quickstart/data/pairs.jsonl \
    --columns.prompt prompt --model output/quickstart/language-model --output "$out/toy-dpo" \
    --reading.append_eos false --max_length 96 --training.epochs 1 --training.learning_rate 3e-4 \
    --device cpu
}

# One way of training the reward model each, from the same pairs.
toy_training() {
  local models=output/learning/toy-training-models data=output/quickstart/data
  "$tokencredit" quickstart
  mkdir -p "$models"
  [ -f "$models/labels.jsonl" ] || "$python" runs/labelled_pairs.py "$data/pairs.jsonl" \
    "$models/labels.jsonl"
  reward_model last --columns.prompt prompt --data "$data/pairs.jsonl" --positions last \
    --training.epochs 3
  reward_model pairs --columns.prompt prompt --data "$data/pairs.jsonl" --positions pairs \
    --beginnings.step 4 --training.epochs 1
  reward_model segments --columns.prompt prompt --data "$data/pairs.jsonl" --positions segments \
    --training.epochs 3
  reward_model labels --data "$models/labels.jsonl" --objective classification --training.epochs 3
  reward_model bootstrapped --data "$models/labels.jsonl" --objective classification \
    --positions bootstrapped --training.epochs 3
  "$tokencredit" compare-learning --config runs/learning/toy-training.yaml
}

reward_model() { # name, more settings; the rest as `tokencredit quickstart` trains its own
  local output=output/learning/toy-training-models/$1
  shift
  [ -f "$output/config.json" ] || "$tokencredit" train-reward-model --output "$output" "$@" \
    --model output/quickstart/language-model --reading.append_eos false --max_length 96 \
    --training.batch_size 16 --training.learning_rate 1e-3 --seed 0 --device cpu --progress false
}

hh() {
  runs/hh_models.sh
  "$tokencredit" compare-learning --config runs/learning/hh.yaml
}

for task in "$@"; do
  "${task//-/_}"
  "$python" runs/learning_report.py "$task"
done
