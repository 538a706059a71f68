import math
from dataclasses import fields

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import votes as reference

from tokencredit.errors import ConfigError, DataError
from tokencredit.preference.votes import Votes, votes_on_pairs

SHARES = st.sampled_from([0.0, 0.1, 0.25, 0.45])


def test_votes_literal():
    """Means 1, -2 and 0: the second is exchanged, the third left out."""
    leads = torch.tensor([[3.0, -2.0, 0.0], [-1.0, -2.0, 0.0]])
    votes = votes_on_pairs(leads, flip=1 / 3, drop=1 / 3, soft_label="votes")
    assert votes.mean.tolist() == [1.0, 2.0, 0.0]
    assert votes.std.tolist() == [2.0, 0.0, 0.0]
    assert votes.margin.tolist() == [1.0, 2.0, 0.0]
    assert votes.preferred.tolist() == [0.5, 1.0, 0.5]
    assert votes.flipped.tolist() == [False, True, False]
    assert votes.dropped.tolist() == [False, False, True]


def test_without_an_exchange_margins_may_be_negative():
    votes = votes_on_pairs(torch.tensor([[-1.0, 2.0]]))
    assert votes.margin.tolist() == votes.mean.tolist() == [-1.0, 2.0]
    assert votes.preferred[0].item() == pytest.approx(1 / (1 + math.e))


def test_a_pair_exchanged_against_the_votes_has_a_margin_above_0():
    votes = votes_on_pairs(torch.tensor([[1.0, 2.0]]), flip=0.5)
    assert votes.mean.tolist() == [-1.0, 2.0]
    assert votes.margin.tolist() == [1.0, 2.0]


@given(
    st.integers(1, 4), st.integers(1, 9), st.integers(0, 10**6), SHARES, SHARES,
    st.sampled_from(["probabilities", "votes"]),
)  # fmt: skip
def test_votes_against_the_reference(models, pairs, seed, flip, drop, soft_label):
    generator = torch.Generator().manual_seed(seed)
    leads = 2 * torch.randn(models, pairs, generator=generator, dtype=torch.float64)
    found = votes_on_pairs(leads, flip=flip, drop=drop, soft_label=soft_label)
    expected = reference.votes(leads.tolist(), flip, drop, soft_label)
    for one in fields(Votes):
        column = getattr(found, one.name).tolist()
        assert column == pytest.approx([row[one.name] for row in expected], rel=1e-6, abs=1e-9)


@given(st.integers(1, 4), st.integers(2, 9), st.integers(0, 10**6))
def test_properties_of_votes(models, pairs, seed):
    leads = torch.randn(models, pairs, generator=torch.Generator().manual_seed(seed))
    found = votes_on_pairs(leads)
    alone = votes_on_pairs(leads[:1])
    assert alone.std.eq(0).all()  # one model agrees with itself
    assert torch.equal(alone.mean, leads[0])
    torch.testing.assert_close(votes_on_pairs(leads.repeat(2, 1)).std, found.std)
    turned = votes_on_pairs(-leads)
    torch.testing.assert_close(turned.preferred, 1 - found.preferred)
    torch.testing.assert_close(turned.mean, -found.mean)
    order = torch.randperm(pairs)
    torch.testing.assert_close(votes_on_pairs(leads[:, order]).mean, found.mean[order])


@pytest.mark.parametrize("shares", [(-0.1, 0.0), (1.0, 0.0), (0.0, 1.0), (0.6, 0.4), (math.nan, 0)])
def test_shares_that_are_none(shares):
    with pytest.raises(ConfigError, match="expected shares of the pairs from 0 to below 1"):
        votes_on_pairs(torch.ones(1, 2), flip=shares[0], drop=float(shares[1]))


@pytest.mark.parametrize("leads", [torch.ones(0, 2), torch.tensor([[1.0, math.nan]])])
def test_leads_that_say_nothing(leads):
    with pytest.raises(DataError, match="expected at least one model, and finite leads"):
        votes_on_pairs(leads)


def test_an_unknown_soft_label(unchecked):
    with pytest.raises(ConfigError, match=r"soft_label is 'vote'.*did you mean 'votes'"):
        votes_on_pairs(torch.ones(1, 2), soft_label="vote")
