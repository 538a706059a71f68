"""A judge evaluated by labelled pairs, in both orders."""

import json

import pytest
import torch
from tiny_endpoint import answering, completion, first_token, shown_texts

from tokencredit.cli import main
from tokencredit.errors import ConfigError, NumericError
from tokencredit.evaluation.pair_scores import wilson_interval
from tokencredit.judge.agreement import pair_verdicts
from tokencredit.judge.comparisons import order_consistency
from tokencredit.judge.setups import JUDGE_SETUPS
from tokencredit.recipes.judge.evaluate_judge import EvaluateJudgeConfig, evaluate_judge
from tokencredit.recipes.run.run_folder import read_jsonl
from tokencredit.recipes.settings import settings_from

# The judge likes long responses and, by two nats, what stands first.
PAIRS = [
    {"prompt": "Q", "chosen": "a" * 9, "rejected": "b", "subset": "far"},
    {"prompt": "Q", "chosen": "a" * 3, "rejected": "bb", "subset": "near"},
    {"prompt": "Q", "chosen": "a", "rejected": "bbb", "subset": "near"},
]
GAPS = [8.0, 1.0, -2.0]


def biased(body):
    texts = shown_texts(body)
    if len(texts) == 1:
        return first_token(body, {"Yes": len(texts[0]) - 20.0, "No": -20.0})
    lead = len(texts[0]) - len(texts[1]) + 2.0
    if body.get("logprobs"):
        return first_token(body, {"A": lead - 20, "B": -20.0})
    if "JSON" in body["messages"][0]["content"]:
        return completion(
            body, json.dumps({str(n + 1): min(5, len(t)) for n, t in enumerate(texts)})
        )
    return completion(body, f"[[{'A' if lead > 0 else 'B'}]]")


@pytest.fixture
def endpoint():
    with answering(biased) as found:
        yield found


def evaluated(endpoint, tmp_path, pairs=PAIRS, **settings):
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in pairs))
    given = {
        "model": f"{endpoint.address}#m",
        "data": str(data),
        "output": str(tmp_path / "judged"),
        "judge.setup": "pairwise-rl",
    }
    folder = evaluate_judge(settings_from(EvaluateJudgeConfig, given | settings))
    return json.loads((folder / "evaluation.json").read_text()), read_jsonl(folder / "pairs.jsonl")


def test_a_bias_to_a_place_turns_verdicts_and_cancels_in_both_orders(endpoint, tmp_path):
    found, rows = evaluated(endpoint, tmp_path)
    assert [row["first"] for row in rows] == pytest.approx([gap + 2 for gap in GAPS])
    assert [row["second"] for row in rows] == pytest.approx([gap - 2 for gap in GAPS])
    assert found["accuracy"]["share"] == pytest.approx(2 / 3)
    low, high = wilson_interval(2, 3)
    assert (found["accuracy"]["low"], found["accuracy"]["high"]) == (low, high)
    # First: 10, 3, 0; second: 6, -1, -4: one turns, one is a draw in one order.
    assert found["turns_with_the_order"]["share"] == pytest.approx(2 / 3)
    assert found["accuracy_better_first"]["share"] == pytest.approx(2.5 / 3)
    assert found["accuracy_better_second"]["share"] == pytest.approx(1 / 3)
    assert found["bias_to_the_first"] == pytest.approx(2.0)
    assert {name: row["share"] for name, row in found["subsets"].items()} == {"far": 1, "near": 0.5}


def test_the_share_that_turns_is_what_consistency_lacks(endpoint, tmp_path):
    found, rows = evaluated(endpoint, tmp_path)
    first, second = (torch.tensor([row[name] for row in rows]) for name in ("first", "second"))
    consistent = float(order_consistency(first, -second))
    assert found["turns_with_the_order"]["share"] == pytest.approx(1 - consistent)


def test_a_judge_of_single_responses_has_no_order(endpoint, tmp_path):
    rubric = {"judge.setup": "rlbff", "judge.principle": "it is long"}
    found, rows = evaluated(endpoint, tmp_path, **rubric)
    assert [row["first"] for row in rows] == pytest.approx(GAPS)
    assert "turns_with_the_order" not in found


@pytest.mark.parametrize(
    ("setup", "leads"),
    [
        ({"judge.setup": "rewardanything", "judge.principle": "long"}, [4, 1, -2]),
        ({"judge.setup": "rubric-rm", "judge.rubric": "long"}, [1, 0, -1]),
        ({"judge.setup": "think-rm"}, None),
    ],
)
def test_set_ups_with_texts_and_lists(endpoint, tmp_path, setup, leads):
    if leads is None:  # the endpoint writes no number, so that nothing can be read
        with pytest.raises(NumericError, match="6 of 6 verdicts cannot be read"):
            evaluated(endpoint, tmp_path, **setup)
        return
    _, rows = evaluated(endpoint, tmp_path, **setup)
    both = [(row["first"] + row["second"]) / 2 for row in rows]
    assert both[0] == leads[0]
    assert [one > 0 for one in both] == [lead > 0 for lead in leads]


def test_by_the_command_line(endpoint, tmp_path, capsys):
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    command = ["evaluate-judge", "--model", f"{endpoint.address}#m", "--data", str(data)]
    command += ["--output", str(tmp_path / "out"), "--judge.setup", "pairwise-rl"]
    assert main(command) == 0
    assert "turns with the order" in capsys.readouterr().out


def test_what_cannot_be_is_refused(endpoint, tmp_path):
    with pytest.raises(ConfigError, match=r"judge\.setup is empty"):
        evaluated(endpoint, tmp_path, **{"judge.setup": ""})
    with pytest.raises(ConfigError, match="asks for a principle"):
        evaluated(endpoint, tmp_path, **{"judge.setup": "rlbff"})
    with pytest.raises(ConfigError, match="expected one of each"):
        pair_verdicts(lambda asked: [], JUDGE_SETUPS["pairwise-rl"], ["Q"], ["a"], [])
