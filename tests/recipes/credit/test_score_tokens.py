import json
import math
from pathlib import Path

import pytest
import torch
from credit_names import SCORES
from saved_models import save_reward_model
from tiny_models import tiny_model
from tiny_tokenizers import CHAT_TEMPLATE, SlowTokenizer, byte_level

from tokencredit.cli import main
from tokencredit.credit.settings import CreditSettings
from tokencredit.errors import ConfigError, DataError, ModelError, NumericError, RunFolderError
from tokencredit.preference.hf_rows import DatasetSettings
from tokencredit.recipes.credit.score_tokens import (
    ResponseColumns,
    ScoreTokensConfig,
    score_tokens,
)
from tokencredit.recipes.settings import LoadingSettings
from tokencredit.reward_model.hf_loading import load_reward_model
from tokencredit.scorers.source_settings import RewardSource
from tokencredit.scorers.texts import loaded_reward_model
from tokencredit.text.hf_reading import Reading
from tokencredit.text.reading_settings import ReadingSettings

ROWS = [
    {"prompt": "the film is", "response": " a good café 日本 🙂 plot"},
    {"prompt": "one slow scene , then", "response": " bad"},
    {"prompt": "a", "response": " very good film , then a bad one"},
]


def save_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def settings(tmp_path):
    save_reward_model(tmp_path / "model", byte_level())
    return {
        "reward_model": str(tmp_path / "model"),
        "data": save_rows(tmp_path / "data.jsonl", ROWS),
        "output": str(tmp_path / "out" / "scores.jsonl"),
        "progress": False,
    }


def scored(**settings):
    path = score_tokens(ScoreTokensConfig(**settings))
    return [json.loads(line) for line in path.open()]


def loaded_model(settings):
    return load_reward_model(settings["reward_model"])


@pytest.mark.parametrize("credit", SCORES)
def test_rows_sum_to_the_models_own_scores(settings, credit):
    model, tokenizer = loaded_model(settings)
    rows = scored(**settings, credit=CreditSettings(credit))
    assert len(rows) == len(ROWS)
    for given, row in zip(ROWS, rows, strict=True):
        assert (row["prompt"], row["response"]) == (given["prompt"], given["response"])
        ids = tokenizer(row["prompt"] + row["response"], return_tensors="pt")["input_ids"]
        start = len(tokenizer(row["prompt"])["input_ids"])
        score = model(input_ids=ids).logits.item()
        before = model(input_ids=ids[:, :start]).logits.item()
        assert row["sequence_score"] == pytest.approx(score, abs=1e-4)
        paid = score - before if credit == "prefix-difference" else score
        assert sum(row["token_scores"]) == pytest.approx(paid, abs=1e-4)
        assert len(row["tokens"]) == len(row["spans"]) == len(row["token_scores"])
        assert row["tokens"] == [row["response"][a:b] for a, b in row["spans"]]


def test_a_model_that_learnt_with_the_end_of_sequence_reads_it(settings, tmp_path):
    model, tokenizer = loaded_model(settings)
    model.config.eos_appended = True
    model.save_pretrained(tmp_path / "model")
    row = scored(**settings)[1]
    ids = tokenizer(row["prompt"] + row["response"])["input_ids"] + [tokenizer.eos_token_id]
    score = model(input_ids=torch.tensor([ids])).logits.item()
    assert row["sequence_score"] == pytest.approx(score, abs=1e-4)
    assert row["tokens"][-1] == "<eos>"
    assert row["spans"][-1] == [len(row["response"])] * 2


def test_the_batch_size_changes_nothing(settings):
    together, alone = scored(**settings), scored(**settings, batch_size=1)
    for one, other in zip(together, alone, strict=True):
        assert one["token_scores"] == pytest.approx(other["token_scores"], abs=1e-5)


def test_a_limit_takes_the_first_rows(settings):
    assert [row["prompt"] for row in scored(**settings, limit=2)] == [
        "the film is",
        ROWS[1]["prompt"],
    ]


def test_other_columns(settings, tmp_path):
    rows = [{"ask": row["prompt"], "say": row["response"]} for row in ROWS]
    settings["data"] = save_rows(tmp_path / "other.jsonl", rows)
    with pytest.raises(DataError, match=r"no column 'prompt'.*\['ask', 'say'\]"):
        score_tokens(ScoreTokensConfig(**settings))
    found = scored(**settings, columns=ResponseColumns("ask", "say"))
    usual = [{"question": row["prompt"], "answer": row["response"]} for row in ROWS]
    settings["data"] = save_rows(tmp_path / "usual.jsonl", usual)
    assert scored(**settings) == found


