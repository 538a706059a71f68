#!/usr/bin/env bash
# Guided decoding on real data: what each method reaches, at which KL and at which cost.
#
#   runs/decoding_results.sh imdb hh
#
# IMDb needs the models of runs/imdb_headline.sh; those of HH are trained by runs/hh_models.sh. Whatever is done
# already is skipped, and docs/results/decoding.md is written anew at the end.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
tokencredit=.venv/bin/tokencredit
python=.venv/bin/python
device=(--device cpu --progress false)

trained() { # output folder, then the command that makes it
  local output=$1
  shift
  [ -f "$output/config.json" ] || "$tokencredit" "$@" "${device[@]}" --output "$output"
}

imdb_models() {
  local models=output/imdb
  trained $models/reward-model-last train-reward-model --data $models/labels-first.jsonl \
    --eval_data $models/labels-test.jsonl --objective classification --positions last \
    --model $models/language-model --max_length 128 --epochs 1 --learning_rate 3e-4 \
    --append_eos false --seed 0
}

# Models over the whole vocabulary, from the same half as the guiding reward model.
vocabulary_model() { # task, data, objective, more settings
  local task=$1 data=$2 objective=$3
  shift 3
  trained "output/$task/$objective" train-vocabulary-reward --data "output/$task/$data" \
    --objective "$objective" --model "output/$task/language-model" --seed 0 "$@"
}

responses() { # task, name of the run, method, more settings
  local task=$1 name=$2 method=$3
  shift 3
  local output="output/decoding/$task/$name"
  [ -f "$output/metrics.json" ] || "$tokencredit" generate "${device[@]}" --method "$method" \
    --policy "output/$task/language-model" --reward_model "output/$task/reward-model" \
    --held_out_reward_model "output/$task/held-out-reward-model" \
    --prompts "output/$task/prompts.jsonl" --max_prompts 200 --batch_size 10 "${limits[@]}" \
    --output "$output" "$@"
}

methods() { # task
  local task=$1 last="output/$1/reward-model-last"
  responses "$task" unguided unguided
  for n in 2 4 10 30; do responses "$task" "best-of-n $n" best-of-n --n $n; done
  for beta in 0 0.5 1 2 4 8; do
    responses "$task" "pargs $beta" pargs --guidance_beta $beta
    # ARGS as published: the same rule at temperature 0.7, a reward model of whole responses.
    responses "$task" "args-stochastic $beta" args-stochastic --guidance_beta $beta \
      --reward_model "$last"
    # Between the two: what prefix training alone brings.
    responses "$task" "pargs, whole-text model $beta" pargs --guidance_beta $beta \
      --reward_model "$last"
  done
  for beta in 1 4; do
    responses "$task" "pargs-greedy $beta" pargs-greedy --guidance_beta $beta
    responses "$task" "args-greedy $beta" args-greedy --guidance_beta $beta --reward_model "$last"
  done
}

imdb() {
  limits=(--prompt_tokens 8 --min_new_tokens 48 --max_new_tokens 48)
  imdb_models
  methods imdb
}

hh() {
  limits=(--max_new_tokens 64)
  runs/hh_models.sh
  methods hh
}

for task in "$@"; do
  "$task"
done
"$python" runs/decoding_report.py
