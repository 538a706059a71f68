#!/usr/bin/env bash
# How fast policies learn by each credit: the same grid and seeds for every method.
#
#   runs/credit_learning.sh toy       the built-in task
#   runs/credit_learning.sh toy-all   the same by fourteen methods
#   runs/credit_learning.sh hh        dialogues of Anthropic's HH
#
# IMDb has a study of its own, runs/imdb_headline.sh. What is done already is skipped.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
tokencredit=.venv/bin/tokencredit
python=.venv/bin/python
out=output/learning

toy() {
  "$tokencredit" quickstart
  "$tokencredit" train-implicit-reward --data output/quickstart/data/pairs.jsonl \
    --prompt_column prompt --model output/quickstart/language-model --output "$out/toy-dpo" \
    --append_eos false --max_length 96 --epochs 1 --learning_rate 3e-4 --device cpu
  "$tokencredit" compare-learning --config runs/learning/toy.yaml
}

# More methods on the built-in task, and a grid that goes further up.
toy_all() {
  toy
  "$tokencredit" compare-learning --config runs/learning/toy-all.yaml
}

hh() {
  runs/hh_models.sh
  "$tokencredit" compare-learning --config runs/learning/hh.yaml
}

for task in "$@"; do
  "${task//-/_}"
  "$python" runs/learning_report.py "$task"
done