def test_texts_without_prompts_stand_behind_the_first_token(settings, tmp_path):
    settings["data"] = save_rows(tmp_path / "texts.jsonl", [{"text": "a good film"}])
    model, tokenizer = loaded_model(settings)
    (row,) = scored(
        **settings, columns=ResponseColumns(text="text"), credit=CreditSettings("terminal")
    )
    ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer("a good film")["input_ids"]]])
    assert row["sequence_score"] == pytest.approx(model(input_ids=ids).logits.item(), abs=1e-4)
    assert "".join(row["tokens"]) == "a good film"


def test_conversations_are_rendered(settings, tmp_path):
    tokenizer = byte_level(chat_template=CHAT_TEMPLATE)
    model = save_reward_model(tmp_path / "model", tokenizer)
    message = {"role": "user", "content": "rate this film"}
    prompts = ([message], "rate this film")
    settings["data"] = save_rows(
        tmp_path / "chats.jsonl", [{"prompt": prompt, "response": "good"} for prompt in prompts]
    )
    rows = scored(**settings)
    messages = [message, {"role": "assistant", "content": "good"}]
    ids = tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=False)
    for row in rows:
        assert row["sequence_score"] == pytest.approx(model(input_ids=ids).logits.item(), abs=1e-4)
        assert row["tokens"][-1].endswith("d")
    plain = scored(
        **{**settings, "data": save_rows(tmp_path / "d", ROWS)}, reading=ReadingSettings("plain")
    )
    ids = tokenizer(ROWS[1]["prompt"] + ROWS[1]["response"], return_tensors="pt")["input_ids"]
    score = model(input_ids=ids).logits.item()
    assert plain[1]["sequence_score"] == pytest.approx(score, abs=1e-4)


def test_without_output_a_table_is_printed(settings, capsys):
    settings["output"] = None
    assert score_tokens(ScoreTokensConfig(**settings)) is None
    printed = capsys.readouterr().out
    assert "·good" in printed
    assert printed.count("whole response") == len(ROWS)


def test_markup_in_tokens_is_printed_as_it_is(settings, tmp_path, capsys):
    settings["data"] = save_rows(tmp_path / "m.jsonl", [{"prompt": "a", "response": "[bold]x[/]"}])
    score_tokens(ScoreTokensConfig(**{**settings, "output": None}))
    assert "[" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"reward_model": "./nowhere"}, ModelError, "there is no folder './nowhere'"),
        ({"reward_model": "no-owner/no-model"}, ModelError, "cannot load a model"),
        ({"data": "./nowhere.jsonl"}, DataError, "nowhere"),
        ({"output": "scores.txt"}, ConfigError, r"ends in \.jsonl"),
        ({"batch_size": 0}, ConfigError, "batch_size is 0"),
        ({"loading": LoadingSettings(pad_token="<nowhere>")}, ModelError, "not in the vocabulary"),
    ],
)
def test_settings_that_cannot_be(settings, changes, error, message):
    with pytest.raises(error, match=message):
        score_tokens(ScoreTokensConfig(**{**settings, **changes}))
    assert not Path(settings["output"]).exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--credit.method", "atention"], "did you mean 'attention'"),
        (["--credit", "attention"], "'credit' is now 'credit.method'"),
        (["--credit_beta", "0.5"], "'credit_beta' is now 'credit.beta'"),
        (["--attention_layer", "0"], "'attention_layer' is now 'credit.layer'"),
        (["--shapley_samples", "4"], "'shapley_samples' is now 'credit.probe.samples'"),
        (["--prompt_column", "question"], "'prompt_column' is now 'columns.prompt'"),
    ],
)
def test_settings_of_the_old_layout_are_told_where_they_are_now(
    settings, capsys, arguments, message
):
    needed = ["--reward_model", settings["reward_model"], "--data", settings["data"]]
    assert main(["score-tokens", *needed, *arguments]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "no rows|empty"),
        ([{"prompt": "a", "response": ""}], "not empty"),
        ([{"prompt": "", "response": "a"}], "not empty"),
        ([*ROWS, {"prompt": "good " * 200, "response": "a"}], "rows 1 to 4.*row 3 has .* at most"),
    ],
)
def test_rows_that_cannot_be_scored(settings, tmp_path, rows, message):
    settings["data"] = save_rows(tmp_path / "bad.jsonl", rows)
    with pytest.raises(DataError, match=message):
        score_tokens(ScoreTokensConfig(**settings, dataset=DatasetSettings(bad_rows="error")))
    assert list((tmp_path / "out").glob("*")) == []


LONG = {"prompt": "good " * 200, "response": " a bad film"}


