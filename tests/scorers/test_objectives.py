"""A score of each objective for every token: named, in one pass, adding up to the total."""

import json
from dataclasses import replace
from urllib.parse import urlencode

import pytest
import torch
from saved_models import save_reward_model
from tiny_tokenizers import CHAT_TEMPLATE, byte_level

from tokencredit.batch import ResponseBatch
from tokencredit.credit.methods import CREDIT_METHODS
from tokencredit.credit.settings import CreditSettings, adds_up
from tokencredit.recipes.credit.explain import ExplainConfig, explain, explanation
from tokencredit.recipes.credit.score_tokens import ScoreTokensConfig, score_tokens
from tokencredit.reward_model import hf_scores
from tokencredit.reward_model.hf_loading import load_reward_model
from tokencredit.reward_model.hf_scores import score_responses
from tokencredit.scorers.hf_local import LocalScorer
from tokencredit.scorers.source_settings import RewardSource
from tokencredit.scorers.text_rewards import loaded_text_rewards, paid_texts
from tokencredit.scorers.texts import loaded_reward_model
from tokencredit.text.hf_known_readings import written_by
from tokencredit.text.segments import SegmentSettings

NAMES = ("helpful", "short", "true")
HEAD = {
    "num_labels": 3,
    "id2label": dict(enumerate(NAMES)),
    "label2id": {name: output for output, name in enumerate(NAMES)},
    "problem_type": "regression",
}
WEIGHTS = {"helpful": 0.5, "short": -1.0, "true": 2.0}
ASKED = "helpful=0.5,short=-1,true=2"
PROMPTS = ["the film is", "one slow scene , then", "a"]
RESPONSES = [" a good café 日本 🙂 plot", " bad", " very good film , then a bad one"]
CHATS = [[{"role": "user", "content": text}] for text in PROMPTS]
LINEAR = sorted(
    name
    for name in CREDIT_METHODS
    if adds_up(CreditSettings(name)) and "generator" not in name and "quoted" not in name
)


@pytest.fixture
def folder(tmp_path):
    save_reward_model(tmp_path / "rm", byte_level(chat_template=CHAT_TEMPLATE), "llama", **HEAD)
    return tmp_path / "rm"


def paid(name, prompts=PROMPTS, credit="prefix-difference", ended=True, **more):
    segments = (
        SegmentSettings("ngram", length=2)
        if "segments" in CREDIT_METHODS[credit].needs
        else SegmentSettings()
    )
    credit = CreditSettings(credit, **more)
    rewards = loaded_text_rewards([RewardSource(str(name))], credit, segments)
    return paid_texts([rewards], prompts, RESPONSES, ended=ended)


def test_the_linear_methods_are_these():
    assert LINEAR == [
        "attention",
        "held-prefix-difference",
        "prefix-difference",
        "segment",
        "smoothed-prefix-difference",
        "terminal",
        "uniform",
        "utterance",
    ]


@pytest.mark.parametrize("ended", [True, [True, False, False]])
@pytest.mark.parametrize("prompts", [PROMPTS, CHATS])
@pytest.mark.parametrize("credit", LINEAR)
def test_objectives_add_up_and_each_is_that_of_its_own_model(folder, credit, prompts, ended):
    together = paid(f"{folder}#{ASKED}", prompts, credit, ended, terminal_share=0.2)
    assert list(together.objectives[0]) == list(NAMES)
    total = torch.zeros_like(together.token_scores[0])
    for name, one in together.objectives[0].items():
        alone = paid(f"{folder}#{name}", prompts, credit, ended, terminal_share=0.2)
        assert alone.objectives[0] == {}
        torch.testing.assert_close(one.token_scores, alone.token_scores[0])
        torch.testing.assert_close(one.sequence_scores, alone.sequence_scores)
        assert one.weights.tolist() == [WEIGHTS[name]] * 3
        total += WEIGHTS[name] * alone.token_scores[0]
    torch.testing.assert_close(together.token_scores[0], total)
    assert total.abs().max() > 0.01


def test_one_forward_pass_says_all(folder, monkeypatch):
    passes, run = [], hf_scores._one_pass
    monkeypatch.setattr(hf_scores, "_one_pass", lambda *a: passes.append(1) or run(*a))
    assert len(paid(f"{folder}#{ASKED}").objectives[0]) == 3
    assert passes == [1]


