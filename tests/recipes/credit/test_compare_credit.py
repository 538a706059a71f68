import csv
import json
from dataclasses import replace

import pytest
import torch
from credit_names import ALONE
from saved_models import save_reward_model
from tiny_models import tiny_model
from tiny_tokenizers import byte_level, wordpiece
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification

from tokencredit.cli import main
from tokencredit.credit.settings import CreditSettings, ProbeSettings
from tokencredit.errors import ConfigError, DataError, ModelError, NumericError, RunFolderError
from tokencredit.preference.hf_marked_texts import load_marked_texts
from tokencredit.recipes.credit import compare_credit as recipe
from tokencredit.recipes.credit import report as compare_report
from tokencredit.recipes.credit.agreement import PEOPLE
from tokencredit.recipes.credit.compare_credit import compare_credit, compared
from tokencredit.recipes.credit.compare_settings import BaselineSettings, CompareCreditConfig
from tokencredit.recipes.credit.score_tokens import (
    ResponseColumns,
    ScoreTokensConfig,
    score_tokens,
)

ROWS = [
    {"text": "a very good film", "annotators": [[[2, 11]], [[7, 11]]], "label": 1},
    {"text": "one slow scene , then bad", "annotators": [[[4, 8]], [[22, 25]]], "label": 0},
    {"text": "the plot is bad", "annotators": [[[12, 15]], [[0, 3], [12, 15]]], "label": 0},
]
_FIGURES = compare_report._figures
METHODS = tuple(name for name in ALONE if name != "exact-shapley")
PROBES = ProbeSettings(steps=2, samples=2)
BASELINES = ["word length", "position, late", "position, early", "random"]


def save_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def config(tmp_path):
    """One cheap method, nothing drawn."""
    save_reward_model(tmp_path / "model", byte_level())
    return CompareCreditConfig(
        reward_model=str(tmp_path / "model"),
        marked=save_rows(tmp_path / "marked.jsonl", ROWS),
        output=str(tmp_path / "out"),
        methods=("uniform",),
        credit=CreditSettings(probe=PROBES),
        faithfulness_documents=0,
        resamples=20,
        heatmaps=0,
        batch_size=2,
        progress=False,
    )


@pytest.fixture(autouse=True)
def nothing_drawn(monkeypatch):
    monkeypatch.setattr(compare_report, "_figures", lambda *_: [])


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """The folder of a comparison of all methods, with everything that is drawn."""
    folder = tmp_path_factory.mktemp("everything")
    save_reward_model(folder / "model", byte_level())
    (folder / "mine.tsv").write_text("good\t2\nbad\t-2\n")
    labelled = [{"text": "good plot", "label": 1}, {"chosen": "good", "rejected": "bad"}]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compare_report, "_figures", _FIGURES)
        return compare_credit(
            CompareCreditConfig(
                reward_model=str(folder / "model"),
                marked=save_rows(folder / "marked.jsonl", ROWS),
                output=str(folder / "out"),
                methods=METHODS,
                attention_layers=(0, -1),
                credit=CreditSettings(probe=PROBES),
                baselines=BaselineSettings(
                    save_rows(folder / "labelled.jsonl", labelled), (str(folder / "mine.tsv"),)
                ),
                faithfulness_documents=2,
                resamples=20,
                heatmaps=1,
                batch_size=2,
                progress=False,
            )
        )


def table(folder):
    content = json.loads((folder / "comparison.json").read_text())
    return {row["method"]: row for row in content["rows"]}


def words_of_method(folder, name):
    return json.loads((folder / "scores" / f"{name}.json").read_text())["word_scores"]


