#!/usr/bin/env bash
# Guided decoding on real data: what each method reaches, at which KL and at which cost.
#
#   runs/decoding_results.sh imdb hh
#
# IMDb needs the models of runs/imdb_headline.sh; those of HH are trained by runs/hh_models.sh. What
# is done already is skipped, and docs/results/decoding.md is written anew at the end.
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
    --evaluation.data $models/labels-test.jsonl --objective classification --positions last \
    --model $models/language-model --max_length 128 --training.epochs 1 \
    --training.learning_rate 3e-4 --reading.append_eos false --seed 0
}

# A model over the whole vocabulary, from the same half as the guiding reward model.
vocabulary_model() { # task, objective, its data, more settings
  local task=$1 objective=$2 data=$3
  shift 3
  trained "output/$task/$objective" train-vocabulary-reward --data "output/$task/$data" \
    --objective "$objective" --model "output/$task/language-model" \
    --training.learning_rate 3e-4 --seed 0 "$@"
}

responses() { # task, name of the run, method, more settings
  local task=$1 name=$2 method=$3
  shift 3
  local output="output/decoding/$task/$name"
  [ -f "$output/metrics.json" ] || "$tokencredit" generate "${device[@]}" --method "$method" \
    --policy "output/$task/language-model" --reward_model "output/$task/reward-model" \
    --held_out_reward_model "output/$task/held-out-reward-model" \
    --prompts "output/$task/prompts.jsonl" --data.limit 200 --batch_size 10 "${limits[@]}" \
    --output "$output" "$@"
}

methods() { # task, target of CARDS
  local task=$1 target=$2 last="output/$1/reward-model-last"
  responses "$task" unguided unguided
  responses "$task" "PPO, prefix differences" unguided --policy "output/$task/ppo/policy"
  for n in 2 4 10 30; do responses "$task" "best-of-n $n" best-of-n --n $n; done
  for beta in "${betas[@]}"; do
    responses "$task" "pargs $beta" pargs --guidance.beta $beta
    # The same rule with a reward model of whole responses: what prefix training brings.
    responses "$task" "pargs, whole-text model $beta" pargs --guidance.beta $beta \
      --reward_model "$last"
  done
  # Ten candidates cut the distribution off, which has a price of its own.
  for beta in "${wide[@]}"; do
    responses "$task" "pargs, 100 candidates $beta" pargs --guidance.beta $beta --guidance.top_k 100
  done
  # ARGS as published: a reward model of whole responses, and temperature 0.7.
  for beta in "${few[@]}"; do
    responses "$task" "args-stochastic $beta" args-stochastic --guidance.beta $beta \
      --reward_model "$last"
    responses "$task" "args-greedy $beta" args-greedy --guidance.beta $beta --reward_model "$last"
    responses "$task" "pargs-greedy $beta" pargs-greedy --guidance.beta $beta
    responses "$task" "cd $beta" cd --guidance.beta $beta --reward_model "output/$task/cd-fudge"
  done
  for n in "${chunks[@]}"; do
    responses "$task" "chunk-beam $n of 8 tokens" chunk-beam --n $n --chunk_beam.tokens 8
  done
  responses "$task" "speculative-rejection 10" speculative-rejection --n 10 \
    --rejection.check_every 8
  responses "$task" "cards $target" cards --cards.target_reward "$target"
}

# Models that learn from pairs alone.
methods_of_pairs() { # task
  local task=$1 implicit
  implicit=(--implicit.model "output/$task/dpo")
  for beta in "${few[@]}"; do
    responses "$task" "farma $beta" farma --guidance.beta $beta \
      --reward_model "output/$task/farma"
    responses "$task" "genarm $beta" genarm --guidance.beta $beta \
      --reward_model "output/$task/genarm"
  done
  responses "$task" "tree-bon 8" tree-bon --n 8 "${implicit[@]}"
  responses "$task" "implicit-beam 5" implicit-beam "${implicit[@]}"
}

ppo() { # task, more settings
  local task=$1
  shift
  [ -d "output/$task/ppo/policy" ] || "$tokencredit" train-policy \
    --machine.device cpu --record.progress false \
    --policy "output/$task/language-model" --reward_model "output/$task/reward-model" \
    --held_out_reward_model "output/$task/held-out-reward-model" \
    --prompts "output/$task/prompts.jsonl" --credit.method prefix-difference --steps 100 \
    --batch_size 16 --optimizer.learning_rate 3e-4 --algorithm.gae_lambda 0.8 --kl.coef 0.05 \
    --output "output/$task/ppo" "$@"
}

imdb() {
  limits=(--data.tokens 8 --sampling.min_new_tokens 48 --sampling.max_new_tokens 48)
  betas=(0 0.5 1 2 4 8) few=(1 4) wide=(1 2 4) chunks=(4 10)
  imdb_models
  vocabulary_model imdb cd-fudge labels-first.jsonl --columns.rating label --max_length 128 \
    --reading.append_eos false --limit 5000
  ppo imdb --data.tokens '[2, 8]' --sampling.min_new_tokens 48 --sampling.max_new_tokens 48 \
    --sampling.response_lengths uniform
  methods imdb 2
}

hh() {
  limits=(--sampling.max_new_tokens 64)
  betas=(0 1 2 4) few=(1) wide=() chunks=(4)
  runs/hh_models.sh
  for objective in cd-fudge farma genarm; do
    vocabulary_model hh $objective pairs-first.jsonl --max_length 256
  done
  trained output/hh/dpo train-implicit-reward --data output/hh/pairs-first.jsonl \
    --model output/hh/language-model --max_length 256 --training.epochs 1 \
    --training.learning_rate 3e-4 --seed 0
  ppo hh --sampling.max_new_tokens 64 --optimizer.learning_rate 1e-4 --steps 60
  methods hh 0.5
  methods_of_pairs hh
}

for task in "$@"; do
  "$task"
done
"$python" runs/decoding_report.py
