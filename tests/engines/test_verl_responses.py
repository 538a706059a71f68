"""Responses as verl hands them over, and scores as it carries them back."""

import pickle

import numpy as np
import pytest
import torch

pytest.importorskip("verl", reason="verl is installed by make test-engines alone")

from transformers import AutoTokenizer
from verl import DataProto
from verl_rollouts import rollout

from tokencredit.engines.verl_responses import (
    PolicyResponse,
    ScoreWithTokens,
    joined_responses,
    policy_response,
    token_scores_of,
)
from tokencredit.errors import DataError, ShapeError


def test_a_score_carries_its_tokens():
    score = ScoreWithTokens([0.25, -1.0, 0.5])
    again = pickle.loads(pickle.dumps(score))
    assert again == score == -0.25
    assert again.token_scores == [0.25, -1.0, 0.5]
    assert token_scores_of(again, 3).tolist() == [0.25, -1.0, 0.5]
    assert token_scores_of(2.0, 3).tolist() == [0.0, 0.0, 2.0]
    with pytest.raises(ShapeError, match="3 token scores for a response of 2 tokens"):
        token_scores_of(score, 2)


def test_joined_by_hand():
    ones = torch.ones(2, dtype=torch.bool)
    rows = [
        PolicyResponse(torch.tensor([5]), torch.tensor([6, 7]), ones),
        PolicyResponse(torch.tensor([8, 9]), torch.tensor([4]), ones[:1]),
    ]
    batch = joined_responses(rows)
    assert batch.prompt_ids.tolist() == [[0, 5], [8, 9]]
    assert batch.prompt_mask.tolist() == [[False, True], [True, True]]
    assert batch.response_ids.tolist() == [[6, 7], [4, 0]]
    assert batch.response_mask.tolist() == [[True, True], [True, False]]


def test_data_that_cannot_be_scored(verl_config):
    tokenizer = AutoTokenizer.from_pretrained(verl_config.actor_rollout_ref.model.path)
    data = rollout(tokenizer)
    with pytest.raises(DataError, match="expected attention_mask besides"):
        policy_response(DataProto(batch=data.batch.exclude("attention_mask")))
    extra = np.array([{"tokencredit_response_mask": [1]}], dtype=object)
    wrong = data[1:2]
    wrong.non_tensor_batch["tool_extra_fields"] = extra
    with pytest.raises(DataError, match="mask has 1 tokens and its response 5"):
        policy_response(wrong)
    data.batch["attention_mask"][:] = 0
    with pytest.raises(DataError, match="has none of the policy"):
        policy_response(data)