def test_every_method_and_baseline_has_its_row(everything):
    rows = table(everything)
    attention = ["attention, layer 0", "attention, layer -1", "attention, mean of layers"]
    credit = [name for name in METHODS if name != "attention"] + attention
    assert set(rows) == {*credit, *BASELINES, "naive Bayes", "lexicon mine", PEOPLE}
    for name in set(rows) - {PEOPLE}:
        assert rows[name]["documents"] == 3
        assert rows[name]["auroc_low"] <= rows[name]["auroc"] <= rows[name]["auroc_high"]
        assert {"deletion", "insertion", "comprehensiveness", "sufficiency"} <= set(rows[name])
    assert rows["lexicon mine"]["auroc"] > 0.7
    assert rows["naive Bayes"]["auroc"] > 0.7
    assert rows["terminal"]["kind"] == "credit"


def test_every_form_of_the_table_says_the_same(everything):
    rows = table(everything)
    with (everything / "comparison.csv").open() as file:
        for row in csv.DictReader(file):
            assert float(row["auroc"]) == pytest.approx(rows[row["method"]]["auroc"])
    markdown = (everything / "comparison.md").read_text().splitlines()
    assert len(markdown) == len(rows) + 2
    assert len({line.count("|") for line in markdown}) == 1


def test_the_page_needs_nothing_beside_it(everything):
    page = (everything / "comparison.html").read_text()
    assert page.count("data:image/png") == 3
    assert "marked (full colour: by all)" in page
    assert 'src="http' not in page


@pytest.mark.parametrize("credit", ["uniform", "prefix-difference", "attention"])
def test_words_are_paid_what_score_tokens_pays_their_tokens(everything, tmp_path, credit):
    settings = ScoreTokensConfig(
        reward_model=str(everything.parent / "model"),
        data=str(everything.parent / "marked.jsonl"),
        columns=ResponseColumns(text="text"),
        credit=CreditSettings(credit),
        output=str(tmp_path / "scores.jsonl"),
        progress=False,
    )
    scored = [json.loads(line) for line in score_tokens(settings).open()]
    name = "attention-layer--1" if credit == "attention" else credit
    for row, words in zip(scored, words_of_method(everything, name), strict=True):
        paid, at = [], 0
        for word in row["response"].split():
            start = row["response"].index(word, at)
            at = start + len(word)
            tokens = zip(row["spans"], row["token_scores"], strict=True)
            paid.append(sum(score for (a, b), score in tokens if a < at and start < b))
        assert words == pytest.approx(paid, abs=1e-4)


def test_leaving_a_word_out_is_scoring_the_text_without_it(everything):
    model, reading = recipe.loaded_reward_model(str(everything.parent / "model"))
    tokenizer = reading.tokenizer

    def score(text):
        ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(text)["input_ids"]]])
        return model(input_ids=ids).logits.item()

    last = words_of_method(everything, "leave-one-out")[2][-1]
    assert last == pytest.approx(score("the plot is bad") - score("the plot is"), abs=1e-4)


def test_the_mean_of_layers_is_their_mean(everything):
    names = ("attention-layer-0", "attention-layer--1", "attention-mean-of-layers")
    first, last, mean = (
        [score for row in words_of_method(everything, name) for score in row] for name in names
    )
    middle = [(one + other) / 2 for one, other in zip(first, last, strict=True)]
    assert mean == pytest.approx(middle, abs=1e-5)
    assert first != pytest.approx(last, abs=1e-3)


def test_what_has_a_sign_is_turned_with_the_model(config, tmp_path, monkeypatch):
    (tmp_path / "mine.tsv").write_text("good\t2\n")
    signs = []
    monkeypatch.setattr(
        recipe,
        "faithfulness_numbers",
        lambda *_, signed, seed: signs.append(signed) or ({}, {"deletion": [], "insertion": []}),
    )
    lexicons = (str(tmp_path / "mine.tsv"),)
    compare_credit(
        replace(config, baselines=BaselineSettings(None, lexicons), faithfulness_documents=1)
    )
    assert signs == [True, True, False, False, False, False]  # uniform, the lexicon, the surface


def test_shapley_values_sum_to_what_the_text_adds(everything):
    for one, other in zip(
        words_of_method(everything, "shapley"),
        words_of_method(everything, "prefix-difference"),
        strict=True,
    ):
        assert sum(one) == pytest.approx(sum(other), abs=1e-3)


