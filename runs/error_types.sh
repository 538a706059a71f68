#!/usr/bin/env bash
# One reward head for each type of error, and where the token credit of each falls: answers of
# qa_feedback and translations of mqm. About 15 minutes of one core.
#
#   runs/error_types.sh
#
# Starts from SmolLM2-135M-Instruct, which `runs/real_models.py output/real` fetches. Whatever is done
# already is skipped, and a training that was stopped goes on. The numbers go to
# docs/results/error-types/, and runs/error_types_report.py makes the page from them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

out=output/error-types
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
python=.venv/bin/python

[ -f "$out/mqm-marked.jsonl" ] || "$python" runs/error_types_data.py "$out"
[ -f "$out/half/config.json" ] || "$python" runs/first_layers.py output/real/smollm2 "$out/half" --layers 15

# Adapters in the upper layers alone: nothing is then computed backwards below them.
adapted=$(for layer in {9..14}; do
  printf "layers.$layer.%s, " self_attn.{q,k,v,o}_proj mlp.{gate,up,down}_proj
done)

# The set, and what differs.
heads() {
  local types='[mistranslation, awkward, punctuation, grammar, spelling, terminology, locale]' prompt=()
  if [ "$1" = qa ]; then
    types='[irrelevant, wrong, unverifiable, redundant]' prompt=(--columns.prompt prompt)
  fi
  .venv/bin/tokencredit train-reward-model --data "$out/$1-train.jsonl" --model "$out/half" \
    --output "$out/$1" --positions every --objective multi-objective-regression --columns.ratings "$types" "${prompt[@]}" \
    --evaluation.data "$out/$1-test.jsonl" --reading.template plain --reading.append_eos false \
    --lora.rank 16 --lora.target_modules "[${adapted%, }]" \
    --training.batch_size 8 --training.learning_rate 3e-4 --training.warmup 0.05 \
    --training.mixed_precision bf16 --training.checkpoint_every 50 --training.keep 1 \
    --max_length 256 --device cpu --progress false "${@:2}"
}
heads mqm --training.epochs 2
heads qa --training.epochs 3

"$python" runs/error_types.py "$out" docs/results/error-types
"$python" runs/error_type_probes.py "$out" docs/results/error-types
"$python" runs/error_types_report.py
