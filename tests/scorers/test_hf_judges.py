"""A judge by settings: as a source of reward of the commands, whole and at the ends of segments."""

import json
import logging
from functools import partial
from itertools import pairwise

import pytest
import torch
from readings import written_by
from saved_models import save_reward_model
from tiny_endpoint import answering, completion, first_token, shown_texts
from tiny_policy import PROMPTS, tiny_config, write_models
from tiny_tokenizers import CHAT_TEMPLATE, byte_level
from transformers import AutoModelForCausalLM

from tokencredit.aggregation.methods import CombinationSettings
from tokencredit.credit.settings import CreditSettings
from tokencredit.errors import ConfigError, DataError, TokenCreditWarning
from tokencredit.judge.setups import JUDGE_SETUPS
from tokencredit.judge.verdicts import Reply
from tokencredit.recipes.credit.score_tokens import ScoreTokensConfig, score_tokens
from tokencredit.recipes.policy.train_policy import train_policy
from tokencredit.recipes.run.run_folder import read_jsonl
from tokencredit.recipes.settings import settings_from
from tokencredit.scorers.hf_judges import JudgeReward
from tokencredit.scorers.judge_settings import JudgingSettings
from tokencredit.scorers.references import prompt_key
from tokencredit.scorers.source_settings import RewardSource
from tokencredit.scorers.sources import loaded_rewards
from tokencredit.server.asking import RewardServer
from tokencredit.text.hf_encoding import encode_responses
from tokencredit.text.segments import SegmentSettings

POLICY = byte_level()
RLBFF = {"setup": "rlbff", "principle": "it is short"}
ASKED = ["the film is", "one slow scene , then"]
RESPONSES = [" a good plot , very good", " bad"]


def true_score(text):
    return 1.5 - len(text) / 8


def by_length(body):
    """Yes for short responses, by one token; of two the shorter one, in a text."""
    texts = shown_texts(body)
    if body.get("logprobs"):
        return first_token(body, {" Yes": true_score(texts[0]) - 5, "No": -5.0})
    if "JSON" in body["messages"][0]["content"]:
        return completion(body, json.dumps({str(n): 5 - n for n in range(1, len(texts) + 1)}))
    better = "A" if len(texts[0]) <= len(texts[1]) else "B"
    return completion(body, f"The shorter one. <answer>[[{better}]]</answer>")


@pytest.fixture
def endpoint():
    with answering(by_length) as found:
        yield found


def rewards_of(model, judge, *, credit="terminal", segments=None, **settings):
    source = RewardSource(model, judge=JudgingSettings(**judge), **settings)
    return loaded_rewards(
        [source],
        CreditSettings(credit),
        segments or SegmentSettings(),
        CombinationSettings(),
        written_by(POLICY),
        server=partial(RewardServer, retries=0, timeout=20.0),
    )


def batch(prompts=ASKED, responses=RESPONSES):
    return encode_responses(POLICY, prompts, responses, append_eos=True).batch


def scores_of(rewards, *given, **options):
    return rewards.sources[0].scorer(batch(*given), **options).sequence_scores.tolist()


def test_scores_are_those_of_the_judge(endpoint):
    rewards = rewards_of(f"{endpoint.address}#my/judge", RLBFF)
    assert scores_of(rewards) == pytest.approx([true_score(text) for text in RESPONSES])
    assert rewards.sources[0].name == "judge"
    assert {body["model"] for body in endpoint.bodies} == {"my/judge"}
    assert "it is short" in endpoint.bodies[0]["messages"][0]["content"]


def test_chats_are_shown_as_they_were_asked(endpoint):
    chats = [[{"role": "system", "content": "be brief"}, {"role": "user", "content": "Why?"}],
             [{"role": "user", "content": "How?"}]]  # fmt: skip
    scores_of(rewards_of(f"{endpoint.address}#m", RLBFF), conversations=chats)
    shown = sorted(body["messages"][0]["content"] for body in endpoint.bodies)
    assert "user: How?" in shown[0] + shown[1]
    assert "system: be brief\n\nuser: Why?" in shown[0] + shown[1]


def test_references_stand_in_a_file(endpoint, tmp_path):
    path = tmp_path / "references.jsonl"
    rows = [{"prompt": ASKED[0], "response": "longer than this it is not , by far"},
            {"prompt": [{"role": "user", "content": ASKED[1]}], "response": "x"}]  # fmt: skip
    path.write_text("\n\n".join(map(json.dumps, rows)))
    judge = {"setup": "rm-r1", "references": str(path)}
    rewards = rewards_of(f"{endpoint.address}#m", judge)
    assert scores_of(rewards) == [1.0, -1.0]
    with pytest.raises(DataError, match=r"1 prompts have no reference .* 'another'"):
        scores_of(rewards, ["another"], ["x"])
    for bad in ('{"prompt": "x"}', '{"prompt": 1, "response": "x"}', "[]",
                '{"prompt": "x", "response": "y"}\n{"prompt": "x", "response": "z"}'):  # fmt: skip
        path.write_text(bad)
        with pytest.raises(DataError, match=r"line [12]: no prompt with one response"):
            rewards_of(f"{endpoint.address}#m", judge)
    with pytest.raises(DataError, match="cannot be read"):
        rewards_of(f"{endpoint.address}#m", judge | {"references": str(tmp_path)})