def test_a_second_call_scores_only_what_is_new(config, monkeypatch):
    first = table(compare_credit(config))
    scored = []
    actual = recipe._scored
    monkeypatch.setattr(
        recipe, "_scored", lambda one, *rest: scored.append(one.names) or actual(one, *rest)
    )
    compare_credit(config)
    assert scored == []
    again = table(compare_credit(replace(config, methods=("uniform", "gradient-times-input"))))
    assert scored == [("gradient-times-input",)]
    assert again["uniform"] == first["uniform"]


def test_other_texts_are_scored_anew(config, tmp_path):
    first = words_of_method(compare_credit(config), "uniform")
    save_rows(tmp_path / "marked.jsonl", [{**ROWS[0], "text": "a very good plot"}])
    assert words_of_method(compare_credit(config), "uniform")[0] != first[0]


def test_another_setting_needs_another_folder(config):
    compare_credit(config)
    with pytest.raises(RunFolderError, match="decay"):
        compare_credit(replace(config, credit=CreditSettings(decay=0.7)))


def test_the_batch_size_changes_nothing(config, tmp_path):
    config = replace(config, methods=("integrated-gradients",), faithfulness_documents=3)
    small = table(compare_credit(config))
    large = table(compare_credit(replace(config, batch_size=8, output=str(tmp_path / "other"))))
    for name, row in small.items():
        numbers = {key: value for key, value in row.items() if isinstance(value, float)}
        assert numbers == pytest.approx({key: large[name][key] for key in numbers}, abs=1e-3)


def test_error_spans_have_no_label(config, tmp_path):
    rows = [{"prompt": "rate", "response": " a bad plot", "spans": [[3, 6]]}] * 2
    config = replace(config, marked=save_rows(tmp_path / "errors.jsonl", rows))
    with pytest.raises(DataError, match="direction is 'label'"):
        compare_credit(config)
    assert not (tmp_path / "out").exists()
    rows = table(compare_credit(replace(config, direction="low")))
    assert PEOPLE not in rows
    assert rows["uniform"]["auroc_annotator"] is None


def test_an_encoder_has_no_prefixes(config, tmp_path):
    save_reward_model(tmp_path / "bert", wordpiece(), "bert")
    config = replace(config, reward_model=str(tmp_path / "bert"))
    for method in ("prefix-difference", "smoothed-prefix-difference"):
        with pytest.raises(ModelError, match="needs the score of every prefix"):
            compare_credit(replace(config, methods=(method,)))
    some = ("attention", "gradient-times-input", "leave-one-out")
    assert {"attention, layer -1", *some[1:]} <= set(
        table(compare_credit(replace(config, methods=some)))
    )


def test_models_of_their_own(config, tmp_path):
    tokenizer = byte_level()
    shape = {"vocab_size": len(tokenizer), "max_position_embeddings": 128}
    for name, kind, labels in (
        ("dpo", AutoModelForCausalLM, {"num_hidden_layers": 1}),
        ("reference", AutoModelForCausalLM, {"num_hidden_layers": 2}),
        ("judge", AutoModelForTokenClassification, {"num_labels": 2}),
        ("three", AutoModelForTokenClassification, {"num_labels": 3}),
    ):
        model = tiny_model("gpt2", auto_class=kind, **(shape | labels))
        model.config.dpo_beta = 0.1
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    judge = CreditSettings("discriminator", model=str(tmp_path / "judge"))
    implicit = CreditSettings("log-ratio", model=str(tmp_path / "dpo"))
    with pytest.raises(ConfigError, match="reference not given"):
        compare_credit(replace(config, others=(implicit, judge)))
    implicit = replace(implicit, reference=str(tmp_path / "reference"))
    both = replace(implicit, method="rto")
    folder = compare_credit(replace(config, others=(implicit, judge, both)))
    assert {"log-ratio", "discriminator", "rto", "uniform"} <= set(table(folder))
    assert any(score for row in words_of_method(folder, "discriminator") for score in row)
    ratios, with_scores = (words_of_method(folder, name) for name in ("log-ratio", "rto"))
    assert any(score for row in ratios for score in row)
    whole = [sum(row) for row in words_of_method(folder, "uniform")]
    for ratio, paid, score in zip(ratios, with_scores, whole, strict=True):
        assert sum(paid) - sum(ratio) == pytest.approx(score, abs=1e-3)
    three = replace(judge, model=str(tmp_path / "three"))
    with pytest.raises(ModelError, match="3 classes"):
        compare_credit(replace(config, others=(three,), output=str(tmp_path / "o3")))


