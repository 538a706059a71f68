"""A judge that is served alone: its scores over HTTP are those of the judge asked directly."""

import json
import math

import pytest
from tiny_endpoint import answering, first_token, shown_texts
from tiny_policy import PROMPTS, tiny_config, write_models
from transformers import AutoModelForCausalLM

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")

from tiny_server import listening, posted

from tokencredit.errors import ConfigError, DataError, ModelError, TokenCreditWarning, VerdictError
from tokencredit.recipes.credit.score_tokens import ScoreTokensConfig, score_tokens
from tokencredit.recipes.policy.train_policy import train_policy
from tokencredit.recipes.run.run_folder import read_jsonl
from tokencredit.recipes.serving.serve import ServeConfig, application_of
from tokencredit.recipes.settings import settings_from
from tokencredit.scorers.named_texts import named_text_scorer
from tokencredit.server.client import post_scores
from tokencredit.toy.hf_tokenizer import toy_tokenizer

MODULE = """
from dataclasses import replace
from tokencredit import two_way_verdict
from tokencredit.judge.setups import JUDGE_SETUPS
from tokencredit.judge.verdicts import unreadable

film = replace(
    JUDGE_SETUPS["rlbff"],
    template="{responses} this film is",
    answers=("good", "bad"),
    read=lambda reply, _count: [two_way_verdict(reply, "good", "bad")],
)

def own():
    return film

def odd():
    def read(reply, count):
        verdict = film.read(reply, count)[0]
        if verdict.score < 2.2:
            return [unreadable("it is not sure")]
        return [verdict]
    return replace(film, read=read)

def none():
    return replace(film, read=lambda _reply, _count: [unreadable("it says nothing")])

def compared():
    return replace(film, asks="reference", read=film.read)

def led():
    return replace(film, template="Principle: {principle}. {responses} this film is")
"""
SURE = 2.2  # in nats
OWN = {"setup": "setups_of_a_served_judge:own"}
ODD = {"setup": "setups_of_a_served_judge:odd", "most_unreadable": 1.0}
ANSWERS = [" superb and moving", " dull", " good", " a slow scene", " bad", ""]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = write_models(tmp_path_factory.mktemp("models"))
    (folder / "setups_of_a_served_judge.py").write_text(MODULE)
    return folder


@pytest.fixture(autouse=True)
def here(models, monkeypatch):
    monkeypatch.chdir(models)


def serving(models, judge, **settings):
    rewards = [{"model": str(models / "policy"), "judge": judge}]
    return application_of(settings_from(ServeConfig, {"rewards": rewards, **settings}))


def judged(models, judge, folder, *, credit="terminal", more=(), bad_rows="error"):
    """What `score-tokens` writes with the judge in this process."""
    rows = [{"prompt": p, "response": r} for p, r in zip(PROMPTS, ANSWERS[:5], strict=False)]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"model": str(models / "policy"), "judge": judge, "name": "judge"}
    settings = {
        "data": str(folder / "data.jsonl"),
        "rewards": [source, *more],
        "output": str(folder / "scores.jsonl"),
        "credit.method": credit,
        "dataset.bad_rows": bad_rows,
        "progress": False,
    }
    return read_jsonl(score_tokens(settings_from(ScoreTokensConfig, settings)))


def texts_of(rows):
    return [{"prompt": row["prompt"], "response": row["response"]} for row in rows]


@pytest.mark.parametrize("credit", ["uniform", "prefix-difference"])
def test_what_it_answers_is_what_the_judge_says(models, tmp_path, credit):
    rows = judged(models, OWN, tmp_path, credit=credit)
    with listening(serving(models, OWN, methods=[credit])) as address:
        found = post_scores(address, texts_of(rows), [credit])
    assert len({row["sequence_score"] for row in rows}) == 5
    for row, said in zip(rows, found, strict=True):
        assert said.sequence_score == pytest.approx(row["sequence_score"], abs=1e-5)
        assert said.token_scores[credit] == pytest.approx(row["token_scores"], abs=1e-5)
        assert said.spans == [tuple(span) for span in row["spans"]]


def test_beside_a_judge_here_score_tokens_reads_the_same_of_the_address(models, tmp_path):
    with listening(serving(models, OWN)) as address:
        served = {"model": address, "name": "served"}
        rows = judged(models, OWN, tmp_path, more=[served])
    for row in rows:
        parts = row["source_scores"]
        assert parts["served"] == pytest.approx(parts["judge"], abs=1e-5)