def test_the_score_is_that_of_a_head_with_one_row(folder):
    """The sum of rows is the row of the sum: whatever reads one score reads the same."""
    model, _ = load_reward_model(f"{folder}#{ASKED}")
    plain, _ = load_reward_model(f"{folder}#helpful")
    rows = model.score.rows.weight.detach()
    with torch.no_grad():
        plain.score.weight.copy_((torch.tensor(list(WEIGHTS.values())) @ rows)[None])
    ids, mask = drawn()
    found, expected = (score_responses(m, batch_of(ids, mask)) for m in (model, plain))
    torch.testing.assert_close(found.prefix_scores, expected.prefix_scores)
    torch.testing.assert_close(found.sequence_scores, expected.sequence_scores)
    alone = hf_scores.reward_model_output(model, ids, mask)  # without the scores by objective
    torch.testing.assert_close(alone.sequence_scores, expected.sequence_scores)


def test_padding_batches_and_what_is_under_the_mask_change_nothing(folder):
    model, _ = load_reward_model(f"{folder}#{ASKED}")
    ids, mask = drawn()
    whole = score_responses(model, batch_of(ids, mask))
    noise = torch.randint(3, 200, ids.shape, generator=torch.Generator().manual_seed(5))
    garbage = score_responses(model, batch_of(ids.where(mask, noise), mask))
    micro = score_responses(model, batch_of(ids, mask), micro_batch_size=1)
    for name, one in whole.objectives.items():
        for other in (garbage, micro):
            found = other.objectives[name].scores
            torch.testing.assert_close(found.prefix_scores, one.scores.prefix_scores)
        row = score_responses(model, batch_of(ids[1:2, :5], mask[1:2, :5])).objectives[name].scores
        torch.testing.assert_close(row.prefix_scores[0], one.scores.prefix_scores[1, :4])


def test_a_policy_with_other_tokens_gets_each_objective_of_each_prefix(folder):
    """Every prefix is read as a text of its own, by each objective as by one alone."""
    writer = byte_level(merges=10)
    ids = [writer(text)["input_ids"] for text in RESPONSES]
    batch = ResponseBatch.of_rows([writer(p)["input_ids"] for p in PROMPTS], ids, pad_token_id=0)

    def scores(asked):
        model, own = loaded_reward_model(f"{folder}#{asked}")
        return LocalScorer(model, own, written_by(writer, None), prefixes="own-text")(batch)

    together = scores(ASKED)
    total = torch.zeros_like(together.prefix_scores)
    for name, one in together.objectives.items():
        alone = scores(name)
        torch.testing.assert_close(one.scores.prefix_scores, alone.prefix_scores)
        total += WEIGHTS[name] * alone.prefix_scores
    torch.testing.assert_close(together.prefix_scores, total)


@pytest.mark.parametrize("credit", ["leave-one-out", "gradient-times-input"])
def test_credit_that_asks_again_gives_the_total_alone(folder, credit):
    found = paid(f"{folder}#{ASKED}", credit=credit)
    assert all(one.token_scores is None for one in found.objectives[0].values())
    assert found.token_scores[0].abs().max() > 0.001
    alone = [
        WEIGHTS[name] * paid(f"{folder}#{name}", credit=credit).token_scores[0] for name in NAMES
    ]
    torch.testing.assert_close(found.token_scores[0], sum(alone), atol=1e-4, rtol=1e-4)


def test_several_sources_name_the_source_before_the_objective(folder):
    sources = [
        RewardSource(f"{folder}#{ASKED}", name="many", weight=0.5),
        RewardSource(f"{folder}#short", name="one", weight=3.0),
    ]
    rewards = loaded_text_rewards(sources, CreditSettings("prefix-difference"), SegmentSettings())
    found = paid_texts([rewards], PROMPTS, RESPONSES, ended=False)
    assert list(found.objectives[0]) == [f"many/{name}" for name in NAMES]
    parts = [one.weights[:, None] * one.token_scores for one in found.objectives[0].values()]
    rest = 3.0 * paid(f"{folder}#short", ended=False).token_scores[0]
    torch.testing.assert_close(sum(parts) + rest, found.token_scores[0])


