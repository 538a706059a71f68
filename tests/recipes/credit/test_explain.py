import json
import math
from itertools import pairwise

import pytest
import torch
from credit_names import SCORES
from saved_models import save_reward_model
from tiny_models import tiny_model
from tiny_tokenizers import CHAT_TEMPLATE, byte_level, word_level, wordpiece

from tokencredit.errors import ConfigError, DataError, ModelError, NumericError, RunFolderError
from tokencredit.evaluation.token_display import text_pieces
from tokencredit.recipes.credit.explain import ExplainConfig, explain, explanation
from tokencredit.recipes.settings import LoadingSettings
from tokencredit.scorers.source_settings import RewardSource

RESPONSE = " a good café 日本 🙂 <b>plot</b>"


@pytest.fixture
def settings(tmp_path):
    save_reward_model(tmp_path / "model", byte_level(merges=20))
    return {
        "reward_model": str(tmp_path / "model"),
        "prompt": "the film is",
        "response": RESPONSE,
        "methods": SCORES,
    }


def test_pieces_are_the_text_and_rows_sum_to_the_score(settings):
    shown = explanation(ExplainConfig(**settings))
    assert "".join(shown.tokens) == RESPONSE
    for method, scores in shown.scores.items():
        assert len(scores) == len(shown.tokens)
        if method != "prefix-difference":
            assert sum(scores) == pytest.approx(shown.sequence_score, abs=1e-4)


def test_tokens_of_one_character_are_one_piece():
    spans = [(0, 2), (2, 3), (2, 3), (3, 5), (4, 6), (6, 6), (6, 7)]
    pieces, groups = text_pieces("abcdefg", spans, ["?"] * 5 + ["<eos>", "?"])
    assert groups == [[0], [1, 2], [3, 4], [5], [6]]
    assert pieces == ["ab", "c", "def", "<eos>", "g"]
    ends = [spans[group[-1]][1] for group in groups]
    assert all(a <= b for a, b in pairwise(ends))


def test_the_terminal_shows_every_method(settings, capsys):
    assert explain(ExplainConfig(**settings)) is None
    printed = capsys.readouterr().out
    for name in SCORES:
        assert f"{name}, sum" in printed
    assert printed.count("café 日本 🙂 <b>plot</b>") == len(SCORES)


def test_html_is_one_page_with_escaped_text(settings, tmp_path):
    settings["output"] = str(tmp_path / "new" / "heat.html")
    settings["prompt"] = "<script>alert(1)</script>"
    page = explain(ExplainConfig(**settings)).read_text()
    assert page.startswith("<!DOCTYPE html>")
    assert "<script" not in page
    assert "<b>" not in page
    for name in SCORES:
        assert name in page


def test_png_is_an_image(settings, tmp_path):
    path = explain(ExplainConfig(**settings, output=str(tmp_path / "heat.png")))
    assert path.read_bytes().startswith(b"\x89PNG")


def test_a_text_alone_stands_behind_the_first_token(settings):
    shown = explanation(ExplainConfig(**{**settings, "prompt": ""}))
    assert "".join(shown.tokens) == RESPONSE


def test_the_chat_template_of_the_reward_model_is_used(settings, tmp_path):
    tokenizer = byte_level(chat_template=CHAT_TEMPLATE)
    model = save_reward_model(tmp_path / "model", tokenizer)
    messages = [
        {"role": "user", "content": "the film is"},
        {"role": "assistant", "content": RESPONSE},
    ]
    ids = tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=False)
    shown = explanation(ExplainConfig(**settings))
    assert shown.sequence_score == pytest.approx(model(input_ids=ids).logits.item(), abs=1e-4)
    assert "".join(shown.tokens) == RESPONSE


def test_encoders_can_be_explained_by_attention(settings, tmp_path):
    tokenizer = wordpiece()
    model = save_reward_model(tmp_path / "model", tokenizer, "bert")
    with pytest.raises(ModelError, match="needs the score of every prefix"):
        explain(ExplainConfig(**settings))
    shown = explanation(ExplainConfig(**{**settings, "methods": ("attention",)}))
    ids = tokenizer("the film is", RESPONSE, return_tensors="pt")["input_ids"]  # a pair
    expected = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.item()
    assert shown.sequence_score == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"reward_model": "./nowhere"}, ModelError, "there is no folder"),
        ({"response": ""}, ConfigError, "there is no response"),
        ({"response": "good " * 200}, DataError, "at most 128"),
        ({"output": "heat.gif"}, ConfigError, r"\.html or \.png"),
        ({"methods": ()}, ConfigError, "methods is empty"),
        ({"loading": LoadingSettings(pad_token="<nowhere>")}, ModelError, "not in the vocabulary"),
    ],
)
def test_settings_that_cannot_be(settings, changes, error, message):
    with pytest.raises(error, match=message):
        explain(ExplainConfig(**{**settings, **changes}))


