"""Nash-MD in `train-policy`: whom the policy meets, and what tokens are paid for beating them."""

from dataclasses import replace

import pytest
import torch
from accelerate.utils import DistributedType
from safetensors.torch import load_file
from several_processes import require_allowed_under
from tiny_policy import by_command, tiny_config, write_models

from tokencredit.aggregation.references import win_margins
from tokencredit.decoding.candidates.hf_running_text import RunningText
from tokencredit.errors import ConfigError, TokenCreditWarning
from tokencredit.policy.hf_rollout import sampled_responses
from tokencredit.recipes.policy import opened_run, opponents
from tokencredit.recipes.policy import train_policy as recipe
from tokencredit.recipes.policy.opponents import GeometricMixture, opponent_scores
from tokencredit.recipes.policy.rollout import draw_responses
from tokencredit.recipes.policy.train_policy import train_policy
from tokencredit.sampling import Sampling
from tokencredit.scorers.evidence import Responses

NASH = {"score.transform": "nash", "algorithm.name": "reinforce", "kl.coef": 0.01}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return write_models(tmp_path_factory.mktemp("models"))


def begun(models, output, **settings):
    """A run whose policy has left its reference, and its first rollout."""
    config = tiny_config(models, output, **{**NASH, **settings})
    run, _ = opened_run.open_run(config, opened_run.accelerator_of(config), None)
    torch.manual_seed(7)
    with torch.no_grad():
        for weight in run.models.actor_critic.policy.parameters():
            if weight.requires_grad:
                weight += 0.3 * torch.randn_like(weight)
    rollout = draw_responses(
        config, run.accelerator, run.models, run.prompts, 0, recipe.seeded(0, 0, 0)
    )
    return run, rollout


def opponents_of(run, rollout, share: float) -> Responses:
    config = replace(run.config, opponent=replace(run.config.opponent, reference_share=share))
    torch.manual_seed(3)
    return opponents._drawn(replace(run, config=config), rollout, samples=1)


@pytest.mark.parametrize("settings", [{}, {"lora.rank": 2}], ids=["whole", "adapters"])
def test_the_opponent_is_the_policy_at_one_end_and_the_reference_at_the_other(
    models, tmp_path, settings
):
    run, rollout = begun(models, tmp_path, **settings)
    batch = rollout.batch

    def alone(of_model):
        torch.manual_seed(3)
        return of_model(
            lambda model: sampled_responses(
                model,
                batch.prompt_ids,
                batch.prompt_mask,
                sampling=Sampling(max_new_tokens=5, suppress_tokens=run.models.undrawable),
                pad_token_id=run.models.tokenizer.pad_token_id,
                eos_token_id=run.models.reading.turn_ends,
            )
        )[0].response_ids

    policy, reference = alone(run.models.of_policy), alone(run.models.of_reference)
    assert policy.tolist() != reference.tolist()
    assert opponents_of(run, rollout, 0.0).batch.response_ids.tolist() == policy.tolist()
    assert opponents_of(run, rollout, 1.0).batch.response_ids.tolist() == reference.tolist()


def test_every_token_is_drawn_from_the_mixture_and_no_more_than_a_column_is_held(
    models, tmp_path, monkeypatch
):
    run, rollout = begun(models, tmp_path)
    seen = []

    def watched(policy_logits, ref_logits, *, reference_share):
        mixed = opponents_of_package(policy_logits, ref_logits, reference_share=reference_share)
        seen.append(mixed)
        return mixed

    opponents_of_package = opponents.geometric_mixture_logits
    monkeypatch.setattr(opponents, "geometric_mixture_logits", watched)
    batch = opponents_of(run, rollout, 0.4).batch
    assert all(mixed.ndim == 2 for mixed in seen)
    positions = (batch.attention_mask.cumsum(-1) - 1).clamp(min=0)
    whole = {"attention_mask": batch.attention_mask, "position_ids": positions}
    with torch.no_grad():
        logits = [
            model(input_ids=batch.input_ids, **whole).logits
            for model in (run.models.actor_critic.policy, run.models.reference)
        ]
    expected = 0.6 * logits[0] + 0.4 * logits[1]
    width = batch.prompt_ids.shape[1]
    for t, mixed in enumerate(seen):
        rows = batch.response_mask[:, t]
        torch.testing.assert_close(mixed[rows], expected[rows, width - 1 + t], rtol=1e-4, atol=1e-4)