@pytest.mark.parametrize("credit", ["terminal", "prefix-difference"])
def test_a_policy_trains_alike_on_it(models, tmp_path, credit):
    rewards = [{"model": str(models / "policy"), "judge": OWN}]
    shown = {"record.sample_every": 1, "record.sample_count": 4, "credit.method": credit}
    train_policy(
        tiny_config(models, tmp_path / "local", **shown, reward_model=None, rewards=rewards)
    )
    with listening(serving(models, OWN, methods=[credit])) as address:
        train_policy(tiny_config(models, tmp_path / "served", **shown, reward_model=address))
    here, there = (read_jsonl(tmp_path / name / "samples.jsonl") for name in ("local", "served"))
    assert len(here) == 8
    for row, other in zip(here, there, strict=True):
        assert row["response"] == other["response"]
        assert row["score"] == pytest.approx(other["score"], abs=1e-4)
        assert row["token_scores"] == pytest.approx(other["token_scores"], abs=1e-4)


def test_a_verdict_that_cannot_be_read_is_told_in_its_row(models):
    texts = [{"prompt": PROMPTS[0], "response": one} for one in ANSWERS]
    body = {"texts": texts, "credit": ["uniform"]}
    all_rows = posted(serving(models, OWN), "/score", body).json()["scores"]
    rows = posted(serving(models, ODD), "/score", body).json()["scores"]
    assert {row["sequence_score"] < SURE for row in all_rows} == {True, False}
    for row, read in zip(rows, all_rows, strict=True):
        if read["sequence_score"] < SURE:
            assert "it is not sure" in row.pop("unreadable")
            assert row.pop("token_scores") == {}
            assert row == {key: read[key] for key in ("token_ids", "tokens", "spans")}
        else:
            assert row == read


def test_the_client_reads_no_verdict_as_nan_with_the_reason(models):
    texts = [{"prompt": PROMPTS[0], "response": one} for one in ANSWERS]
    with listening(serving(models, ODD)) as address:
        rows = post_scores(address, texts, ["uniform"])
    without = [row for row in rows if math.isnan(row.sequence_score)]
    assert 0 < len(without) < len(rows)
    assert all("it is not sure" in row.unreadable for row in without)
    assert all(not row.unreadable for row in rows if row not in without)


def test_commands_that_score_whole_texts_stop_at_it(models):
    answers = [" good", " dull"]
    with listening(serving(models, ODD)) as address:
        scores = named_text_scorer(address)
        assert scores(PROMPTS[:1], answers[:1], [True]).item() > SURE
        with pytest.raises(VerdictError, match="1 of 2 responses have no score"):
            scores([PROMPTS[0]] * 2, answers, [True, True])


class Counted:
    """An application that counts requests for scores."""

    def __init__(self, app):
        self.app, self.scored = app, 0

    async def __call__(self, scope, receive, send):
        self.scored += scope.get("path") == "/score"
        await self.app(scope, receive, send)


def test_a_policy_leaves_out_what_the_served_judge_cannot_say(models, tmp_path):
    shown = {"record.sample_every": 1, "record.sample_count": 4, "credit.method": "terminal"}
    settings = {"steps": 1, "seed": 3, **shown}
    with listening(serving(models, OWN)) as address:
        train_policy(tiny_config(models, tmp_path / "all", **settings, reward_model=address))
    app = Counted(serving(models, ODD))
    with (
        listening(app) as address,
        pytest.warns(TokenCreditWarning, match="it is not sure"),
    ):
        train_policy(tiny_config(models, tmp_path / "odd", **settings, reward_model=address))
    read, odd = (read_jsonl(tmp_path / name / "samples.jsonl") for name in ("all", "odd"))
    expected = [None if row["score"] < SURE else row["score"] for row in read]
    assert None in expected
    assert any(score is not None for score in expected)
    assert [row["score"] for row in odd] == pytest.approx(expected, abs=1e-4)
    assert app.scored == 1  # nobody is asked twice to find out which responses it was


def test_score_tokens_leaves_out_what_the_served_judge_cannot_say(models, tmp_path):
    read = judged(models, OWN, tmp_path)
    with listening(serving(models, ODD)) as address:
        served = {"model": address, "name": "served"}
        with pytest.raises(DataError, match="it is not sure"):
            judged(models, OWN, tmp_path, more=[served])
        kept = judged(models, OWN, tmp_path, more=[served], bad_rows="skip")
    good = [row["response"] for row in read if row["sequence_score"] >= SURE]
    assert 0 < len(good) < len(read)
    assert [row["response"] for row in kept] == good


