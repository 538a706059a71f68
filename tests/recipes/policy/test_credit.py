"""Every credit of `train-policy` pays what its function says, segments and shares included."""

from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from tiny_policy import tiny_config, write_models
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForTokenClassification,
    PreTrainedTokenizerFast,
)

from tokencredit.batch import padded_rows
from tokencredit.credit.location import LocationNormaliser
from tokencredit.credit.methods import CREDIT_METHODS
from tokencredit.credit.settings import CreditSettings
from tokencredit.errors import ConfigError, ModelError
from tokencredit.policy.advantages import macro_gae_advantages
from tokencredit.policy.hf_rollout import sampled_responses
from tokencredit.recipes.policy.experience import experience_of
from tokencredit.recipes.policy.models import loaded_models
from tokencredit.recipes.policy.rollout import Rollout
from tokencredit.recipes.policy.train_policy import train_policy
from tokencredit.recipes.run.run_folder import read_jsonl
from tokencredit.sampling import Sampling
from tokencredit.scorers.hf_credit_models import FittedCredit
from tokencredit.scorers.source_settings import RewardSource
from tokencredit.text.segments import SegmentSettings, segment_ends


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = write_models(tmp_path_factory.mktemp("credits"))
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "policy")
    shape = LlamaConfig.from_pretrained(folder / "policy")
    for seed, (name, kind, extra) in enumerate(
        [
            ("dpo", LlamaForCausalLM, {}),
            ("classifier", LlamaForTokenClassification, {"num_labels": 2}),
            ("severity", LlamaForTokenClassification, {"num_labels": 3}),
            ("rewriter", LlamaForCausalLM, {}),
        ]
    ):
        torch.manual_seed(10 + seed)
        model = kind(LlamaConfig(**{**shape.to_dict(), **extra, "initializer_range": 0.3}))
        if name == "dpo":
            model.config.dpo_reference, model.config.dpo_beta = str(folder / "policy"), 0.5
        model.config.rewriter_template = "{prompt} {response} is "
        model.config.rewriter_instruction = "Better."
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    means = torch.linspace(0.0, 1.0, 12)
    fitted = FittedCredit(means, LocationNormaliser(0.1, 0.1, 0.5, 1.0))
    (folder / "fitted.json").write_text(fitted.written())
    return folder


def needed(models, credit: str) -> dict[str, object]:
    """Settings that give a method what it needs."""
    method, found = CREDIT_METHODS[credit], {}
    if "segments" in method.needs:
        found["segments.kind"] = "ngram"
    if {"length_means", "location"} & set(method.needs):
        found["credit.fitted"] = str(models / "fitted.json")
    kinds = {"implicit": "dpo", "classifier": "classifier", "rewriter": "rewriter"}
    if method.model_kind and "policy_attention" not in method.needs:
        found["credit.model"] = str(models / kinds.get(method.model_kind, "policy"))
    if credit == "severity":
        found["credit.model"] = str(models / "severity")
        found["credit.judge.severity_scores"] = (0.0, -1.0, -5.0)
    return found


def first_experience(models, tmp_path, **settings):
    """What a first step collects, with ten words in every response."""
    config = tiny_config(models, tmp_path / "run", sampling__max_new_tokens=10, **settings)
    parts = loaded_models(config, None, torch.device("cpu"))
    torch.manual_seed(0)
    prompt_ids, prompt_mask = padded_rows(
        [[3, 4], [5]], fill=parts.tokenizer.pad_token_id, side="left"
    )
    batch, truncated = sampled_responses(
        parts.actor_critic.policy,
        prompt_ids,
        prompt_mask,
        sampling=Sampling(max_new_tokens=10, suppress_tokens=(parts.tokenizer.eos_token_id,)),
        pad_token_id=parts.tokenizer.pad_token_id,
        eos_token_id=parts.tokenizer.eos_token_id,
    )
    return experience_of(
        parts,
        parts.actor_critic,
        Rollout(batch, truncated),
        config,
        Accelerator(cpu=True),
        kl_coef=0.0,
        moments={},
    )


# A judge quotes, not a reward model: `tests/scorers/test_quotes.py`.
OF_REWARD_MODELS = [name for name in CREDIT_METHODS if name != "quoted-evidence"]


@pytest.mark.parametrize("credit", OF_REWARD_MODELS)
def test_every_credit_trains(models, tmp_path, credit):
    config = tiny_config(models, tmp_path / "run", credit__method=credit, **needed(models, credit))
    train_policy(config)
    rows = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    assert len(rows) == 2
    assert all(row["policy_loss"] == row["policy_loss"] for row in rows)


@pytest.mark.parametrize("credit", ["uniform", "attention", "shaped-log-ratio"])
def test_conserving_credits_sum_to_the_score(models, tmp_path, credit):
    found = first_experience(models, tmp_path, credit__method=credit, **needed(models, credit))
    torch.testing.assert_close(found.token_scores.sum(-1), found.sequence_scores)
    assert (found.token_scores != 0).sum() > len(found.batch)