def test_rows_padded_on_the_left_are_mixed_as_if_they_stood_alone(models, tmp_path):
    run, rollout = begun(models, tmp_path)
    batch = rollout.batch
    assert not batch.prompt_mask.all()

    def mixed(ids, mask):
        reference = RunningText(run.models.reference)
        mixture = GeometricMixture(reference, 0.7, mask, torch.no_grad)
        return mixture(ids, torch.zeros(len(ids), len(run.models.tokenizer)))

    together = mixed(batch.prompt_ids, batch.prompt_mask)
    for row in range(len(batch)):
        ids = batch.prompt_ids[row][batch.prompt_mask[row]][None]
        torch.testing.assert_close(
            mixed(ids, torch.ones_like(ids).bool())[0], together[row], rtol=1e-4, atol=1e-4
        )


def test_dense_nash_sums_to_the_margin_above_that_of_the_prompt(models, tmp_path):
    samples = {"algorithm.samples_per_prompt": 2, "opponent.per_prompt": 3}
    run, rollout = begun(models, tmp_path, **samples)
    known = opponent_scores(run, rollout)
    batch, met = rollout.batch, known["reward"].scores
    assert met.shape == (4, 3)
    assert torch.equal(met[0], met[1])  # both responses to a prompt meet the same opponents
    assert not torch.equal(met[1], met[2])
    paid = run.models.rewards.paid(Responses(batch), references=known)
    margins = win_margins(run.models.rewards.sources[0].scorer(batch).prefix_scores, met)
    ends = margins.gather(1, batch.lengths[:, None]).squeeze(1)
    torch.testing.assert_close(paid.token_scores.sum(-1), ends - margins[:, 0])
    assert paid.token_scores.abs().sum(-1).min() > 0


@pytest.mark.parametrize(
    "settings",
    [{}, {"lora.rank": 2, "sampling.response_lengths": "uniform", "sampling.min_new_tokens": 2}],
    ids=["whole", "adapters"],
)
def test_resumed_equals_uninterrupted(models, tmp_path, settings):
    for name, parts in {"whole": [3], "parts": [1, 3]}.items():
        for steps in parts:
            train_policy(tiny_config(models, tmp_path / name, steps=steps, **NASH, **settings))
    (file,) = (tmp_path / "whole" / "policy").glob("*model.safetensors")
    one, other = load_file(file), load_file(tmp_path / "parts" / "policy" / file.name)
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert not (tmp_path / "whole" / "references.jsonl").exists()


def test_from_the_command_line(models, tmp_path):
    arguments = {
        "algorithm.name": "reinforce",
        "algorithm.epochs": 1,
        "score.transform": "nash",
        "credit.method": "terminal",
        "opponent.reference_share": 0.3,
        "opponent.per_prompt": 2,
        "kl.coef": 0.01,
    }
    (row,) = by_command(models, tmp_path / "run", **arguments)
    assert abs(row["token_score_sum"]) <= 0.5
    assert row["score"] != pytest.approx(row["token_score_sum"])


def test_the_price_of_raw_scores_is_warned_of(models, tmp_path):
    with pytest.warns(TokenCreditWarning, match=r"probability \(transform 'nash'\)"):
        tiny_config(models, tmp_path, **{**NASH, "kl.coef": 0.05})


def test_shares_outside_are_refused(models, tmp_path):
    with pytest.raises(ConfigError, match=r"opponent\.reference_share is 1\.2; expected a share"):
        tiny_config(models, tmp_path, **NASH, opponent__reference_share=1.2)
    with pytest.raises(ConfigError, match=r"opponent\.per_prompt is 0"):
        tiny_config(models, tmp_path, **NASH, opponent__per_prompt=0)


@pytest.mark.parametrize("kind", [DistributedType.FSDP, DistributedType.DEEPSPEED])
def test_an_opponent_needs_whole_weights(models, tmp_path, kind):
    config = tiny_config(models, tmp_path, **NASH)
    require_allowed_under(DistributedType.NO, config)
    with pytest.raises(ConfigError, match="each of whose tokens is drawn from two models"):
        require_allowed_under(kind, config)
