import json

import pytest
import torch
from credit_names import ALONE
from saved_models import save_reward_model
from tiny_tokenizers import byte_level

from tokencredit.credit.settings import CreditSettings, ProbeSettings
from tokencredit.errors import ConfigError
from tokencredit.recipes.credit.explain import ExplainConfig, explain
from tokencredit.recipes.credit.score_tokens import ScoreTokensConfig, score_tokens
from tokencredit.reward_model.hf_loading import load_reward_model

SHAPLEY = ("shapley", "exact-shapley")
PROMPT, RESPONSE = "the film is", " a good plot"


@pytest.fixture
def settings(tmp_path):
    save_reward_model(tmp_path / "model", byte_level())
    rows = [{"prompt": PROMPT, "response": RESPONSE}, {"prompt": "a", "response": " bad film"}]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "reward_model": str(tmp_path / "model"),
        "data": str(data),
        "output": str(tmp_path / "scores.jsonl"),
        "progress": False,
    }


def scored(settings, *, batch_size=16, probe=None, **credit):
    chosen = CreditSettings(**credit, probe=ProbeSettings(**(probe or {})))
    path = score_tokens(ScoreTokensConfig(**settings, batch_size=batch_size, credit=chosen))
    return [json.loads(line) for line in path.open()]


def model_and_ids(settings):
    model, tokenizer = load_reward_model(settings["reward_model"])
    ids = tokenizer(PROMPT + RESPONSE)["input_ids"]
    return model, ids, len(tokenizer(PROMPT)["input_ids"])


def score(model, ids):
    return model(input_ids=torch.tensor([ids])).logits.item()


def test_leave_one_out_is_the_loss_of_each_token(settings):
    model, ids, start = model_and_ids(settings)
    whole = score(model, ids)
    lost = [whole - score(model, ids[:t] + ids[t + 1 :]) for t in range(start, len(ids))]
    paid = scored(settings, method="leave-one-out")[0]["token_scores"]
    assert paid == pytest.approx(lost, abs=1e-4)


@pytest.mark.parametrize("credit", ["shapley", "integrated-gradients"])
def test_what_is_shared_is_what_the_response_changed(settings, credit):
    """Against the response without tokens, or with the mean embedding in the place of each."""
    model, ids, start = model_and_ids(settings)
    row = scored(settings, method=credit, probe={"steps": 128})[0]
    if credit == "shapley":
        before = score(model, ids[:start])
    else:
        table = model.get_input_embeddings().weight
        embedded = table[torch.tensor(ids)].clone()
        embedded[start:] = table.mean(0)
        before = model(inputs_embeds=embedded[None]).logits.item()
    assert sum(row["token_scores"]) == pytest.approx(score(model, ids) - before, abs=1e-3)


def test_windows_are_read_without_the_rest(settings):
    model, ids, start = model_and_ids(settings)
    nothing = score(model, ids[:start])
    said = [
        [
            score(model, ids[:start] + ids[first:end]) - nothing
            for first in range(start, len(ids))
            for end in (first + 1, first + 2)
            if end <= len(ids) and first <= t < end
        ]
        for t in range(start, len(ids))
    ]
    paid = scored(settings, method="window", probe={"width": 2})[0]["token_scores"]
    assert paid == pytest.approx([sum(row) / len(row) for row in said], abs=1e-4)


def test_the_gradient_is_taken_at_the_embeddings(settings):
    model, ids, start = model_and_ids(settings)
    embedded = model.get_input_embeddings().weight[torch.tensor([ids])].detach().requires_grad_()
    model(inputs_embeds=embedded).logits.sum().backward()
    expected = (embedded * embedded.grad).sum(-1)[0, start:].tolist()
    paid = scored(settings, method="gradient-times-input")[0]["token_scores"]
    assert paid == pytest.approx(expected, abs=1e-4)


def test_smoothing_by_nothing_is_the_plain_difference(settings):
    plain = scored(settings)[0]["token_scores"]
    none = scored(settings, method="smoothed-prefix-difference", decay=0.0)
    some = scored(settings, method="smoothed-prefix-difference", decay=0.5)
    assert none[0]["token_scores"] == pytest.approx(plain, abs=1e-5)
    assert some[0]["token_scores"] != pytest.approx(plain, abs=1e-3)
    assert sum(some[0]["token_scores"]) == pytest.approx(sum(plain), abs=1e-4)


@pytest.mark.parametrize("credit", [name for name in ALONE if name not in SHAPLEY])
def test_the_batch_changes_nothing(settings, credit):
    together, alone = scored(settings, method=credit), scored(settings, method=credit, batch_size=1)
    for first, second in zip(together, alone, strict=True):
        assert first["token_scores"] == pytest.approx(second["token_scores"], abs=1e-4)


def test_explain_draws_all_of_them(settings, capsys):
    explain(
        ExplainConfig(
            reward_model=settings["reward_model"],
            prompt=PROMPT,
            response=RESPONSE,
            methods=ALONE,
        )
    )
    printed = capsys.readouterr().out
    assert all(f"{name}, sum" in printed for name in ALONE)


def test_a_wrong_name_is_told_the_right_one(settings):
    with pytest.raises(ConfigError, match="did you mean 'leave-one-out'"):
        CreditSettings("leave-one-in")
    with pytest.raises(ConfigError, match="credit method is 'shaply'"):
        ExplainConfig(reward_model="m", response="r", methods=("shaply",))


def test_numbers_that_do_not_fit_are_refused_without_a_file(settings, tmp_path):
    for name, value in (("samples", 3), ("width", 0), ("steps", 0)):
        with pytest.raises(ConfigError, match=f"{name} is {value}"):
            scored(settings, probe={name: value})
    assert not (tmp_path / "scores.jsonl").exists()