def test_rows_that_cannot_be_scored_are_left_out_with_the_reason(settings, tmp_path, capsys):
    good = scored(**settings)
    rows = [ROWS[0], LONG, {"prompt": "a"}, *ROWS[1:]]
    settings["data"] = save_rows(tmp_path / "some.jsonl", rows)
    for found, alone in zip(scored(**settings), good, strict=True):
        assert found["response"] == alone["response"]
        assert found["token_scores"] == pytest.approx(alone["token_scores"], abs=1e-4)
    reasons = [json.loads(line) for line in (tmp_path / "out/scores.skipped.jsonl").open()]
    assert sorted((one["row"], "at most" in one["reason"]) for one in reasons) == [
        (2, True),
        (3, False),
    ]
    assert "left out 2 rows" in capsys.readouterr().err
    settings["data"] = save_rows(tmp_path / "data.jsonl", ROWS)
    scored(**settings)
    assert not (tmp_path / "out/scores.skipped.jsonl").exists()


def test_an_example_that_cannot_be_read_ends_no_job(settings, tmp_path, capsys):
    settings["data"] = save_rows(tmp_path / "some.jsonl", [LONG, *ROWS])
    assert len(scored(**settings, max_length=100, show_example=True)) == len(ROWS)
    assert "reads texts as 'plain'" in capsys.readouterr().err


def test_a_job_of_bad_rows_alone_is_an_error(settings, tmp_path):
    settings["data"] = save_rows(tmp_path / "long.jsonl", [LONG])
    with pytest.raises(DataError, match=r"no row of .* can be scored; the first: .*at most"):
        score_tokens(ScoreTokensConfig(**settings))
    assert list((tmp_path / "out").glob("*")) == []


@pytest.mark.parametrize("truncation", ["prompt-start", "response-end"])
@pytest.mark.parametrize("chat", [False, True])
def test_long_rows_are_cut_where_asked(settings, tmp_path, truncation, chat):
    if chat:
        save_reward_model(tmp_path / "model", byte_level(bos=False, chat_template=CHAT_TEMPLATE))
    prompt = "the slow film and the bad plot"
    row = {"prompt": prompt, "response": " a very good film and a bad one"}
    if chat:
        turns = [{"role": "system", "content": "be kind"}, {"role": "user", "content": prompt}]
        row["prompt"] = turns
    settings["data"] = save_rows(tmp_path / "one.jsonl", [row])
    tokenizer = byte_level(bos=not chat, chat_template=CHAT_TEMPLATE if chat else None)
    reading = Reading(tokenizer, "chat" if chat else "plain")
    whole = reading.encoded([row["prompt"]], [row["response"]])
    length = int(whole.attention_mask.sum()) - 4
    (found,) = scored(**settings, max_length=length, truncation=truncation)
    if truncation == "response-end":
        assert found["prompt"] == row["prompt"]
        assert row["response"].startswith(found["response"])
        assert found["response"] != row["response"]
    else:
        assert found["response"] == row["response"]
        content = found["prompt"][-1]["content"] if chat else found["prompt"]
        assert prompt.endswith(content)
        assert content != prompt
        assert not chat or found["prompt"][0] == turns[0]
    settings["data"] = save_rows(tmp_path / "cut.jsonl", [found])
    assert scored(**settings) == [found]  # what is shown is what was scored
    settings["data"] = save_rows(tmp_path / "one.jsonl", [row])
    with pytest.raises(DataError, match=f"longer than {length} tokens"):
        score_tokens(ScoreTokensConfig(**settings, max_length=length))


def test_rows_may_be_streamed(settings, tmp_path):
    streamed = DatasetSettings(streaming=True)
    assert scored(**settings, dataset=streamed, batch_size=1) == scored(**settings, batch_size=1)


def test_more_than_two_outputs(settings, tmp_path):
    save_reward_model(tmp_path / "model", byte_level(), num_labels=3)
    with pytest.raises(ModelError, match="3 outputs"):
        score_tokens(ScoreTokensConfig(**settings))


def test_two_outputs_give_their_difference(settings, tmp_path):
    model = save_reward_model(tmp_path / "model", byte_level(), num_labels=2)
    row = scored(**settings)[1]
    ids = byte_level()(row["prompt"] + row["response"], return_tensors="pt")["input_ids"]
    logits = model(input_ids=ids).logits[0]
    assert row["sequence_score"] == pytest.approx((logits[1] - logits[0]).item(), abs=1e-4)


def test_a_pad_token_can_be_named(settings, tmp_path):
    """Which one it is changes no score, the end of sequence included."""
    usual = scored(**settings)
    save_reward_model(tmp_path / "model", byte_level(pad_token=None))
    with pytest.raises(ModelError, match="no pad token"):
        loaded_reward_model(settings["reward_model"])
    with pytest.raises(ModelError, match="no pad token"):
        score_tokens(ScoreTokensConfig(**settings))
    for token in ("<unk>", "<eos>"):
        for one, other in zip(
            usual, scored(**settings, loading=LoadingSettings(pad_token=token)), strict=True
        ):
            assert one["token_scores"] == pytest.approx(other["token_scores"], abs=1e-5)


