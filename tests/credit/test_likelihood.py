import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import log_ratio as reference
from tiny_models import tiny_ids, tiny_model
from transformers import AutoModelForCausalLM

from tokencredit.batch import ResponseBatch
from tokencredit.credit.token_judges import likelihood_credit
from tokencredit.errors import ConfigError, NumericError, ShapeError
from tokencredit.logprobs import token_logprobs
from tokencredit.models.hf_logprobs import response_logprobs, response_statistics

NAN, INF = math.nan, math.inf


def test_literal():
    """Agreement, agreement, divergence, agreement again, divergence, padding."""
    own = torch.tensor([[-0.1, -0.2, -5.0, -0.1, -2.0, NAN]])
    likeliest = torch.tensor([[-0.1, -0.2, -0.3, -0.1, -0.2, NAN]])
    mask = torch.tensor([[True] * 5 + [False]])
    token_scores = likelihood_credit(
        own, likeliest, mask, agreement_score=0.5, divergence_score=-2.0
    )
    assert token_scores.tolist() == [[0.5, 0.5, -2.0, 0.0, -2.0, 0.0]]


def test_what_the_mask_hides_is_no_divergence():
    own, likeliest = torch.tensor([[-0.1, -9.0, -0.1]]), torch.full((1, 3), -0.1)
    mask = torch.tensor([[True, False, True]])
    assert likelihood_credit(own, likeliest, mask).tolist() == [[1.0, 0.0, 1.0]]


def test_the_margin_forgives_tokens_that_are_nearly_as_likely():
    own, likeliest = torch.tensor([[-0.7, -2.0]]), torch.tensor([[-0.6, -0.6]])
    mask = torch.tensor([[True, True]])
    assert likelihood_credit(own, likeliest, mask).tolist() == [[-1.0, -1.0]]
    assert likelihood_credit(own, likeliest, mask, margin=0.2).tolist() == [[1.0, -1.0]]


@given(st.integers(0, 10**6))
def test_against_the_reference(seed):
    torch.manual_seed(seed)
    likeliest, mask = -torch.rand(4, 6, dtype=torch.float64), torch.rand(4, 6) < 0.7
    own = torch.where(torch.rand(4, 6) < 0.5, likeliest, likeliest - torch.rand(4, 6) - 0.01)
    expected = [
        reference.likelihood(*row, 0.5, -1.5)
        for row in zip(own.tolist(), likeliest.tolist(), mask.tolist(), strict=True)
    ]
    token_scores = likelihood_credit(
        own, likeliest, mask, agreement_score=0.5, divergence_score=-1.5
    )
    torch.testing.assert_close(token_scores, torch.tensor(expected))


def test_without_divergence_all_are_paid_and_without_agreement_all_are_charged():
    own, mask = -torch.rand(3, 4), torch.rand(3, 4) < 0.7
    assert torch.equal(likelihood_credit(own, own, mask), mask.float())
    assert torch.equal(likelihood_credit(own - 1.0, own, mask), -mask.float())


def test_a_language_model_agrees_with_what_it_writes_itself_until_a_token_is_changed():
    model = tiny_model("llama", auto_class=AutoModelForCausalLM)
    prompt, ones = tiny_ids(1, 4), torch.ones(1, 6, dtype=torch.long)
    written = model.generate(
        prompt, attention_mask=ones[:, :4], max_new_tokens=6, min_new_tokens=6, do_sample=False
    )[:, 4:]

    def scores(response):
        batch = ResponseBatch(prompt, ones[:, :4].bool(), response, ones.bool())
        own = response_logprobs(model, batch)
        likeliest = response_statistics(
            model, batch, lambda logits, _: token_logprobs(logits, logits.argmax(-1))
        )
        return likelihood_credit(own, likeliest, batch.response_mask)[0].tolist()

    assert scores(written) == [1.0] * 6
    changed = written.clone()
    changed[0, 3] = (changed[0, 3] + 1) % 40
    assert scores(changed)[:4] == [1.0, 1.0, 1.0, -1.0]
    assert set(scores(changed)[4:]) <= {0.0, -1.0}


@pytest.mark.parametrize(
    "setting", [{"agreement_score": -1.0}, {"divergence_score": 1.0}, {"margin": -0.1}]
)
def test_signs_are_checked(setting):
    zeros = torch.zeros(1, 2)
    (named,) = (f"{name} (is )?{value}" for name, value in setting.items())
    with pytest.raises(ConfigError, match=named):
        likelihood_credit(zeros, zeros, zeros.bool(), **setting)


@pytest.mark.usefixtures("unchecked")
def test_shapes_are_not_broadcast():
    mask, wrong, good = torch.ones(2, 3).bool(), torch.zeros(1, 3), torch.zeros(2, 3)
    for pair in [(wrong, good), (good, wrong)]:
        with pytest.raises(ShapeError, match="one number per response token"):
            likelihood_credit(*pair, mask)


@pytest.mark.parametrize(
    ("own", "likeliest"), [(NAN, -1.0), (-1.0, NAN), (-INF, -1.0), (-1.0, -2.0)]
)
def test_log_probs_are_finite_and_in_this_order(own, likeliest):
    with pytest.raises(NumericError, match="likelier than the likeliest"):
        likelihood_credit(
            torch.tensor([[own]]), torch.tensor([[likeliest]]), torch.tensor([[True]])
        )