def test_an_unknown_method(settings):
    with pytest.raises(ConfigError, match="did you mean 'uniform'"):
        ExplainConfig(**{**settings, "methods": ("unifrom",)})


def test_a_text_without_prompt_and_without_first_token(settings, tmp_path):
    save_reward_model(tmp_path / "model", no_first_token())
    with pytest.raises(ModelError, match="no token that begins a sequence"):
        explain(ExplainConfig(**{**settings, "prompt": ""}))


def no_first_token():
    tokenizer = word_level()
    tokenizer.bos_token = None
    return tokenizer


def test_scores_that_are_not_numbers_leave_no_file(settings, tmp_path):
    model = tiny_model("gpt2", vocab_size=len(byte_level(merges=20)), max_position_embeddings=128)
    model.score.weight.data.fill_(math.nan)
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(NumericError):
        explain(ExplainConfig(**settings, output=str(tmp_path / "heat.html")))
    assert not (tmp_path / "heat.html").exists()


@pytest.mark.parametrize("name", ["heat.html", "heat.png"])
def test_an_output_that_cannot_be_written(settings, tmp_path, name):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="cannot be written"):
        explain(ExplainConfig(**settings, output=str(tmp_path / "file" / name)))


def test_several_rewards_are_one_heat_map(settings, tmp_path, capsys):
    save_reward_model(tmp_path / "other", byte_level())
    rewards = (RewardSource(settings.pop("reward_model")), RewardSource(str(tmp_path / "other")))
    config = ExplainConfig(**{**settings, "methods": ("uniform", "terminal")}, rewards=rewards)
    shown = explanation(config)
    for scores in shown.scores.values():
        assert sum(scores) == pytest.approx(shown.sequence_score, abs=1e-4)
    with pytest.raises(ModelError, match="needs the attention"):
        explain(ExplainConfig(**{**settings, "methods": ("attention",)}, rewards=rewards))


CHAT = [
    {"role": "system", "content": "be kind"},
    {"role": "user", "content": [{"type": "text", "text": "rate this film"}]},
]


@pytest.mark.parametrize("in_file", [False, True])
def test_a_conversation_is_explained(settings, tmp_path, in_file):
    tokenizer = byte_level(bos=False, chat_template=CHAT_TEMPLATE)
    model = save_reward_model(tmp_path / "model", tokenizer)
    whole = json.dumps([*CHAT, {"role": "assistant", "content": "a good film"}])
    (tmp_path / "chat.json").write_text(whole, encoding="utf-8-sig")
    given = str(tmp_path / "chat.json") if in_file else whole
    settings |= {"prompt": "", "response": "", "messages": given, "methods": ("terminal",)}
    shown = explanation(ExplainConfig(**settings))
    turns = [CHAT[0], {"role": "user", "content": "rate this film"}]
    turns.append({"role": "assistant", "content": "a good film"})
    ids = tokenizer.apply_chat_template(turns, return_dict=False, return_tensors="pt")
    with torch.no_grad():
        right = model(input_ids=ids).logits.item()
    assert shown.sequence_score == pytest.approx(right, abs=1e-4)
    assert "".join(shown.tokens) == "a good film"
    settings |= {"response": "a good film", "messages": json.dumps(CHAT)}
    again = explanation(ExplainConfig(**settings))
    assert again.sequence_score == pytest.approx(right, abs=1e-4)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"messages": "[", "prompt": ""}, DataError, "cannot be read"),
        ({"messages": "absent.json", "prompt": ""}, DataError, "cannot be read"),
        ({"messages": "[3]", "prompt": ""}, DataError, "expected messages with 'role'"),
        (
            {"messages": json.dumps(CHAT), "prompt": "", "response": ""},
            DataError,
            "the assistant's",
        ),
        ({"messages": "[]"}, ConfigError, "both given"),
        ({"response": ""}, ConfigError, "there is no response"),
    ],
)
def test_conversations_that_cannot_be_explained(settings, given, error, message):
    with pytest.raises(error, match=message):
        explain(ExplainConfig(**settings | given))
