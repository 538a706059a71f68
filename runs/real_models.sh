#!/usr/bin/env bash
# Pretrained models on the CPU: SmolLM2-135M-Instruct as policy and reward model, MiniLM as judge.
#
#   runs/real_models.sh                        everything, about six hours of two cores
#   runs/real_models.sh hh_reward_models       one stage, or several
#   runs/real_models.sh smoke                  the whole chain on a handful of rows, in minutes
#
# Stages, in this order:
#   models            the two models as folders, see runs/real_models.py
#   data              pairs of HH as conversations, labelled beginnings of IMDb
#   trl               TRL's RewardTrainer on the pairs
#   hh_reward_models  ours on the same pairs with the same settings: every prefix, last token alone
#   accuracy          all three on held-out pairs, by the part of the answer seen
#   imdb_models       a reward model of IMDb's labels, and the judge
#   imdb_policies     three credits on film reviews
#   hh_policies       the judge of HH, and three credits on its prompts
#   report            docs/results/real-models.md from what is there
# What is done already is skipped, and a stage that was stopped goes on. Two cores: start `trl` and
# `imdb_models imdb_policies` side by side, each stage runs on one thread.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
python=.venv/bin/python
tokencredit=.venv/bin/tokencredit
out=output/real docs=docs/results scale=1 smaller=() kinds=(every last) precision=bf16
stages=(models data trl hh_reward_models accuracy imdb_models imdb_policies hh_policies)

if [ "${1:-}" = smoke ]; then
  out=output/real-smoke docs=output/real-smoke scale=0.003 kinds=(every)
  smaller=(-e 's/^steps: .*/steps: 2/' -e 's/batch_size: [0-9]*/batch_size: 4/g'
    -e 's/^learning_rates: .*/learning_rates: [0.0003]/' -e 's/^seeds: .*/seeds: 1/'
    -e '/^  attention:/d')
  # What is published is computed in bfloat16, which takes hours where the processor has none.
  if "$python" -c "import torch; from tokencredit.models.precision import emulates_bfloat16
raise SystemExit(not emulates_bfloat16(torch.device('cpu')))"; then
    precision=no
    smaller+=(-e 's/mixed_precision: bf16/mixed_precision: "no"/')
  fi
  shift
fi
[ $# -gt 0 ] && stages=("$@") || stages+=(report)
runs=$out/runs data=$out/data
mkdir -p "$runs"

costed() { # name, command: what it took stands in costs.jsonl
  "$python" runs/costed.py "$runs/costs.jsonl" "$@"
}

models() { "$python" runs/real_models.py "$out"; }

data() {
  [ -f "$data/imdb-prompts.jsonl" ] ||
    "$python" runs/real_data.py "$data" --model "$out/smollm2" --scale "$scale"
}

trl() {
  [ -f "$runs/trl-rm/config.json" ] || costed trl-rm "$python" runs/trl_reward_model.py \
    --data "$data/hh-train.jsonl" --model "$out/smollm2" --output "$runs/trl-rm" \
    --precision "$precision"
}

reward_model() { # name, start, more settings
  local name=$1 start=$2
  shift 2
  [ -f "$runs/$name/config.json" ] || costed "$name" "$tokencredit" train-reward-model \
    --model "$out/$start" --output "$runs/$name" --max_length 256 --seed 0 --device cpu \
    --progress false "$@"
}

# As trl_reward_model.py has it.
adapted=(--lora.rank 16 --training.batch_size 8 --training.learning_rate 2e-4
  --training.warmup 0.05 --training.mixed_precision "$precision")

hh_reward_models() {
  local positions
  for positions in "${kinds[@]}"; do
    reward_model "ours-$positions" smollm2 --data "$data/hh-train.jsonl" --evaluation.share 0 \
      --positions "$positions" "${adapted[@]}"
  done
}

accuracy() {
  local found=() name
  for name in trl-rm ours-every ours-last; do
    [ ! -f "$runs/$name/config.json" ] || found+=("$name=$runs/$name")
  done
  "$python" runs/real_prefix_accuracy.py "$data/hh-test.jsonl" "$runs/accuracy.json" "${found[@]}"
}

labels=(--objective classification --columns.prompt prompt --reading.template plain --reading.append_eos false
  --evaluation.data "$data/imdb-test.jsonl")

imdb_models() {
  reward_model imdb-rm smollm2 --data "$data/imdb-train.jsonl" "${labels[@]}" \
    --positions every "${adapted[@]}"
  reward_model imdb-judge minilm --data "$data/imdb-judge.jsonl" "${labels[@]}" \
    --positions last --training.batch_size 32 --training.learning_rate 1e-4
}

policies() { # task
  local file
  for file in "$1" "$1-ppo"; do
    sed -e "s#output/real#$out#; s#runs/real/#$runs/#" "${smaller[@]}" "runs/real/$file.yaml" \
      > "$runs/$file.yaml"
  done
  costed "$1-learning" "$tokencredit" compare-learning --config "$runs/$1.yaml"
}

imdb_policies() { policies imdb; }

hh_policies() {
  reward_model hh-judge minilm-chat --data "$data/hh-judge.jsonl" --positions last \
    --evaluation.data "$data/hh-test.jsonl" --training.batch_size 16 --training.learning_rate 5e-5
  policies hh
}

report() { "$python" runs/real_report.py "$out" "$docs"; }

for stage in "${stages[@]}"; do
  echo "== $stage"
  "$stage"
done