def test_scorers_of_ones_own(config):
    tokenizer = byte_level()
    good, bad = (tokenizer(text)["input_ids"][-1] for text in ("very good", "is bad"))

    def knows(batch):
        ids = batch.response_ids
        return ((ids == good).float() - (ids == bad).float()) * batch.response_mask

    texts = load_marked_texts(config.marked)
    scorers = {"mine": knows, "nothing": lambda batch: 0.0 * batch.response_mask}
    rows = {row["method"]: row for row in compared(scorers, texts, tokenizer, resamples=10)}
    assert set(rows) == {"mine", "nothing", *BASELINES, PEOPLE}
    assert rows["nothing"]["auroc"] == 0.5
    assert rows["mine"]["auroc"] > 0.7
    low = {r["method"]: r for r in compared(scorers, texts, tokenizer, direction="low")}
    assert low["mine"]["auroc"] < rows["mine"]["auroc"]
    with pytest.raises(NumericError, match="'broken'"):
        compared({"broken": lambda b: b.response_mask / 0.0}, texts, tokenizer)


def test_the_command(config, capsys):
    arguments = ["--reward_model", config.reward_model, "--marked", config.marked]
    arguments += ["--output", config.output, "--methods", "[uniform]", "--progress", "false"]
    assert main(["compare-credit", *arguments, "--faithfulness_documents", "0"]) == 0
    shown = capsys.readouterr().out
    assert "uniform" in shown
    assert "Faithfulness" not in shown


def test_no_baseline_files(config, tmp_path):
    missing = BaselineSettings(None, (str(tmp_path / "none.tsv"),))
    with pytest.raises(DataError, match="no lexicon"):
        compare_credit(replace(config, baselines=missing))
    chats = [{"chosen": [{"role": "user", "content": "a"}], "rejected": "b"}]
    path = save_rows(tmp_path / "chats.jsonl", chats)
    with pytest.raises(DataError, match=r"chats\.jsonl, row 1, column .chosen."):
        compare_credit(replace(config, baselines=BaselineSettings(path)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ("terminal", "terminal")}, "each of them once"),
        ({"methods": ("attention",), "attention_layers": ()}, "attention_layers is empty"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"resamples": 0}, "resamples is 0"),
        ({"methods": ("discriminator",)}, "needs a model of its own"),
        ({"others": (CreditSettings("uniform"),)}, "each of them once"),
    ],
)
def test_settings_that_cannot_be(config, changes, message):
    with pytest.raises(ConfigError, match=message):
        replace(config, **changes)


def test_an_unknown_method(config, unchecked):
    with pytest.raises(ConfigError, match="did you mean 'shapley'"):
        replace(config, methods=("shaply",))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("smoothing_decay", "credit.decay"),
        ("implicit_reward", "others"),
        ("implicit_reference", "others"),
        ("token_classifier", "others"),
        ("window_width", "credit.probe.width"),
        ("baseline_texts", "baselines.texts"),
    ],
)
def test_a_setting_of_the_old_layout_says_where_it_is_now(config, capsys, old, new):
    needed = ["--reward_model", "m", "--marked", "x", "--output", "o"]
    assert main(["compare-credit", *needed, f"--{old}", "1"]) == 1
    assert f"{old!r} is now {new!r}" in capsys.readouterr().err
