#!/bin/sh
# Users of opposite tastes: what one head, groups, a router and descriptions of users make of them.
#
#   tokencredit quickstart --output output/quickstart   # or `make quickstart`: the model to start from
#   sh runs/raters.sh output/quickstart output/raters
#   python runs/raters_hh.py ../shared/data/hh_rlhf output/raters/hh.json
#   python runs/raters_report.py output/raters
set -eu
start=$1/reward-model
out=$2
mkdir -p "$out"
test -f "$out/users.jsonl" || python runs/opposite_users.py "$out/users.jsonl" --users 40 --pairs 2000 --seed 0
for arm in "one:" \
    "groups:--columns.user user --groups.count 2 --groups.rounds 6" \
    "users:--columns.user user --latent.size 8" \
    "users-longer:--columns.user user --latent.size 8 --training.epochs 12" \
    "router:--mixture.heads 2"; do
    name=${arm%%:*}
    # shellcheck disable=SC2086
    tokencredit train-reward-model --data "$out/users.jsonl" --model "$start" --output "$out/$name" \
        --positions last --max_length 96 --evaluation.share 0.2 --training.epochs 4 \
        --training.learning_rate 1e-3 --seed 0 --device cpu --progress false ${arm#*:}
done
