"""Token credit from what a judge quotes, in the commands that pay tokens."""

import json
import logging
from functools import partial

import pytest
import torch
from readings import written_by
from saved_models import save_reward_model
from tiny_endpoint import answering, completion, shown_texts
from tiny_policy import tiny_config, write_models
from tiny_tokenizers import byte_level

from tokencredit.aggregation.methods import CombinationSettings
from tokencredit.aggregation.transforms import ScoreSettings
from tokencredit.cli import main
from tokencredit.credit.settings import CreditSettings, JudgeSettings
from tokencredit.errors import ConfigError, ModelError
from tokencredit.judge.evidence import Criterion, QuotedCriterion
from tokencredit.recipes.credit.explain import ExplainConfig, explanation
from tokencredit.recipes.policy.train_policy import train_policy
from tokencredit.recipes.run.run_folder import read_jsonl
from tokencredit.recipes.serving.offers import known_objectives
from tokencredit.recipes.settings import settings_from
from tokencredit.scorers.evidence import Responses
from tokencredit.scorers.judge_settings import JudgingSettings
from tokencredit.scorers.quotes import with_quotes
from tokencredit.scorers.source_settings import RewardSource
from tokencredit.scorers.sources import loaded_rewards
from tokencredit.server.asking import RewardServer
from tokencredit.text.hf_decoding import DecodedResponse
from tokencredit.text.hf_encoding import encode_responses
from tokencredit.text.segments import SegmentSettings

POLICY = byte_level()
JUDGE = {"setup": "evidence", "criteria": (Criterion("good", weight=3.0), Criterion("short"))}
PROMPT, RESPONSE = "the film is", " a very good plot , good"
SCORE = (3 * 2 - 1) / 4


def said(body):
    """Two points for the first word `good`, one off for length, of which nothing is quoted."""
    text = shown_texts(body)[0]
    quotes = ["GOOD"] if "good" in text else ["nothing of it"]
    verdict = {"good": {"score": 2, "quotes": quotes}, "short": {"score": -1, "quotes": []}}
    return completion(body, f"Thus: {json.dumps(verdict)}")


@pytest.fixture(scope="module")
def endpoint():
    with answering(said) as found:
        yield found


def rewards_of(address, *, credit="quoted-evidence", own=None, others=(), **settings):
    options = {"judge": JudgeSettings(unquoted=settings.pop("unquoted", "even"))}
    source = RewardSource(f"{address}#m", name="m", judge=JudgingSettings(**JUDGE), credit=own,
                          **settings)  # fmt: skip
    return loaded_rewards(
        [source, *others],
        CreditSettings(credit, **options),
        SegmentSettings(),
        CombinationSettings(),
        written_by(POLICY),
        server=partial(RewardServer, retries=0, timeout=20.0),
    )


def paid(rewards, response=RESPONSE):
    """Token scores by hand and by the rewards, with the characters of each token."""
    encoded = encode_responses(POLICY, [PROMPT], [response], append_eos=True)
    return rewards(encoded.batch)[0], encoded.response_spans[0]


@pytest.mark.parametrize("unquoted", ["even", "end"])
def test_a_criterion_is_paid_on_its_quotes_and_the_rest_elsewhere(endpoint, unquoted):
    found, spans = paid(rewards_of(endpoint.address, unquoted=unquoted))
    places = [RESPONSE.index("good"), RESPONSE.rindex("good")]
    touched = [
        any(max(start, at) < min(end, at + 4) for at in places) for start, end in spans
    ]  # `GOOD` stands nowhere as it is, so the words `good` count
    assert 2 <= sum(touched) < len(spans)
    for place, (token, score) in enumerate(zip(touched, found.tolist(), strict=True)):
        rest = 1 / len(spans) if unquoted == "even" else float(place == len(spans) - 1)
        assert score == pytest.approx(token * 0.75 * 2 / sum(touched) - 0.25 * rest, abs=1e-5)
    assert float(found.sum()) == pytest.approx(SCORE, abs=1e-5)


def test_quotes_that_stand_nowhere_are_reported_and_paid_elsewhere(endpoint, caplog):
    rewards = rewards_of(endpoint.address)
    with caplog.at_level(logging.WARNING):
        found, spans = paid(rewards, " dull")
    assert found.tolist() == pytest.approx([SCORE / len(spans)] * len(spans), abs=1e-5)
    assert "a quote stands nowhere in the response (1)" in caplog.text
    assert "a criterion has no quote (1)" in caplog.text
    reward = rewards.sources[0].scorer.function
    paid(rewards)
    assert dict(reward.unquoted) == {
        "a quote stands nowhere in the response": 1,
        "a criterion has no quote": 2,
    }


def test_weights_and_scales_keep_the_sum(endpoint):
    plain, _ = paid(rewards_of(endpoint.address))
    half, _ = paid(rewards_of(endpoint.address, weight=0.5))
    torch.testing.assert_close(half, 0.5 * plain)
    clipped, spans = paid(rewards_of(endpoint.address, score=ScoreSettings(clip=0.25)))
    torch.testing.assert_close(clipped, plain - (SCORE - 0.25) / len(spans))