def test_log_ratios_are_added_to_the_terminal_reward(models, tmp_path):
    mixed = first_experience(
        models,
        tmp_path,
        credit__method="rto",
        credit__clip=0.05,
        **needed(models, "rto"),
    )
    early = mixed.token_scores[:, :-1]
    assert early.abs().max() == pytest.approx(0.05)
    rest = mixed.token_scores[:, -1] - mixed.sequence_scores
    assert (rest.abs() <= 0.05 + 1e-5).all()
    assert rest.abs().max() > 0


def test_smoothing_moves_credit_and_keeps_its_sum(models, tmp_path):
    plain = first_experience(models, tmp_path, credit__method="prefix-difference")
    smooth = first_experience(models, tmp_path, credit__method="smoothed-prefix-difference")
    torch.testing.assert_close(plain.token_scores.sum(-1), smooth.token_scores.sum(-1))
    assert smooth.token_scores[:, :-1].abs().sum() < plain.token_scores[:, :-1].abs().sum()
    unsmoothed = first_experience(
        models, tmp_path, credit__method="smoothed-prefix-difference", credit__decay=0.0
    )
    torch.testing.assert_close(plain.token_scores, unsmoothed.token_scores)


@pytest.mark.parametrize(
    "segments", ["ngram", "random-ngram", "sentence", "clause", "entropy", "perplexity"]
)
def test_segments_are_paid_at_their_ends(models, tmp_path, segments):
    plain = first_experience(models, tmp_path, credit__method="prefix-difference")
    paid = first_experience(
        models,
        tmp_path,
        credit__method="prefix-difference",
        segments__kind=segments,
        segments__entropy=0.5,
    )
    torch.testing.assert_close(paid.token_scores.sum(-1), plain.token_scores.sum(-1))
    assert (paid.token_scores != 0).sum() <= (plain.token_scores != 0).sum()


def test_ngrams_are_paid_every_fifth_token(models, tmp_path):
    paid = first_experience(
        models, tmp_path, credit__method="prefix-difference", segments__kind="ngram"
    )
    assert (paid.token_scores != 0).nonzero()[:, 1].tolist() == [4, 9, 4, 9]


def test_macro_actions_share_one_advantage(models, tmp_path):
    found = first_experience(
        models,
        tmp_path,
        credit__method="prefix-difference",
        segments__kind="ngram",
        segments__use="macro-actions",
    )
    assert (found.token_scores != 0).sum() > 4
    blocks = found.advantages.view(2, 2, 5)
    torch.testing.assert_close(blocks, blocks[..., :1].expand_as(blocks))
    assert blocks[0, 0, 0] != blocks[0, 1, 0]


def test_macro_actions_end_where_a_function_says(models, tmp_path, monkeypatch):
    (tmp_path / "first_words.py").write_text(
        "def alone(text):\n"
        "    first = len(text) - len(text.lstrip()) + len(text.split()[0])\n"
        "    return [(0, first), (first, len(text))]\n"
    )
    monkeypatch.chdir(tmp_path)
    found = first_experience(
        models,
        tmp_path,
        segments__kind="spans",
        segments__function="first_words:alone",
        segments__use="macro-actions",
    )
    rest = found.advantages[:, 1:]
    torch.testing.assert_close(rest, rest[:, :1].expand_as(rest))
    assert not found.advantages[:, 0].isclose(rest[:, 0]).any()


@pytest.mark.parametrize("pooling", ["mean", "first", "last", "position"])
def test_values_of_macro_actions_are_pooled_as_asked(models, tmp_path, pooling):
    settings = {"segments.kind": "ngram", "segments.use": "macro-actions"}
    found = first_experience(models, tmp_path, **{**settings, "algorithm.value_pooling": pooling})
    ids = torch.tensor([[0] * 5 + [1] * 5]).expand(2, 10)
    expected = macro_gae_advantages(
        found.token_rewards, found.old.values, found.batch.response_mask, ids, value_pooling=pooling
    )
    torch.testing.assert_close((found.advantages, found.returns), expected)


def test_macro_actions_of_one_token_are_plain_advantages(models, tmp_path):
    plain = first_experience(models, tmp_path, credit__method="prefix-difference")
    single = first_experience(
        models,
        tmp_path,
        credit__method="prefix-difference",
        segments__kind="ngram",
        segments__length=1,
        segments__use="macro-actions",
    )
    torch.testing.assert_close(single.advantages, plain.advantages)


def test_a_share_of_the_reward_can_stay_at_the_end(models, tmp_path):
    dense = first_experience(models, tmp_path, credit__method="uniform")
    mixed = first_experience(
        models, tmp_path, credit__method="uniform", credit__terminal_share=0.25
    )
    torch.testing.assert_close(mixed.token_scores[:, :-1], 0.75 * dense.token_scores[:, :-1])
    torch.testing.assert_close(mixed.token_scores.sum(-1), dense.token_scores.sum(-1))


