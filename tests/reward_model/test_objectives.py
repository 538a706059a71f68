import math

import pytest
import torch

from tokencredit.errors import ConfigError
from tokencredit.reward_model.losses.length_weighted import (
    length_weighted_classification_loss,
    length_weighted_regression_loss,
)
from tokencredit.reward_model.losses.pairs import (
    bradley_terry_loss,
    prefix_bradley_terry_loss,
    segment_bradley_terry_loss,
)
from tokencredit.reward_model.losses.rankings import prefix_plackett_luce_loss
from tokencredit.reward_model.losses.several_ratings import prefix_multi_objective_regression_loss
from tokencredit.reward_model.losses.targets import (
    prefix_classification_loss,
    prefix_regression_loss,
)
from tokencredit.reward_model.losses.values import q_classification_loss, q_value_loss
from tokencredit.reward_model.objectives import (
    OBJECTIVES,
    Judgements,
    LossSettings,
    objective_row,
)


def loss(objective, positions, scores, mask, targets, strengths=None, preferred=None, **options):
    settings = LossSettings(**options)
    strengths = torch.ones(len(targets)) if strengths is None else strengths
    judgements = Judgements(scores, mask, targets, strengths, preferred)
    return objective_row(objective, positions, settings).loss(judgements, settings)


def test_objective_and_positions_name_the_loss():
    scores, targets = torch.randn(2, 3), torch.tensor([1.0, 0.0])
    mask = torch.tensor([[True, True, True], [True, False, False]])
    ahead = {"bootstrap_lambda": 0.5}
    for objective, positions, options, expected in (
        ("classification", "every", {}, prefix_classification_loss(scores, targets, mask)),
        ("regression", "every", {}, prefix_regression_loss(scores, targets, mask)),
        (
            "classification",
            "bootstrapped",
            ahead,
            q_classification_loss(scores, targets, mask, **ahead),
        ),
        ("regression", "bootstrapped", ahead, q_value_loss(scores, targets, mask, **ahead)),
    ):
        found = loss(objective, positions, scores, mask, targets, **options)
        torch.testing.assert_close(found, expected)
    for objective, own in (
        ("classification", length_weighted_classification_loss),
        ("regression", length_weighted_regression_loss),
    ):
        found = loss(objective, "every", scores, mask, targets, prefix_weights="length")
        torch.testing.assert_close(found, own(scores, targets, mask))
    looks_ahead = loss("regression", "bootstrapped", scores, mask, targets, bootstrap_lambda=1.0)
    torch.testing.assert_close(looks_ahead, prefix_regression_loss(scores, targets, mask))


@pytest.mark.parametrize("positions", ["every", "last"])
def test_several_ratings_are_learnt_where_scores_are_read(positions):
    scores, ratings = torch.randn(2, 3, 2), torch.tensor([[1.0, math.nan], [0.5, -1.0]])
    mask = torch.tensor([[True, True, True], [True, False, False]])
    found = loss(
        "multi-objective-regression", positions, scores, mask, ratings, strengths=torch.ones(2)
    )
    assert torch.equal(found, prefix_multi_objective_regression_loss(scores, ratings, mask))
    row = OBJECTIVES["multi-objective-regression", positions]
    assert (row.rows, row.reading) == ("several-ratings", positions)


def test_strengths_margins_and_soft_labels_reach_every_loss_of_pairs():
    scores, margin, strength = torch.randn(4, 3), torch.rand(2), torch.tensor([3.0, 0.5])
    preferred = torch.tensor([0.25, 1.0])
    mask = torch.ones(4, 3, dtype=torch.bool)
    for positions, own in (
        ("every", prefix_bradley_terry_loss),
        ("segments", segment_bradley_terry_loss),
    ):
        said = {"margin": margin, "strength": strength}
        sides = (scores[:2], scores[2:], mask[:2], mask[2:])
        found = loss("bradley-terry", positions, scores, mask, margin, strength, preferred)
        torch.testing.assert_close(found, own(*sides, **said, preferred=preferred))
        smooth = {"preferred": torch.tensor([0.9 * 0.25 + 0.1 * 0.75, 0.9])}
        found = loss(
            "bradley-terry", positions, scores, mask, margin, strength, preferred,
            label_smoothing=0.1,
        )  # fmt: skip
        torch.testing.assert_close(found, own(*sides, **said, **smooth))
        smooth = {"preferred": torch.tensor([0.9, 0.9])}
        found = loss(
            "bradley-terry", positions, scores, mask, margin, strength, label_smoothing=0.1
        )
        torch.testing.assert_close(found, own(*sides, **said, **smooth))


