import pytest
import torch
from tiny_models import tiny_model
from transformers import AutoModelForSequenceClassification

from tokencredit.errors import TokenCreditWarning
from tokencredit.recipes.reward_model.examples import JudgedRow, judgements_of, reward_batch
from tokencredit.recipes.reward_model.shared_prefixes import (
    shared_batch,
    shared_scores,
    shares_prefixes,
)
from tokencredit.reward_model.objectives import LossSettings, objective_row
from tokencredit.scorers.hf_fractions import counted_scores
from tokencredit.text.hf_token_rows import EncodedText, read_every_token, read_last_token

PAD = 0


def text(prompt: list[int], response: list[int]) -> EncodedText:
    return EncodedText(prompt + response, [False] * len(prompt) + [True] * len(response))


PAIRS = [
    JudgedRow((text([2, 5, 6, 7], [8, 9, 10]), text([2, 5, 6, 7], [8, 11])), 0.0),
    JudgedRow((text([2, 9], [12, 13]), text([2, 9], [12, 13, 14, 15, 16])), 0.5, 2.0),
    JudgedRow((text([3], [5]), text([4], [6, 7])), 0.0),
]


def loss_and_gradients(model, batch, scores_of, names):
    model.zero_grad()
    scores = scores_of(model, **{name: batch[name] for name in names})
    row = objective_row("bradley-terry", "every", LossSettings())
    loss = row.loss(judgements_of(scores, batch), LossSettings())
    loss.backward()
    return loss.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("llama", {}),
        ("gpt2", {}),
        ("mistral", {"sliding_window": 3}),
        ("gemma3_text", {"sliding_window": 3}),
    ],
)
@pytest.mark.parametrize("read_at", [read_last_token, read_every_token])
def test_loss_and_gradients_are_those_of_two_rows(architecture, options, read_at, attention):
    model = tiny_model(
        architecture, auto_class=AutoModelForSequenceClassification, num_labels=1, **options
    ).train()
    model.config.pad_token_id = PAD
    model.set_attn_implementation(attention)
    assert shares_prefixes(model, PAIRS[0], pad_id=PAD, read_at=read_at)
    assert model.training
    together = shared_batch(PAIRS, pad_id=PAD, read_at=read_at)
    assert together["input_ids"].shape == (3, 8)
    apart = reward_batch(PAIRS, pad_id=PAD, read_at=read_at)
    names = ("input_ids", "position_ids", "branches", "columns", "counted")
    loss, gradients = loss_and_gradients(model, together, shared_scores, names)
    names = ("input_ids", "attention_mask", "counted")
    expected, others = loss_and_gradients(model, apart, counted_scores, names)
    torch.testing.assert_close(loss, expected)
    for gradient, other in zip(gradients, others, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-4, atol=1e-6)


def test_no_side_sees_the_other():
    model = tiny_model("llama").eval()
    read = {"pad_id": PAD, "read_at": read_every_token}
    changed = JudgedRow((PAIRS[0].responses[0], text([2, 5, 6, 7], [30, 31])), 0.0)
    names = ("input_ids", "position_ids", "branches", "columns", "counted")
    scores = [
        shared_scores(model, **{name: batch[name] for name in names})
        for batch in (shared_batch([one], **read) for one in (PAIRS[0], changed))
    ]
    torch.testing.assert_close(scores[0][0], scores[1][0], rtol=1e-5, atol=1e-6)
    assert (scores[0][1, :2] - scores[1][1, :2]).abs().min() > 1e-4


def test_models_that_read_another_way_keep_two_rows(monkeypatch):
    alone = JudgedRow(PAIRS[0].responses[:1], 1.0)
    read = {"pad_id": PAD, "read_at": read_last_token}
    llama = tiny_model("llama").eval()
    assert not shares_prefixes(llama, alone, **read)
    assert not shares_prefixes(tiny_model("bert"), PAIRS[0], **read)
    module = "tokencredit.recipes.reward_model.shared_prefixes"
    monkeypatch.setattr(f"{module}.counted_scores", lambda *_, **__: torch.full((2, 1), 9.0))
    with pytest.warns(TokenCreditWarning, match="in one row other scores than in two"):
        assert not shares_prefixes(llama, PAIRS[0], **read)