def test_responses_to_a_prompt_are_compared_with_each_other(endpoint):
    judge = {"setup": "rewardanything", "principle": "order"}
    rewards = rewards_of(f"{endpoint.address}#m", judge)
    given = ["a", "b", "a"], [" x", " y", " z"]
    found = scores_of(rewards, *given)
    assert sorted([found[0], found[2]]) == [3.0, 4.0]
    assert found[1] == 4.0
    for credit in ("prefix-difference", "leave-one-out"):
        with pytest.raises(ConfigError, match="asks for parts of each"):
            rewards_of(f"{endpoint.address}#m", judge, credit=credit)


SEGMENTED = ["held-prefix-difference", "utterance", "segment"]


@pytest.mark.parametrize("credit", SEGMENTED)
def test_credit_at_the_ends_of_segments_asks_there_alone(endpoint, credit, tmp_path):
    """What a segment adds to the judge's score of the text up to it, paid by hand."""
    cut = SegmentSettings(kind="clause")
    cache = str(tmp_path / "replies")
    rewards = rewards_of(
        f"{endpoint.address}#m", RLBFF | {"cache": cache}, credit=credit, segments=cut
    )
    asked = batch(["the film"], [" a good plot , very good . bad"])
    paid = rewards(asked)[0]
    texts = {shown_texts(body)[0] for body in endpoint.bodies}
    steps = sorted(texts, key=len)
    assert 3 <= len(steps) <= 5
    assert steps[0] == ""
    assert all(steps[-1].startswith(text) for text in steps)
    earned = [true_score(b) - true_score(a) for a, b in pairwise(steps)]
    if credit == "segment":
        assert float(paid.sum()) == pytest.approx(sum(map(true_score, steps[1:])), abs=1e-4)
    else:
        found = paid[paid != 0].tolist()
        assert found == pytest.approx(earned, abs=1e-4)
    count = len(endpoint.asked)
    again = rewards_of(
        f"{endpoint.address}#m", RLBFF | {"cache": cache}, credit=credit, segments=cut
    )
    assert torch.equal(again(asked)[0], paid)
    assert len(endpoint.asked) == count


def test_the_credit_at_ends_is_that_of_all_prefixes(endpoint):
    """Asked at every token or at ends alone, the tokens earn the same."""
    cut = SegmentSettings(kind="ngram", length=3)
    rewards = rewards_of(f"{endpoint.address}#m", RLBFF, credit=SEGMENTED[0], segments=cut)
    found, few = rewards(batch()), len(endpoint.asked)
    scorer = rewards.credited.scorer
    object.__setattr__(scorer, "at_ends", False)
    assert torch.allclose(rewards(batch()), found, atol=1e-5)
    assert len(endpoint.asked) - few > 1.5 * few


def reward(judge, **settings):
    settings = JudgingSettings(**(RLBFF | settings))
    return JudgeReward(judge, JUDGE_SETUPS["rlbff"], settings, "the judge j")


def test_a_verdict_that_cannot_be_read_is_an_error_of_its_response_alone(caplog):
    asked = []

    def judge(questions):
        asked.extend(questions)
        return [
            Reply(problem="a content filter")
            if "bad" in one.messages[0]["content"]
            else Reply(logprobs={"yes": 1.0, "no": 0.0})
            for one in questions
        ]

    one = reward(judge)
    with caplog.at_level(logging.WARNING), pytest.raises(DataError, match="1 of 3 responses"):
        one(["p", "p", "q"], ["good", "bad", "fair"])
    assert "1 of 3 verdicts cannot be read (a content filter (1))" in caplog.text
    assert one(["p"], ["good"]) == [1.0]  # of the last time
    with pytest.raises(DataError, match="a content filter"):
        one(["p"], ["bad"])
    assert (len(asked), one.verdicts) == (3, 3)


def test_too_many_of_them_stop_the_run():
    def none(questions):
        return [Reply() for _ in questions]

    with pytest.raises(DataError):  # five of a hundred, if there were so many
        reward(none, most_unreadable=0.05)(["p"] * 5, [str(n) for n in range(5)])
    for most, count in ((0.05, 6), (0.0, 1)):
        one = reward(none, most_unreadable=most)
        with pytest.raises(ConfigError, match=f"{count} of {count} verdicts"):
            one(["p"] * count, [str(n) for n in range(count)])