@pytest.mark.parametrize("positions", ["last", "every"])
def test_rankings_of_several_lengths_come_one_after_another(positions):
    scores, mask = torch.randn(5, 3), torch.ones(5, 3, dtype=torch.bool)
    ranks = torch.tensor([[2.0, 1.0, math.nan], [1.0, 3.0, 2.0]])
    found = loss("plackett-luce", positions, scores, mask, ranks, torch.ones(2))
    each = [
        prefix_plackett_luce_loss(scores[None, rows], ranks[row, :count][None], mask[None, rows])
        for row, rows, count in ((0, slice(0, 2), 2), (1, slice(2, 5), 3))
    ]  # fmt: skip
    torch.testing.assert_close(found, torch.stack(each).mean())


@pytest.mark.parametrize("positions", ["last", "every", "pairs"])
def test_margins_and_centering_enter_the_loss(positions):
    scores, margin = torch.tensor([[2.0], [1.0]]), torch.tensor([0.5])
    mask = torch.ones(2, 1, dtype=torch.bool)
    plain = bradley_terry_loss(scores[0], scores[1], margin=margin)
    torch.testing.assert_close(loss("bradley-terry", positions, scores, mask, margin), plain)
    centred = loss("bradley-terry", positions, scores, mask, margin, centering=0.1)
    torch.testing.assert_close(centred, plain + 0.1 * 9.0)


def test_centering_in_segments_is_of_the_means_that_are_compared():
    scores = torch.tensor([[2.0, 4.0], [1.0, 0.0]])
    mask = torch.tensor([[True, True], [True, False]])
    found = loss("bradley-terry", "segments", scores, mask, torch.zeros(1), centering=0.1)
    expected = bradley_terry_loss(torch.tensor([3.0]), torch.tensor([1.0])) + 0.1 * 16.0
    torch.testing.assert_close(found, expected)


def test_every_row_reads_the_options_that_it_names():
    """A loss that names an option moves with it; one that does not is refused another value."""
    changed = {
        "centering": 0.5,
        "label_smoothing": 0.25,
        "bootstrap_lambda": 0.25,
        "prefix_weights": "length",
    }
    scores, targets = torch.tensor([[2.0, 1.0], [0.5, 3.0]]), torch.tensor([1.0, 0.0])
    mask = torch.ones(2, 2, dtype=torch.bool)
    for (objective, positions), row in OBJECTIVES.items():
        some = targets[:1] if row.rows == "pairs" else targets
        said = scores
        if row.rows == "several-ratings":
            said, some = scores[..., None], targets[:, None]
        if row.rows == "rankings":
            some = torch.tensor([[1.0, 2.0]])
        plain = loss(objective, positions, said, mask, some)
        for name, value in changed.items():
            if name in row.options:
                found = loss(objective, positions, said, mask, some, **{name: value})
                assert abs(found - plain) > 1e-3
            else:
                with pytest.raises(ConfigError, match=f"loss.{name} is .* does not read it"):
                    loss(objective, positions, said, mask, some, **{name: value})


def test_names_that_are_not_in_the_table():
    with pytest.raises(
        ConfigError, match="objective is 'hinge'; expected one of 'bradley-terry', "
    ):
        objective_row("hinge", "last", LossSettings())
    with pytest.raises(ConfigError, match="expected one of last, every, bootstrapped"):
        objective_row("regression", "segments", LossSettings())
    with pytest.raises(ConfigError, match="expected a number from 0 to 1"):
        LossSettings(bootstrap_lambda=2.0)
    with pytest.raises(ConfigError, match=r"label_smoothing is 0\.5; expected a share from 0"):
        LossSettings(label_smoothing=0.5)
