"""What ends a response in training, and what may be drawn at all."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from ending_models import ends_of, tokenizer_of, write_models
from tiny_policy import tiny_config

from tokencredit.errors import ModelError
from tokencredit.recipes.policy.models import loaded_models
from tokencredit.recipes.policy.prompts import tokenized_prompts
from tokencredit.recipes.policy.rollout import draw_responses
from tokencredit.recipes.policy.train_policy import train_policy
from tokencredit.recipes.policy.views import old_view, reference_logprobs, sampling_support
from tokencredit.recipes.run.run_folder import read_jsonl


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_models(tmp_path_factory.mktemp("ends"))


def settings(**changes: Any) -> dict[str, Any]:
    return {"batch_size": 8, "sampling.max_new_tokens": 6, "algorithm.samples_per_prompt": 2} | {
        name.replace("__", "."): value for name, value in changes.items()
    }


def rolled_out(folder, tmp_path, **changes):
    config = tiny_config(folder, tmp_path, **settings(**changes))
    accelerator = Accelerator(cpu=True)
    models = loaded_models(config, None, accelerator.device)
    prompts = tokenized_prompts(config, models)
    torch.manual_seed(0)
    rng = torch.Generator().manual_seed(0)
    return config, models, draw_responses(config, accelerator, models, prompts, 0, rng)


def test_every_declared_end_ends_a_response(folder, tmp_path):
    ends = set(ends_of(tokenizer_of()))
    _, models, rollout = rolled_out(
        folder, tmp_path, batch_size=32, algorithm__samples_per_prompt=8
    )
    assert set(models.reading.turn_ends) == ends
    assert models.reading.turn_ends[0] == models.tokenizer.eos_token_id
    rows = zip(rollout.batch.response_ids, rollout.batch.response_mask, strict=True)
    last = []
    for (ids, mask), truncated in zip(rows, rollout.truncated.tolist(), strict=True):
        tokens = ids[mask].tolist()
        assert ends.isdisjoint(tokens[:-1])
        assert truncated == (tokens[-1] not in ends)
        last.append(tokens[-1])
    assert ends <= set(last)
    assert 0 < rollout.truncated.sum() < len(last)


def test_no_end_at_all_where_lengths_are_drawn(folder, tmp_path):
    _, _, rollout = rolled_out(folder, tmp_path, sampling__response_lengths="uniform")
    drawn = rollout.batch.response_ids[rollout.batch.response_mask].tolist()
    assert set(ends_of(tokenizer_of())).isdisjoint(drawn)
    assert len(set(rollout.batch.lengths.tolist())) > 1


def test_the_end_that_is_forced_is_the_tokenizers(folder, tmp_path):
    _, models, rollout = rolled_out(
        folder, tmp_path, sampling__force_eos=True, sampling__min_new_tokens=5
    )
    assert (rollout.batch.response_ids[:, -1] == models.tokenizer.eos_token_id).all()
    assert not rollout.truncated.any()


@pytest.mark.parametrize("lengths", ["eos", "uniform"])
def test_policy_and_reference_are_normalised_over_what_may_be_drawn(folder, tmp_path, lengths):
    """Ids without a token are not in it, neither are ends that are forbidden."""
    config, models, rollout = rolled_out(
        folder, tmp_path, sampling__response_lengths=lengths, sampling__temperature=0.7
    )
    batch, known = rollout.batch, len(models.tokenizer)
    assert (batch.response_ids[batch.response_mask] < known).all()
    model = models.actor_critic
    support = sampling_support(models, model, batch, config.sampling, None)
    with torch.no_grad():
        view, _ = old_view(model, batch, support, 0.7, None)
    reference = reference_logprobs(models, batch, support, 0.7, None)
    torch.testing.assert_close(view.logprobs, reference, rtol=1e-4, atol=1e-5)
    banned = ends_of(models.tokenizer) if lengths == "uniform" else []
    for row in range(len(batch)):
        prompt = batch.prompt_ids[row][batch.prompt_mask[row]].tolist()
        response = batch.response_ids[row][batch.response_mask[row]].tolist()
        for place, token in enumerate(response):
            text = torch.tensor([[*prompt, *response[:place]]])
            with torch.no_grad():
                logits = models.reference(text).logits[0, -1, :known] / 0.7
            logits[banned] = -torch.inf
            expected = logits.log_softmax(-1)[token]
            torch.testing.assert_close(view.logprobs[row, place], expected, rtol=1e-4, atol=1e-4)


def test_a_run_counts_what_was_cut_off(folder, tmp_path):
    train_policy(tiny_config(folder, tmp_path, **settings(), **{"record.sample_every": 1}))
    rows = read_jsonl(tmp_path / "metrics.jsonl")
    assert all(row["truncated_share"] < 1 for row in rows)
    assert rows[0]["kl"] == pytest.approx(0.0, abs=1e-4)


def test_further_ends_are_a_setting(folder, tmp_path):
    space = tokenizer_of().convert_tokens_to_ids("Ġ")
    _, models, _ = rolled_out(folder, tmp_path, policy_reading__turn_ends=("Ġ",))
    assert models.reading.turn_ends[-1] == space


def test_a_policy_without_any_end_is_refused(folder, tmp_path, monkeypatch):
    from tokencredit.recipes.policy import models as recipe

    made = recipe.reading_of
    monkeypatch.setattr(recipe, "reading_of", lambda *given: replace(made(*given), turn_ends=()))
    config = tiny_config(folder, tmp_path, **settings())
    with pytest.raises(ModelError, match="no end-of-sequence token"):
        loaded_models(config, None, torch.device("cpu"))