def test_beside_another_reward_it_is_a_credit_of_its_own(endpoint, tmp_path):
    save_reward_model(tmp_path / "reward", POLICY)
    other = RewardSource(str(tmp_path / "reward"), name="other")
    with pytest.raises(ModelError, match=r"tokens that it quotes .* judge.setup 'evidence'"):
        rewards_of(endpoint.address, others=[other])
    own = CreditSettings("quoted-evidence")
    both = rewards_of(endpoint.address, credit="terminal", others=[other], own=own)
    encoded = encode_responses(POLICY, [PROMPT], [RESPONSE], append_eos=True)
    found = both.paid(Responses(encoded.batch)).by_source["m"]
    assert float(found.sum()) == pytest.approx(SCORE, abs=1e-5)


def test_tokens_of_one_character_and_tokens_that_do_not_count():
    row = DecodedResponse("", "ab é", [(0, 2), (2, 4), (3, 4), (3, 4), (4, 4)], [2, 2, 3, 4, 4])
    mask = torch.tensor([[True, True, False, True, True]])
    criterion = QuotedCriterion("c", 3.0, 0.5, ((3, 4),))
    found = with_quotes(torch.tensor([1.5]), [[criterion]], [row], mask)
    assert found.quoted_scores.tolist() == [[0.0, 0.75, 0.0, 0.75, 0.0]]
    (objective,) = found.objectives.values()
    assert objective.scores.quoted_scores.tolist() == [[0.0, 1.5, 0.0, 1.5, 0.0]]
    assert (objective.scores.sequence_scores.item(), objective.weights.item()) == (3.0, 0.5)


def test_padding_and_other_rows_change_nothing(endpoint):
    rewards = rewards_of(endpoint.address)
    texts = [RESPONSE, " dull", " good"]
    batch = encode_responses(POLICY, [PROMPT] * 3, texts, append_eos=True).batch
    together = rewards(batch)
    assert together[~batch.response_mask].eq(0).all()
    for row, text in enumerate(texts):
        alone, _ = paid(rewards, text)
        torch.testing.assert_close(together[row, : len(alone)], alone)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return write_models(tmp_path_factory.mktemp("models"))


def sources(endpoint, models):
    """The judge pays; the tokens are those of a reward model that weighs nothing."""
    criteria = [{"name": "good", "weight": 3}, {"name": "short"}]
    return [
        {"model": f"{endpoint.address}#m", "name": "m",
         "judge": {"setup": "evidence", "criteria": criteria}},
        {"model": str(models / "reward"), "name": "read", "weight": 0, "credit":
         {"method": "terminal"}},
    ]  # fmt: skip


def test_criteria_are_objectives_that_a_server_knows(endpoint):
    found = rewards_of(endpoint.address).sources
    assert known_objectives(found) == ("good", "short")


def test_score_tokens_shows_every_criterion(endpoint, models, tmp_path):
    (tmp_path / "data.jsonl").write_text(json.dumps({"prompt": PROMPT, "response": RESPONSE}))
    told = ["--data", str(tmp_path / "data.jsonl"), "--output", str(tmp_path / "scores.jsonl")]
    told += ["--rewards", json.dumps(sources(endpoint, models)), "--progress", "false"]
    assert main(["score-tokens", *told, "--credit.method", "quoted-evidence"]) == 0
    (row,) = read_jsonl(tmp_path / "scores.jsonl")
    assert sum(row["token_scores"]) == pytest.approx(SCORE, abs=1e-4)
    parts = {name.removeprefix("m/"): one for name, one in row["objectives"].items()}
    assert {name: (one["sequence_score"], one["weight"]) for name, one in parts.items()} == {
        "good": (2.0, 0.75),
        "short": (-1.0, 0.25),
    }
    sums = [
        sum(one["weight"] * one["token_scores"][place] for one in parts.values())
        for place in range(len(row["token_scores"]))
    ]
    assert sums == pytest.approx(row["token_scores"], abs=1e-5)


def test_explain_draws_every_criterion(endpoint, models):
    asked = {"rewards": sources(endpoint, models), "prompt": PROMPT, "response": RESPONSE}
    methods = ["quoted-evidence", "uniform"]
    drawn = explanation(settings_from(ExplainConfig, {**asked, "methods": methods}))
    assert list(drawn.scores) == [
        *("quoted-evidence", "quoted-evidence: 0.75 m/good", "quoted-evidence: 0.25 m/short"),
        *("uniform", "uniform: 0.75 m/good", "uniform: 0.25 m/short"),
    ]
    total, *parts = list(drawn.scores.values())[:3]
    assert [a + b for a, b in zip(*parts, strict=True)] == pytest.approx(total, abs=1e-5)


def test_a_policy_is_paid_for_what_is_quoted(endpoint, models, tmp_path):
    rows = sources(endpoint, models)[:1]
    shown = {"record.sample_every": 1, "record.sample_count": 4}
    settings = {"reward_model": None, "rewards": rows, "credit.method": "quoted-evidence"}
    train_policy(tiny_config(models, tmp_path / "run", steps=1, **settings, **shown))
    for row in read_jsonl(tmp_path / "run" / "samples.jsonl"):
        assert sum(row["token_scores"]) == pytest.approx(SCORE, abs=1e-4)
        assert row["score"] == pytest.approx(SCORE)


def test_criteria_belong_to_a_set_up_that_has_some():
    with pytest.raises(ConfigError, match="expected the set-up 'evidence'"):
        JudgingSettings(setup="rlbff", principle="x", criteria=JUDGE["criteria"])
    with pytest.raises(ConfigError, match="different names"):
        JudgingSettings(setup="evidence", criteria=(Criterion("a"), Criterion("a")))
    assert JudgingSettings(**JUDGE).row().criteria == JUDGE["criteria"]
    assert len(JudgingSettings(setup="evidence").row().criteria) == 3