def test_a_tokenizer_without_offsets(settings, monkeypatch):
    model, _ = loaded_model(settings)
    monkeypatch.setattr(
        "tokencredit.scorers.texts.load_reward_model",
        lambda *_, **__: (model, SlowTokenizer()),
    )
    with pytest.raises(ModelError, match="cannot give character offsets"):
        score_tokens(ScoreTokensConfig(**settings))


def test_scores_that_are_not_numbers_leave_no_file(settings, tmp_path):
    model = tiny_model("gpt2", vocab_size=len(byte_level()), max_position_embeddings=128)
    model.score.weight.data.fill_(math.nan)
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(NumericError):
        score_tokens(ScoreTokensConfig(**settings))
    assert list((tmp_path / "out").glob("*")) == []


def test_an_old_file_stays_whole_until_the_new_one_is(settings, tmp_path):
    scored(**settings)
    before = (tmp_path / "out" / "scores.jsonl").read_text()
    too_long = {"prompt": "a b " * 99, "response": "a"}
    settings["data"] = save_rows(tmp_path / "b.jsonl", [too_long])
    with pytest.raises(DataError):
        score_tokens(ScoreTokensConfig(**settings))
    assert (tmp_path / "out" / "scores.jsonl").read_text() == before


def test_an_output_that_cannot_be_written(settings, tmp_path):
    (tmp_path / "file").write_text("")
    settings["output"] = str(tmp_path / "file" / "scores.jsonl")
    with pytest.raises(RunFolderError, match="cannot be written"):
        score_tokens(ScoreTokensConfig(**settings))


def test_several_rewards_are_combined_and_named(settings, tmp_path):
    torch.manual_seed(7)
    save_reward_model(tmp_path / "other", byte_level(merges=10))
    first, other = settings.pop("reward_model"), str(tmp_path / "other")
    rewards = (RewardSource(first), RewardSource(other, name="second", weight=-0.5))
    rows = scored(**settings, rewards=rewards)
    alone = [scored(**settings, reward_model=model) for model in (first, other)]
    for row, one, two in zip(rows, *alone, strict=True):
        own, its = one["sequence_score"], two["sequence_score"]
        assert row["source_scores"] == {
            "model": pytest.approx(own, abs=1e-5),
            "second": pytest.approx(its, abs=1e-5),
        }
        assert row["sequence_score"] == pytest.approx(own - 0.5 * its, abs=1e-5)
        assert row["tokens"] == one["tokens"]
        total = sum(one["token_scores"]) - 0.5 * sum(two["token_scores"])
        assert sum(row["token_scores"]) == pytest.approx(total, abs=1e-4)
        assert "source_scores" not in one


@pytest.mark.parametrize("merges", [10, 30])  # other tokens than the first model's, and the same
@pytest.mark.parametrize("credit", ["leave-one-out", "prefix-difference", "terminal"])
def test_all_sources_know_which_answers_have_ended(tmp_path, settings, credit, merges):
    torch.manual_seed(7)
    tokenizers = [byte_level(chat_template=CHAT_TEMPLATE, merges=n) for n in (30, merges)]
    for name, tokenizer in zip(("first", "other"), tokenizers, strict=True):
        save_reward_model(tmp_path / name, tokenizer)
    settings.pop("reward_model")
    settings["data"] = save_rows(
        tmp_path / "chats.jsonl",
        [{**row, "ended": ended} for row in ROWS for ended in (True, False)],
    )
    settings["credit"] = CreditSettings(credit)
    first, other = (str(tmp_path / name) for name in ("first", "other"))
    rewards = (RewardSource(first, name="one"), RewardSource(other, name="two"))
    rows = scored(**settings, rewards=rewards)
    alone = [scored(**settings, reward_model=model) for model in (first, other)]
    for row, one, two in zip(rows, *alone, strict=True):
        expected = {"one": one["sequence_score"], "two": two["sequence_score"]}
        assert row["source_scores"] == pytest.approx(expected, abs=1e-5)
        total = sum(one["token_scores"]) + sum(two["token_scores"])
        if credit != "leave-one-out":  # a sum of differences by other tokens is another sum
            assert sum(row["token_scores"]) == pytest.approx(total, abs=1e-4)
        elif merges == 30:
            both = zip(one["token_scores"], two["token_scores"], strict=True)
            assert row["token_scores"] == pytest.approx([a + b for a, b in both], abs=1e-4)
    apart = [row["source_scores"]["two"] for row in rows]
    assert all(abs(ended - cut) > 1e-3 for ended, cut in zip(apart[::2], apart[1::2], strict=True))


def test_a_list_or_one_model(settings):
    with pytest.raises(ConfigError, match="expected one reward model, or a list of rewards"):
        ScoreTokensConfig(**settings, rewards=(RewardSource("x"),))