def test_a_score_that_is_transformed_has_no_parts(folder):
    source = RewardSource(f"{folder}#{ASKED}")
    clipped = replace(source, score=replace(source.score, clip=0.1))
    rewards = loaded_text_rewards([clipped], CreditSettings("terminal"), SegmentSettings())
    found = paid_texts([rewards], PROMPTS, RESPONSES)
    for one in found.objectives[0].values():
        assert one.weights is None
        assert one.token_scores is None


def drawn():
    ids = torch.randint(3, 200, (3, 8), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[1, 5:] = False
    return ids, mask


def batch_of(ids, mask):
    return ResponseBatch(ids[:, :2], mask[:, :2], ids[:, 2:], mask[:, 2:])


def test_rows_of_score_tokens_name_each_objective(folder, tmp_path):
    rows = [{"prompt": p, "response": r} for p, r in zip(PROMPTS, RESPONSES, strict=True)]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def scored(asked):
        config = ScoreTokensConfig(
            str(data), f"{folder}#{asked}", output=str(tmp_path / "out.jsonl"), progress=False,
            credit=CreditSettings("prefix-difference"),
        )  # fmt: skip
        return [json.loads(line) for line in score_tokens(config).open()]

    for row, alone in zip(scored(ASKED), scored("short"), strict=True):
        found = row["objectives"]
        assert list(found) == list(NAMES)
        assert {name: one["weight"] for name, one in found.items()} == WEIGHTS
        sums = [WEIGHTS[name] * torch.tensor(one["token_scores"]) for name, one in found.items()]
        torch.testing.assert_close(sum(sums), torch.tensor(row["token_scores"]))
        whole = sum(WEIGHTS[name] * one["sequence_score"] for name, one in found.items())
        assert whole == pytest.approx(row["sequence_score"], abs=1e-5)
        assert found["short"]["token_scores"] == pytest.approx(alone["token_scores"], abs=1e-5)
        assert "objectives" not in alone


def test_a_heat_map_shows_each_objective_and_the_sum(folder, tmp_path):
    settings = {
        "reward_model": f"{folder}#{ASKED}",
        "prompt": PROMPTS[0],
        "response": RESPONSES[0],
        "methods": ("prefix-difference", "leave-one-out"),
    }
    rows = explanation(ExplainConfig(**settings)).scores
    shares = [f"prefix-difference: {WEIGHTS[name]:.3g} {name}" for name in NAMES]
    assert list(rows) == ["prefix-difference", *shares, "leave-one-out"]
    sums = [sum(parts) for parts in zip(*(rows[name] for name in shares), strict=True)]
    assert sums == pytest.approx(rows["prefix-difference"], abs=1e-5)
    page = explain(ExplainConfig(**settings, output=str(tmp_path / "map.html")))
    assert all(name in page.read_text() for name in shares)


def test_the_server_answers_each_objective(folder):
    pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
    from tiny_server import asked

    from tokencredit.recipes.serving.serve import ServeConfig, application_of

    application = application_of(ServeConfig(reward_model=f"{folder}#{ASKED}"))
    text = {"prompt": PROMPTS[1], "response": RESPONSES[1]}
    chats = {"prompt": CHATS[0], "response": RESPONSES[0], "ended": False}
    body = {"texts": [text, chats], "credit": ["prefix-difference", "uniform"]}
    headers = {"Content-Type": "application/x-www-form-urlencoded"}

    async def answers(client):
        scored = await client.post("/score", json=body)
        plain = await client.post("/score", json={"texts": [text], "credit": []})
        page = await client.post("/", content=urlencode(text), headers=headers)
        return scored.json()["scores"], plain.json()["scores"][0], page.text

    rows, plain, shown = asked(application, answers)
    for row in rows:
        for method in body["credit"]:
            parts = [
                one["weight"] * torch.tensor(one["token_scores"][method])
                for one in row["objectives"].values()
            ]
            paid_tokens = torch.tensor(row["token_scores"][method])
            torch.testing.assert_close(sum(parts), paid_tokens)
    assert list(rows[0]["objectives"]) == list(NAMES)
    assert plain["objectives"]["short"]["token_scores"] == {}
    whole = sum(one["weight"] * one["sequence_score"] for one in plain["objectives"].values())
    assert whole == pytest.approx(plain["sequence_score"], abs=1e-5)
    assert "prefix-difference: -1 short" in shown, shown
