"""`build-pairs` from files, by the command line."""

import json

import pytest
from saved_models import save_reward_model
from tiny_policy import write_models
from tiny_tokenizers import byte_level

from tokencredit.cli import main
from tokencredit.errors import ConfigError, DataError
from tokencredit.models.hf_loading import load_tokenizer
from tokencredit.preference.hf_datasets import load_pairs
from tokencredit.recipes.data.build_pairs import BuildPairsConfig, build_pairs
from tokencredit.recipes.run.run_folder import read_jsonl
from tokencredit.recipes.settings import settings_from

RATED = [
    {"prompt": "Why?", "response": " So.", "rating": 4, "error": 0.1},
    {"prompt": "Who?", "response": " I.", "rating": "2", "error": 0.1},
    {"prompt": "Why?", "response": " No.", "rating": 1, "error": 0.1},
    {"prompt": "Who?", "response": " You.", "rating": "n/a", "error": 0.1},
]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def built(folder, rows, **changes):
    given = {"data": write(folder / "data.jsonl", rows), "output": str(folder / "pairs.jsonl")}
    path = build_pairs(settings_from(BuildPairsConfig, given | changes))
    return read_jsonl(path)


def test_rated_answers_become_pairs_that_a_reward_model_learns_from(tmp_path, capsys):
    data, output = write(tmp_path / "data.jsonl", RATED), str(tmp_path / "pairs.jsonl")
    assert main(["build-pairs", "--method", "ratings", "--data", data, "--output", output]) == 0
    pair = load_pairs(output)[0]
    assert (pair.prompt, pair.chosen, pair.rejected, pair.margin) == ("Why?", " So.", " No.", 3.0)
    shown = capsys.readouterr().out
    assert "answers without a rating" in shown
    assert "1 rows" in shown


def test_lists_of_answers_are_the_same_as_a_row_for_each(tmp_path):
    rows = [
        {"prompt": "Why?", "responses": [" So.", " No."], "rating": [4, 1], "error": [0.1, 0.1]},
        {"prompt": "Who?", "responses": [" I.", " You."], "rating": [2, None], "error": [0.1, 0.1]},
    ]
    assert built(tmp_path, rows, method="ratings") == built(tmp_path, RATED, method="ratings")


def test_ultrafeedback_is_judged_by_its_aspects_and_never_by_the_overall_score(tmp_path):
    def completion(text, overall, **aspects):
        said = {name: {"Rating": rating} for name, rating in aspects.items()}
        return {"response": text, "annotations": said, "overall_score": overall}

    row = {
        "instruction": "Why?",
        "completions": [
            completion("bad", 10, helpfulness="1", honesty="N/A"),
            completion("good", 1, helpfulness="5", honesty="4"),
            completion("unknown", 5, helpfulness="N/A", honesty="N/A"),
        ],
    }
    (pair,) = built(tmp_path, [row], method="aspects")
    assert (pair["prompt"], pair["chosen"], pair["rejected"]) == ("Why?", "good", "bad")
    assert pair["margin"] == 3.5
    row["completions"][0]["annotations"]["honesty"]["Rating"] = "10"
    with pytest.raises(DataError, match="aspect 'honesty': 10; expected a rating from 1 to 5"):
        built(tmp_path, [row], method="aspects", **{"dataset.bad_rows": "error"})


@pytest.mark.parametrize(
    ("method", "row", "changes", "said"),
    [
        ("ratings", {"rating": 4}, {"columns.rating": "stars"}, "has no column 'stars'"),
        ("ratings", {"rating": 9}, {"columns.scale": [1, 5]}, "9; expected a rating from 1 to 5"),
        ("factors", {"a": 1}, {"build.factors": ["a", "-b"]}, "has no column 'b'"),
        ("consensus", {"a": 1}, {}, "has no column 'score'"),
        ("design", {"a": 1}, {}, "has no column 'features'"),
        ("design", {"features": [1, "x"]}, {}, "expected finite numbers"),
        ("aspects", {"completions": [1]}, {}, "as UltraFeedback has it"),
        ("ratings", {"rating": 4}, {}, "makes no pair"),
    ],
)
def test_what_is_missing_or_outside_the_scale_is_named(tmp_path, method, row, changes, said):
    with pytest.raises(DataError, match=said):
        built(tmp_path, [{"prompt": "Why?", "response": "So.", **row}], method=method, **changes)
    assert not (tmp_path / "pairs.jsonl").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"method": "rating"}, "did you mean 'ratings'"),
        ({"method": "ratings", "build.factors": ["a"]}, "no build.factors; expected among"),
        ({"method": "ratings", "features_model": "rm"}, "no features_model"),
        ({"method": "ratings", "tree.depth": 3}, "no tree"),
        ({"method": "ratings", "output": "pairs.json"}, "ends in .jsonl"),
        ({"method": "tree"}, "no tree.policy"),
        ({"method": "demonstrations"}, "no tree.policy"),
        (
            {"method": "demonstrations", "tree.policy": "x", "tree.reward_model": "y"},
            "no tree.reward_model",
        ),
    ],
)
def test_settings_of_another_method_are_refused(tmp_path, changes, said):
    with pytest.raises(ConfigError, match=said):
        built(tmp_path, RATED, **changes)