WRONG = {
    "no such": ({"setup": "rlbf"}, "rlbff"),
    "no principle": ({"setup": "rlbff"}, "asks for a principle"),
    "a principle": ({"setup": "rm-r1", "principle": "x", "references": "f"}, "no principle"),
    "no rubric": ({"setup": "rubric-rm", "references": "f"}, "asks for a rubric"),
    "no references": ({"setup": "rm-r1"}, "with a reference"),
    "references": (RLBFF | {"references": "f"}, "with none"),
    "again": (RLBFF | {"ask_again": 1}, "temperature above 0"),
    "again one token": (RLBFF | {"ask_again": 1, "temperature": 1.0}, "one token"),
    "tokens": (RLBFF | {"max_new_tokens": 0}, "max_new_tokens"),
}


@pytest.mark.parametrize("name", WRONG)
def test_settings_that_contradict_each_other(name):
    judge, named = WRONG[name]
    with pytest.raises(ConfigError, match=named):
        JudgingSettings(**judge)


@pytest.mark.parametrize(
    ("model", "judge", "named"),
    [
        ("vllm+http://x", RLBFF, "causal language model"),
        ("my:function", RLBFF, "causal language model"),
        ("my/judge", {}, "judge.setup"),
        ("http://x/v1", RLBFF, "without a model"),
        ("http://u:p@x/v1#m", RLBFF, "holds a user"),
        ("my/judge", RLBFF | {"token_variable": "X"}, "no address"),
    ],
)
def test_sources_that_are_no_judge(model, judge, named):
    with pytest.raises(ConfigError, match=named):
        RewardSource(model, judge=JudgingSettings(**judge))


def test_the_token_of_a_judge_goes_to_it_and_no_other_does(endpoint, monkeypatch):
    monkeypatch.setenv("MY_TOKEN", "of-the-judge")
    for judge, sent in ((RLBFF | {"token_variable": "MY_TOKEN"}, "Bearer of-the-judge"),
                        (RLBFF, None)):  # fmt: skip
        rewards = loaded_rewards(
            [RewardSource(f"{endpoint.address}#m", judge=JudgingSettings(**judge))],
            CreditSettings("terminal"), SegmentSettings(), CombinationSettings(),
            written_by(POLICY), server=partial(RewardServer, token="of-the-reward-server"),
        )  # fmt: skip
        scores_of(rewards)
        assert endpoint.asked[-1][1].get("Authorization") == sent
    monkeypatch.delenv("MY_TOKEN")
    with pytest.raises(ConfigError, match=r"judge\.token_variable"):
        rewards_of(f"{endpoint.address}#m", RLBFF | {"token_variable": "MY_TOKEN"})


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return write_models(tmp_path_factory.mktemp("models"))


def test_a_policy_is_paid_by_a_judge_of_an_endpoint(endpoint, models, tmp_path):
    rows = [{"model": f"{endpoint.address}#m", "name": "short", "judge": RLBFF}]
    shown = {"record.sample_every": 1, "record.sample_count": 4}
    settings = {"reward_model": None, "rewards": rows, "credit.method": "terminal"}
    train_policy(tiny_config(models, tmp_path / "run", steps=1, **settings, **shown))
    samples = read_jsonl(tmp_path / "run" / "samples.jsonl")
    assert len({row["score"] for row in samples}) > 1
    for row in samples:
        assert row["score"] == pytest.approx(true_score(row["response"]), abs=1e-4)
        assert sum(row["token_scores"]) == pytest.approx(row["score"], abs=1e-4)


def test_a_policy_leaves_out_what_the_judge_cannot_say(models, tmp_path):
    """And asks no question twice for it."""

    def reply(body):
        odd = len(shown_texts(body)[0]) % 2
        return first_token(body, {"Maybe": -0.1}) if odd else by_length(body)

    shown = {"record.sample_every": 1, "record.sample_count": 4}
    with answering(reply) as endpoint:
        rows = [{"model": f"{endpoint.address}#m", "judge": RLBFF}]
        settings = {"reward_model": None, "rewards": rows, "credit.method": "terminal"}
        with pytest.warns(TokenCreditWarning, match="have no verdict of the judge m"):
            train_policy(tiny_config(models, tmp_path / "run", steps=1, **settings, **shown))
    samples = read_jsonl(tmp_path / "run" / "samples.jsonl")
    odd = [len(row["response"]) % 2 == 1 for row in samples]
    assert [row["score"] is None for row in samples] == odd
    assert 0 < sum(odd) < len(odd)
    assert len(endpoint.asked) <= len(samples)


