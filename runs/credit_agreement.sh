#!/usr/bin/env bash
# How well each credit method agrees with words that people marked, and with its reward model: small
# reward models trained on IMDb, review snippets, comments, answers and translations, then
# `tokencredit compare-credit` on seven sets of marked texts. About 80 minutes of one core.
#
#   runs/credit_agreement.sh
#
# Starts from the language model and the first reward model of runs/imdb_headline.sh, which are
# expected in output/imdb. Whatever is done already is skipped. The tables go to docs/results/credit-agreement/, and
# runs/credit_agreement_report.py makes the page from them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

models=output/credit
results=docs/results/credit-agreement
imdb=output/imdb
export OMP_NUM_THREADS=1
python=.venv/bin/python
tokencredit=.venv/bin/tokencredit

[ -f "$models/phrases-train.jsonl" ] || "$python" runs/credit_data.py "$models"

# Name, what it starts from, positions, and what is particular to the data.
reward_model() {
  "$tokencredit" train-reward-model --device cpu --output "$models/$1" --model "$2" \
    --positions "$3" --training.learning_rate 3e-4 --reading.append_eos false "${@:4}"
}
labels=(--objective classification --max_length 128)
pairs=(--max_length 192 --training.batch_size 8)
snippets=(--data "$models/sentiment-train.jsonl" "${labels[@]}" --training.epochs 2)
reward_model sentiment "$imdb/reward-model" every "${snippets[@]}"
reward_model toxic "$imdb/language-model" every --data "$models/toxic-train.jsonl" \
  "${labels[@]}" --limit 12000
reward_model mqm "$imdb/language-model" every --data "$models/mqm-train.jsonl" "${pairs[@]}"
reward_model qa "$imdb/language-model" every --data "$models/qa-train.jsonl" "${pairs[@]}" \
  --columns.prompt prompt
# The same reviews and snippets once more, at the last token of each text alone.
reward_model imdb-last "$imdb/language-model" last --data "$imdb/labels-first.jsonl" \
  --evaluation.data "$imdb/labels-test.jsonl" "${labels[@]}" --training.epochs 1
reward_model sentiment-last "$models/imdb-last" last "${snippets[@]}"

# Sentences once more, and every phrase of them, with the sentiment that people gave each.
reward_model phrases "$models/sentiment" last --data "$models/phrases-train.jsonl" \
  --objective regression --columns.rating rating --max_length 64 --training.batch_size 64 \
  --training.epochs 2 --training.learning_rate 1e-3

# Name of the result, reward model, marked set, and what differs. Attention spreads the whole score.
# One pass and gradients cost little; `leave-one-out` one score per word, `shapley` ten, hence on one
# set alone.
compare() {
  "$tokencredit" compare-credit --reward_model "$models/$2" --marked "$models/$3-marked.jsonl" \
    --output "$models/compared/$1" --attention_layers '[0, 1, 2, 3]' --credit.beta 1 "${@:4}"
  mkdir -p "$results"
  cp "$models/compared/$1/comparison.json" "$results/$1.json"
}
lexicons="[$models/opinion-lexicon.tsv, $models/vader.tsv]"
sentiment=(--baselines.texts "$models/sentiment-train.jsonl" --baselines.lexicons "$lexicons")
most='terminal, uniform, attention, prefix-difference, smoothed-prefix-difference,
  gradient-times-input, integrated-gradients, leave-one-out, window'
all="[$most, shapley]"
compare sst sentiment sst "${sentiment[@]}" --methods "$all" --credit.probe.samples 10 \
  --faithfulness_documents 40
compare dynasent sentiment dynasent "${sentiment[@]}" --faithfulness_documents 40
compare sst-trees sentiment sst-trees "${sentiment[@]}" --faithfulness_documents 20
compare cad-imdb sentiment cad-imdb "${sentiment[@]}" --limit 80 --faithfulness_documents 5
compare toxic toxic toxic --baselines.texts "$models/toxic-train.jsonl" --baselines.lexicons "$lexicons" \
  --faithfulness_documents 20
compare qa qa qa --baselines.texts "$models/qa-train.jsonl" --direction low \
  --limit 80 --faithfulness_documents 5
compare mqm mqm mqm --baselines.texts "$models/mqm-train.jsonl" --direction low \
  --faithfulness_documents 20
phrases=(--baselines.texts "$models/sentiment-train.jsonl"
  --baselines.lexicons "[$models/opinion-lexicon.tsv, $models/vader.tsv, $models/phrases.tsv]")
compare sst-phrases phrases sst "${phrases[@]}" --methods "$all" --credit.probe.samples 10 \
  --faithfulness_documents 40
compare dynasent-phrases phrases dynasent "${phrases[@]}" --methods "[$most]" \
  --faithfulness_documents 40
compare sst-trees-phrases phrases sst-trees "${phrases[@]}" --methods "[$most]" \
  --faithfulness_documents 20
for width in 1 2 4 5; do # 3 is among the rows of sst-phrases
  compare "sst-phrases-$width" phrases sst --methods '[window]' --credit.probe.width "$width" \
    --faithfulness_documents 0
done
compare sst-last sentiment-last sst "${sentiment[@]}" --faithfulness_documents 40

"$python" runs/credit_agreement_report.py --results "$results" --models "$models"
