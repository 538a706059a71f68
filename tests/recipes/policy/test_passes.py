"""Responses of like length go through the policy together, and each learns what it would alone."""

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import tiny_model
from tiny_policy import tiny_config, write_models
from transformers import AutoModelForCausalLM

from tokencredit.batch import ResponseBatch
from tokencredit.models import hf_passes, hf_shared_beginnings
from tokencredit.policy.hf_models import ActorCritic
from tokencredit.recipes.policy.passes import passes_of, put_together
from tokencredit.recipes.policy.train_policy import train_policy
from tokencredit.recipes.policy.views import passes_through
from tokencredit.recipes.run.run_folder import read_jsonl


def batch_of(prompts, responses):
    return ResponseBatch.of_rows(
        [[5] * n for n in prompts], [[6] * n for n in responses], pad_token_id=0
    )


def rows_of_passes(batch, **options):
    return [one.rows.tolist() for one in passes_of(batch, None, **options)]


def test_a_pass_has_no_column_that_is_padding_in_all_its_rows():
    batch = batch_of([1, 4, 2], [5, 1, 1])
    support = torch.arange(5 * 3).view(5, 3) > 2
    first, second = passes_of(batch, support, tokens=10)
    assert [first.rows.tolist(), second.rows.tolist()] == [[0], [1, 2]]
    assert first.batch.input_ids.tolist() == [[5, 6, 6, 6, 6, 6]]
    assert second.batch.input_ids.tolist() == [[5, 5, 5, 5, 6], [0, 0, 5, 5, 6]]
    assert first.support.tolist() == support.tolist()
    assert second.support.tolist() == support[:1].tolist()


def test_short_passes_leave_out_padding():
    batch = batch_of([2, 2, 2, 2], [2, 8, 2, 8])
    assert rows_of_passes(batch) == [[0, 1, 2, 3]]
    assert rows_of_passes(batch, tokens=20) == [[1, 3], [0, 2]]
    assert rows_of_passes(batch, size=3) == [[1, 3, 0], [2]]


def test_rows_of_one_length_have_one_pass():
    assert rows_of_passes(batch_of([2, 2, 2, 2], [8, 8, 8, 8]), tokens=20) == [[0, 1, 2, 3]]


def test_a_beginning_that_all_rows_share_is_read_again_in_every_pass():
    batch = batch_of([9, 9, 9, 9], [1, 4, 1, 4])
    assert rows_of_passes(batch, tokens=26) == [[1, 3], [0, 2]]
    assert rows_of_passes(batch, tokens=10, beginnings_once=True) == [[0, 1, 2, 3]]


def test_numbers_come_back_in_the_order_of_the_batch():
    batch = batch_of([1, 1, 1], [1, 3, 2])
    passes = passes_of(batch, None, tokens=4)
    assert [one.rows.tolist() for one in passes] == [[1], [2], [0]]
    found = [one.batch.response_mask * (one.rows[:, None] + 1.0) for one in passes]
    assert put_together(found, passes, 4).tolist() == [[1, 0, 0, 0], [2, 2, 2, 0], [3, 3, 0, 0]]
    assert put_together([one.rows.float() for one in passes], passes, 4).tolist() == [0, 1, 2]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return write_models(tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"algorithm.critic": "separate"},
        {"sampling.top_k": 4, "sampling.temperature": 0.7},
        {"sampling.truncated": "bootstrap"},
    ],
)
def test_short_passes_train_the_same_policy(models, tmp_path, monkeypatch, changes):
    made = []
    forward = ActorCritic.forward

    def noted(self, ids, *others):
        made.append(ids.shape)
        return forward(self, ids, *others)

    monkeypatch.setattr(ActorCritic, "forward", noted)

    def trained(name, tokens):
        made.clear()
        monkeypatch.setattr(hf_passes, "_CPU_TOKENS", tokens)
        config = tiny_config(models, tmp_path / name, **changes)
        weights = load_file(train_policy(config) / "model.safetensors")
        rows = read_jsonl(tmp_path / name / "metrics.jsonl")
        names = ("policy_loss", "value_loss", "gradient_norm", "score", "kl", "entropy")
        return weights, [{n: row[n] for n in names if n in row} for row in rows], len(made)

    *found, passes = trained("short", 24)
    *expected, fewer = trained("long", 10_000)
    assert passes > fewer
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def groups_of(prompts, samples, responses):
    """Responses to prompts of these lengths, which differ in their first token."""
    asked = [[5 + number] + [4] * (n - 1) for number, n in enumerate(prompts)]
    rows = [prompt for prompt in asked for _ in range(samples)]
    return ResponseBatch.of_rows(rows, [[6] * n for n in responses], pad_token_id=0)


def test_responses_to_one_prompt_go_together():
    batch = groups_of([200, 40, 90], 4, [8, 2, 8, 2] * 3)
    apart = rows_of_passes(batch, tokens=512)
    assert len(apart) > 3
    assert rows_of_passes(batch, tokens=512, beginnings_once=True) == [
        [*range(4, 12)],
        [*range(4)],
    ]
    assert rows_of_passes(batch, tokens=240, beginnings_once=True) == [
        [*range(4, 8)],
        [*range(8, 12)],
        [*range(4)],
    ]


def test_a_group_is_parted_where_fewer_rows_are_allowed():
    batch = groups_of([300, 300], 4, [8] * 8)
    found = rows_of_passes(batch, size=3, beginnings_once=True)
    assert found == [[0, 1, 2], [3], [4, 5, 6], [7]]
    assert rows_of_passes(batch, size=3) == [[0, 1, 2], [3, 4, 5], [6, 7]]


def test_short_prompts_are_read_with_their_responses():
    batch = groups_of([6, 6, 6], 4, [8, 2, 8, 2] * 3)
    options = {"tokens": 60}
    assert rows_of_passes(batch, **options, beginnings_once=True) == rows_of_passes(
        batch, **options
    )


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"algorithm.critic": "separate"},
        {"algorithm.name": "rloo", "algorithm.micro_batch_size": 4},
        {"algorithm.minibatch_size": 8, "sampling.top_k": 4},
    ],
)
def test_prompts_that_are_read_once_train_the_same_policy(models, tmp_path, monkeypatch, changes):
    read = []
    embed = torch.nn.Embedding.forward

    def counted(self, ids):
        read.append(ids.numel())
        return embed(self, ids)

    monkeypatch.setattr(torch.nn.Embedding, "forward", counted)

    def trained(name, price):
        read.clear()
        monkeypatch.setattr(hf_shared_beginnings, "_PRICE", price)
        groups = {"batch_size": 16, "algorithm.samples_per_prompt": 4}
        config = tiny_config(models, tmp_path / name, **{**groups, **changes})
        weights = load_file(train_policy(config) / "model.safetensors")
        rows = read_jsonl(tmp_path / name / "metrics.jsonl")
        names = ("policy_loss", "value_loss", "gradient_norm", "score", "kl", "entropy")
        return weights, [{n: row[n] for n in names if n in row} for row in rows], sum(read)

    *found, fewer = trained("once", 1)
    *expected, tokens = trained("again", 10**6)
    assert fewer < tokens
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("family", "together"), [("llama", True), ("mistral", False)])
def test_groups_go_together_where_a_model_can_read_their_prompts_once(family, together):
    policy = tiny_model(family, auto_class=AutoModelForCausalLM)  # Mistral's window holds 4 tokens
    batch = groups_of([200, 90], 4, [8, 2, 8, 2] * 2)
    passes = passes_through(ActorCritic(policy, "shared"), batch, None)
    assert (len(passes) == 1) == together