def test_bad_rows_are_left_out_and_told(tmp_path):
    rows = [*RATED, {"prompt": "Why?", "response": " Hm.", "rating": "many", "error": 0.1}]
    assert len(built(tmp_path, rows, method="ratings")) == 1
    assert "'many'" in read_jsonl(tmp_path / "pairs.skipped.jsonl")[0]["reason"]


def test_a_list_of_another_length_is_refused(tmp_path):
    row = {"prompt": "Why?", "responses": [" So.", " No."], "rating": [4]}
    with pytest.raises(DataError, match="one entry for each answer"):
        built(tmp_path, [row], method="ratings")


def test_states_of_a_model_are_features(tmp_path):
    save_reward_model(tmp_path / "model", byte_level())
    rows = [{"prompt": "Why?", "chosen": f" it is {word}", "rejected": " no"} for word in "abc"]
    found = built(
        tmp_path,
        rows,
        method="design",
        **{"features_model": str(tmp_path / "model"), "build.count": 3},
    )
    assert len(found) == 3
    assert all(row["gain"] > 0 for row in found)
    gains = [row["gain"] for row in found]
    assert gains == sorted(gains, reverse=True)


def test_answers_of_the_data_are_preferred_to_those_that_a_policy_draws(tmp_path):
    models = write_models(tmp_path)
    settings = {
        "tree.policy": str(models / "policy"),
        "tree.branches": 3,
        "tree.max_new_tokens": 8,
    }
    shown = [
        {"prompt": "the plot is", "response": " thin."},
        {"prompt": "the plot is", "response": " slow."},
        {"prompt": "the cast", "response": " sings."},
    ]
    rows = built(tmp_path, shown, method="demonstrations", **settings)
    assert {(row["prompt"], row["chosen"]) for row in rows} == {
        (row["prompt"], row["response"]) for row in shown
    }
    assert all(row["chosen_ended"] for row in rows)
    drawn = {row["rejected"] for row in rows if row["prompt"] == "the cast"}
    assert 1 < len(drawn) <= 3
    assert not drawn & {row["response"] for row in shown}
    again = {row["rejected"] for row in rows if row["chosen"] == " thin."}
    assert again == {row["rejected"] for row in rows if row["chosen"] == " slow."}


def test_trees_are_drawn_and_judged(tmp_path, monkeypatch):
    models = write_models(tmp_path)
    (tmp_path / "lengths_of.py").write_text("def words(p, r): return [len(one) for one in r]")
    monkeypatch.syspath_prepend(tmp_path)
    settings = {
        "tree.policy": str(models / "policy"),
        "tree.branches": 3,
        "tree.max_new_tokens": 8,
    }
    prompts = [{"prompt": "the plot is"}, {"prompt": "the cast"}]
    unjudged = built(tmp_path, prompts, method="tree", **settings)
    assert [row["prompt"] for row in unjudged] == ["the plot is", "the cast"]
    assert all(3 <= len(row["responses"]) <= 9 for row in unjudged)
    settings["tree.reward_model"] = "lengths_of:words"
    judged = built(tmp_path, prompts, method="tree", **settings)
    texts = {text for row in unjudged for text in row["responses"]}
    assert judged
    assert all(
        row["chosen"] in texts and len(row["chosen"]) - len(row["rejected"]) == row["margin"] > 0
        for row in judged
    )
    tokenizer = load_tokenizer(models / "policy")
    deep = [row for row in judged if row["shared_tokens"] >= 4]
    assert deep
    for row in deep:
        one, other = (
            tokenizer(row["prompt"] + row[side], add_special_tokens=False).input_ids
            for side in ("chosen", "rejected")
        )
        assert one[: 2 + row["shared_tokens"]] == other[: 2 + row["shared_tokens"]]


def test_a_language_model_gives_features_of_prompts(tmp_path):
    models = write_models(tmp_path)
    rows = [
        {"prompt": f"the {word} is", "response": f" {word}"} for word in ("plot", "film", "cast")
    ]
    settings = {"features_model": str(models / "policy"), "build.least_likeness": -1.0}
    found = built(tmp_path, rows, method="contrast", **settings, **{"build.most_likeness": 1.0})
    assert [row["prompt"] for row in found] == [row["prompt"] for row in rows]
    assert all(row["other_prompt"] != row["prompt"] for row in found)