def test_the_trial_at_the_start_does_not_need_a_verdict(models):
    """Nor does it count: most_unreadable of nothing at all is about what clients ask."""
    for setup in ("none", "compared"):
        judge = {"setup": f"setups_of_a_served_judge:{setup}", "most_unreadable": 0.0}
        if setup == "compared":
            (models / "references.jsonl").write_text('{"prompt": "x", "response": "y"}\n')
            judge["references"] = "references.jsonl"
        assert serving(models, judge).state.intake.accepts


def test_too_many_verdicts_that_cannot_be_read_are_an_error_of_the_settings(models):
    judge = {"setup": "setups_of_a_served_judge:none", "most_unreadable": 0.0}
    body = {"texts": [{"prompt": "a", "response": one} for one in ANSWERS[:3]], "credit": []}
    answer = posted(serving(models, judge), "/score", body)
    assert answer.status_code == 422
    assert answer.json()["error"]["type"] == "ConfigError"
    assert "3 of 3 verdicts" in answer.json()["error"]["message"]


def test_whole_texts_get_an_error_and_no_number(models):
    """Nobody says where a response begins in them."""
    answer = posted(serving(models, OWN), "/get_reward", {"query": ["the plot is good"]})
    assert answer.status_code == 422
    assert "ask /score" in answer.json()["error"]["message"]


def test_the_page_says_why_there_is_no_score(models):
    judge = {"setup": "setups_of_a_served_judge:none", "most_unreadable": 1.0}
    form = b"prompt=a&response=good"
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    answer = posted(serving(models, judge), "/", form, headers=headers)
    assert answer.status_code == 422
    assert "it says nothing" in answer.text


@pytest.mark.parametrize(
    ("setup", "more"),
    [("think-rm", {}), ("rewardanything", {"principle": "it is short"})],
)
def test_set_ups_that_compare_responses_are_refused(models, setup, more):
    with pytest.raises(ConfigError, match="one response at a time"):
        serving(models, {"setup": setup, **more})


def test_a_judge_behind_an_endpoint_has_no_tokens_to_serve(models):
    judge = {"setup": "rlbff", "principle": "it is short"}
    with pytest.raises(ConfigError, match="a judge by Hub id or folder"):
        settings_from(ServeConfig, {"rewards": [{"model": "http://h/v1#m", "judge": judge}]})


def fingerprint(rewards):
    app = application_of(settings_from(ServeConfig, {"rewards": rewards}))
    app.state.intake.close()
    return app.state.intake.scorer.about.fingerprint


def test_the_fingerprint_tells_judges_apart_that_score_differently(models, tmp_path):
    led = {"setup": "setups_of_a_served_judge:led", "principle": "it is short"}

    def own(judge, model="policy"):
        return fingerprint([{"model": str(models / model), "judge": judge}])

    other = AutoModelForCausalLM.from_pretrained(models / "policy")
    other.get_input_embeddings().weight.data[0] += 1.0
    other.save_pretrained(tmp_path / "policy")
    toy_tokenizer().save_pretrained(tmp_path / "policy")
    found = [
        own(led),
        own(OWN),
        own(led | {"principle": "it is long"}),
        own(led | {"seed": 1}),
        fingerprint([{"model": str(tmp_path / "policy"), "judge": led}]),
    ]
    assert len(set(found)) == 5
    for same in ({"cache": str(tmp_path / "a.db")}, {"concurrency": 3}, {"most_unreadable": 0.5}):
        assert own(led | same) == found[0]


def test_the_fingerprint_names_the_endpoint_beside_a_reward_model(models):
    def short(body):
        return first_token(body, {" Yes": -len(shown_texts(body)[0]) / 10, "No": -1.0})

    with answering(short) as one, answering(short) as other:

        def beside(endpoint, model="m", **judge):
            asked = {"setup": "rlbff", "principle": "it is short", **judge}
            return fingerprint([
                {"model": str(models / "reward")},
                {"model": f"{endpoint.address}#{model}", "judge": asked, "name": "judge"},
            ])  # fmt: skip

        found = [
            beside(one),
            beside(one, "n"),
            beside(other),
            beside(one, principle="it is long"),
            beside(one, top_logprobs=5),
        ]
        assert len(set(found)) == 5
        assert beside(one, concurrency=2) == found[0]


def test_prefixes_are_asked_for_only_where_a_method_on_offer_needs_them(models):
    app = serving(models, OWN)
    app.state.intake.close()
    assert app.state.intake.scorer.credit_methods == ("terminal", "uniform")
    with pytest.raises(ModelError, match="attention"):
        serving(models, OWN, methods=["attention"])
