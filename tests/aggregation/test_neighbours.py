"""Scores joined with those of texts that are like theirs."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import aggregation as reference

from tokencredit.aggregation.neighbours import fused_scores, near_texts
from tokencredit.errors import ConfigError, ShapeError

seeds = st.integers(0, 10**6)


def drawn(seed, texts=3, neighbours=6):
    torch.manual_seed(seed)
    return torch.randn(texts), torch.randn(neighbours), 2 * torch.rand(texts, neighbours) - 1


def test_literal():
    similarities = torch.tensor([[0.95, 1.0, 0.9, 0.2], [0.1, 0.89, -1.0, 0.0]])
    assert near_texts(similarities, most=2).tolist() == [
        [True, True, False, False],
        [False] * 4,
    ]
    found = fused_scores(torch.tensor([1.0, 5.0]), torch.tensor([2.0, 4.0, 9.0, 99.0]),
                         similarities, most=2)  # fmt: skip
    assert found.tolist() == pytest.approx([(1 + 1.9 + 4) / 2.95, 5.0])


@given(seeds, st.sampled_from([0.2, 0.9]), st.integers(1, 7))
def test_against_the_reference(seed, least, most):
    own, others, similarities = drawn(seed)
    found = fused_scores(own, others, similarities, least=least, most=most)
    for row in range(3):
        expected = reference.fused(
            own[row].item(), others.tolist(), similarities[row].tolist(), least, most
        )
        assert found[row].item() == pytest.approx(expected, abs=1e-5)


@given(seeds)
def test_it_lies_between_what_is_joined_and_keeps_constants(seed):
    own, others, similarities = drawn(seed)
    found = fused_scores(own, others, similarities, least=0.1)
    assert (found <= torch.maximum(own, others.max()) + 1e-5).all()
    assert (found >= torch.minimum(own, others.min()) - 1e-5).all()
    same = fused_scores(torch.full((3,), 2.5), torch.full((6,), 2.5), similarities, least=0.1)
    torch.testing.assert_close(same, torch.full((3,), 2.5))


@given(seeds)
def test_without_neighbours_it_is_the_plain_score(seed):
    own, others, similarities = drawn(seed)
    assert torch.equal(fused_scores(own, others, similarities.clamp(max=0.5)), own)
    assert torch.equal(fused_scores(own, others[:0], similarities[:, :0]), own)
    never = torch.full_like(similarities, -torch.inf)
    assert torch.equal(fused_scores(own, others, never), own)


@given(seeds)
def test_columns_are_fused_one_by_one(seed):
    own, others, similarities = drawn(seed)
    table, known = torch.stack([own, -own], -1), torch.stack([others, 2 * others], -1)
    found = fused_scores(table, known, similarities, least=0.1)
    for column in range(2):
        torch.testing.assert_close(
            found[:, column],
            fused_scores(table[:, column], known[:, column], similarities, least=0.1),
        )


@pytest.mark.usefixtures("unchecked")
def test_what_cannot_be():
    own, others, similarities = drawn(0)
    for wrong in ({"least": 0.0}, {"least": 1.5}, {"most": 0}):
        with pytest.raises(ConfigError, match="expected a cosine"):
            fused_scores(own, others, similarities, **wrong)
    with pytest.raises(ShapeError, match="a row of each text"):
        fused_scores(own, others, similarities.T)
