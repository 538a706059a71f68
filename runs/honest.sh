#!/usr/bin/env bash
# What keeps a dense reward honest: policies of the built-in task that follow a reward model too far.
#
#   runs/honest.sh                     everything, about four hours of one core
#   runs/honest.sh ensembles           one experiment, or several: each has its YAML in runs/honest
#
# What is done already is skipped, and what was stopped goes on.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
tokencredit=.venv/bin/tokencredit
python=.venv/bin/python
out=output/honest
experiments=("$@")
[ $# -gt 0 ] || experiments=(ensembles combinations ensembles-terminal transforms divergences selection
  constraints objectives)

[ -f output/quickstart/reward-model/config.json ] || "$tokencredit" quickstart
[ -f "$out/watch.jsonl" ] || "$python" runs/honest_data.py "$out/watch.jsonl"

reward_model() { # name, pairs, seed; the rest as `tokencredit quickstart` trains its own
  [ -f "$out/models/$1/config.json" ] || "$tokencredit" train-reward-model \
    --output "$out/models/$1" --data "$2" --seed "$3" --columns.prompt prompt \
    --model output/quickstart/language-model --reading.append_eos false --max_length 96 \
    --training.epochs 3 --training.batch_size 16 --training.learning_rate 1e-3 --device cpu \
    --progress false
}

reward_model watch "$out/watch.jsonl" 0
for seed in 1 2 3 4; do # the quickstart's own is that of seed 0
  [[ ${experiments[*]} != *ensembles* && ${experiments[*]} != *combinations* ]] ||
    reward_model "guide-$seed" output/quickstart/data/pairs.jsonl "$seed"
done

for experiment in "${experiments[@]}"; do
  "$tokencredit" compare-learning --config "runs/honest/$experiment.yaml"
done
"$python" runs/honest_report.py "${experiments[@]}"