MODULE = """
from dataclasses import replace
from tokencredit import two_way_verdict
from tokencredit.judge.setups import JUDGE_SETUPS
from tokencredit.judge.verdicts import Reply

def own():
    return replace(
        JUDGE_SETUPS["rlbff"],
        template="{responses} this film is",
        answers=("good", "bad"),
        read=lambda reply, _count: [two_way_verdict(reply, "good", "bad")],
    )

def none():
    return 3
"""


def test_a_local_judge_beside_a_reward_model_scores_tokens(models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_setup_of_a_judge.py").write_text(MODULE)
    data = tmp_path / "answers.jsonl"
    answers = [" superb and moving", " dull", " good"]
    data.write_text("".join(json.dumps({"prompt": p, "response": r}) + "\n"
                            for p, r in zip(PROMPTS, answers, strict=False)))  # fmt: skip
    judge = {"setup": "my_setup_of_a_judge:own", "cache": "replies.db"}
    found = []
    for _ in range(2):
        settings = {
            "data": str(data),
            "rewards": [
                {"model": str(models / "reward"), "weight": 1.0},
                {"model": str(models / "policy"), "judge": judge, "weight": 2.0},
            ],
            "output": f"{len(found)}.jsonl",
            "credit.method": "terminal",
            "progress": False,
        }
        score_tokens(settings_from(ScoreTokensConfig, settings))
        found.append(read_jsonl(tmp_path / f"{len(found)}.jsonl"))
    assert found[0] == found[1]
    for row in found[0]:
        parts = row["source_scores"]
        expected = parts["reward"] + 2.0 * parts["policy"]
        assert row["sequence_score"] == pytest.approx(expected, abs=1e-4)
    assert len({row["source_scores"]["policy"] for row in found[0]}) == 3
    with pytest.raises(ConfigError, match="expected a JudgeSetup"):
        JudgingSettings("my_setup_of_a_judge:none").row()


def test_a_local_judge_writes_texts(tmp_path):
    torch.manual_seed(0)
    tokenizer = byte_level(chat_template=CHAT_TEMPLATE)
    save_reward_model(
        tmp_path / "judge", tokenizer, "llama", auto_class=AutoModelForCausalLM,
        max_position_embeddings=2048,
    )  # fmt: skip
    (tmp_path / "r.jsonl").write_text(json.dumps({"prompt": ASKED[0], "response": "x"}))
    judge = {"setup": "rm-r1", "references": str(tmp_path / "r.jsonl"), "max_new_tokens": 4}
    rewards = rewards_of(str(tmp_path / "judge"), judge)
    assert rewards.modules  # it is moved with the others
    with pytest.raises(DataError, match="cut off"):
        scores_of(rewards, ASKED[:1], RESPONSES[:1])


def test_prompts_are_told_apart():
    turn = {"role": "user", "content": "x"}
    assert len({prompt_key(one) for one in ("x", [turn], [turn, turn], "y")}) == 3


def test_a_local_judge_alone_pays_its_own_tokens(models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_setup_of_a_judge.py").write_text(MODULE)
    rows = [{"prompt": "the plot is", "response": text} for text in (" superb and good", " dull")]
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    judge = {"setup": "my_setup_of_a_judge:own"}
    given = {"data": "answers.jsonl", "output": "scores.jsonl", "progress": False}
    source = {"model": str(models / "policy"), "judge": judge}
    for method in ("uniform", "prefix-difference"):
        settings = {**given, "rewards": [source], "credit.method": method}
        found = read_jsonl(score_tokens(settings_from(ScoreTokensConfig, settings)))
        assert ["".join(row["tokens"]) for row in found][1] == " dull"
    asked = rewards_of(str(models / "policy"), judge)
    scores = asked.sources[0].scorer.function(
        ["the plot is"] * 2, [row["response"] for row in rows]
    )
    assert [row["sequence_score"] for row in found] == pytest.approx(scores, abs=1e-5)
    # Token scores of beginnings add up to the verdict less that on the empty response.
    start = asked.sources[0].scorer.function(["the plot is"], [""])[0]
    for row in found:
        assert sum(row["token_scores"]) == pytest.approx(row["sequence_score"] - start, abs=1e-4)


def test_a_judge_behind_an_endpoint_alone_has_no_tokens(endpoint, tmp_path):
    (tmp_path / "answers.jsonl").write_text(json.dumps({"prompt": "a", "response": "b"}) + "\n")
    source = {"model": f"{endpoint.address}#m", "judge": RLBFF}
    settings = {"data": str(tmp_path / "answers.jsonl"), "rewards": [source]}
    with pytest.raises(ConfigError, match="a judge by Hub id or folder"):
        score_tokens(settings_from(ScoreTokensConfig, settings))
