#!/usr/bin/env bash
# GRPO-style training in verl with a reward on every token. Needs GPUs, as the configuration stands;
# tests/engines/test_verl_training.py runs it on the CPU.
#
#   POLICY=... REWARD_MODEL=... TRAIN_FILES=... VAL_FILES=... examples/verl/train.sh [override ...]
#
# POLICY and REWARD_MODEL are folders or Hub ids, the files verl's parquet files with a column
# `prompt` of messages, and `data_source` and `reward_model` as verl has them. Several nodes:
#
#   on the first    ray start --head --port 6379
#   on the others   ray start --address FIRST:6379
#   on the first    RAY_ADDRESS=auto CONFIG=several_nodes SHARED_OUTPUT=... examples/verl/train.sh
#
# The package, the models and this folder must lie at the same paths on every node.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
: "${POLICY:?expected the folder or Hub id of a causal language model}"
: "${REWARD_MODEL:?expected the folder or Hub id of a sequence-classification model}"
: "${TRAIN_FILES:?expected a parquet file}" "${VAL_FILES:?expected a parquet file}"
export POLICY REWARD_MODEL TRAIN_FILES VAL_FILES
export AGENT_LOOPS=${AGENT_LOOPS:-$here/agent_loops.yaml}

exec python -m verl.trainer.main_ppo --config-dir "$here" --config-name "${CONFIG:-one_node}" "$@"