def test_segment_credit_is_the_same_inside_a_segment(models, tmp_path):
    found = first_experience(models, tmp_path, credit__method="segment", segments__kind="ngram",
                          segments__use="macro-actions")  # fmt: skip
    blocks = found.token_scores.view(2, 2, 5)
    torch.testing.assert_close(blocks, blocks[..., :1].expand_as(blocks))
    ids = torch.tensor([[0] * 5 + [1] * 5])
    assert segment_ends(ids).nonzero()[:, 1].tolist() == [4, 9]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"credit.method": "log-ratio"}, "expected a model for it"),
        ({"credit.method": "uniform", "credit.model": "m"}, "expected none"),
        ({"credit.method": "segment"}, "credit.method is 'segment' and segments.kind 'none'"),
        ({"segments.use": "macro-actions"}, "use is 'macro-actions'"),
        ({"credit.terminal_share": 1.5}, "terminal_share is 1.5"),
        ({"credit.decay": 1.0}, "decay 1.0"),
    ],
)
def test_contradictory_credit_settings(models, tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        tiny_config(models, tmp_path, **changes)


def test_a_classifier_of_severities_is_no_discriminator(models, tmp_path):
    config = tiny_config(
        models, tmp_path, credit__method="discriminator", credit__model=str(models / "severity")
    )
    with pytest.raises(ModelError, match="has 3 classes; expected 2"):
        loaded_models(config, None, torch.device("cpu"))


def test_log_ratios_need_a_known_reference(models, tmp_path):
    config = tiny_config(
        models, tmp_path, credit__method="log-ratio", credit__model=str(models / "policy")
    )
    with pytest.raises(ConfigError, match="reference"):
        loaded_models(config, None, torch.device("cpu"))
    known = replace(config.credit, reference=str(models / "policy"), dpo_beta=0.1)
    given = replace(config, credit=known)
    assert loaded_models(given, None, torch.device("cpu")).rewards.credited.models.dpo_beta == 0.1


def test_scores_are_kept_before_they_are_clipped(models, tmp_path):
    found = first_experience(models, tmp_path, credit__method="uniform", score__clip=0.01)
    assert (found.sequence_scores.abs() > 0.01).all()
    torch.testing.assert_close(found.token_scores.sum(-1), found.sequence_scores.clamp(-0.01, 0.01))


def test_the_score_of_rto_has_a_weight(models, tmp_path):
    whole, half = (
        first_experience(
            models,
            tmp_path,
            credit__method="rto",
            credit__score_weight=weight,
            **needed(models, "rto"),
        )
        for weight in (1.0, 0.5)
    )
    torch.testing.assert_close(whole.token_scores[:, :-1], half.token_scores[:, :-1])
    lost = whole.token_scores[:, -1] - half.token_scores[:, -1]
    torch.testing.assert_close(lost, 0.5 * whole.sequence_scores)


def test_segment_rewards_are_clamped_after_the_spread(models, tmp_path):
    settings = {"credit__method": "segment", **needed(models, "segment")}
    settings["segments.use"] = "macro-actions"
    plain = first_experience(models, tmp_path, **settings)
    clamped = first_experience(models, tmp_path, **settings, credit__judge__clamp=0.05)
    assert (plain.token_scores.abs() > 0.05).any()
    torch.testing.assert_close(clamped.token_scores, plain.token_scores.clamp(-0.05, 0.05))


def test_what_was_not_fitted_is_missed(models, tmp_path):
    config = tiny_config(models, tmp_path, credit__method="located-segment", segments__kind="ngram")
    with pytest.raises(ConfigError, match=r"fitted before, and credit\.fitted is None"):
        loaded_models(config, None, torch.device("cpu"))


def test_a_policy_is_trained_on_fine_grained_judges_alone(models, tmp_path):
    judged = CreditSettings("fine-grained")
    rewards = tuple(
        RewardSource(str(models / "classifier"), name, weight, credit=judged, segments=segments)
        for name, weight, segments in [
            ("facts", 0.5, SegmentSettings("ngram", length=2)),
            ("style", -0.25, SegmentSettings("ngram", length=3)),
        ]
    )
    config = tiny_config(models, tmp_path / "run", reward_model=None, rewards=rewards, steps=2)
    train_policy(config)
    rows = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    assert len(rows) == 2
    for row in rows:
        combined = 0.5 * row["score/facts"] - 0.25 * row["score/style"]
        assert row["score"] == pytest.approx(combined, abs=1e-5)
        assert row["score/facts"] != row["score/style"]


def test_metrics_have_the_mean_of_each_objective(models, tmp_path):
    asked = f"{models / 'objectives'}#helpfulness=0.5,verbosity=-2"
    train_policy(tiny_config(models, tmp_path / "out", reward_model=asked))
    for row in read_jsonl(tmp_path / "out" / "metrics.jsonl"):
        helpful, verbose = (row[f"score/reward/{name}"] for name in ("helpfulness", "verbosity"))
        assert helpful != verbose
        assert 0.5 * helpful - 2 * verbose == pytest.approx(row["score"], abs=1e-4)
