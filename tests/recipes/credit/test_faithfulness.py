import pytest
import torch
from readings import plain
from saved_models import save_reward_model
from tiny_tokenizers import byte_level

from tokencredit.credit.settings import CreditSettings, ProbeSettings
from tokencredit.preference.marked_texts import MarkedText
from tokencredit.recipes.credit.compare_settings import CompareCreditConfig
from tokencredit.recipes.credit.faithfulness import AskedTexts, asked_texts, faithfulness_numbers
from tokencredit.recipes.credit.passes import Pass

TEXTS = [
    MarkedText("", "a very good film", ((),)),
    MarkedText("", "one slow scene , then bad", ((),)),
    MarkedText("", "plot", ((),)),
]


@pytest.fixture
def asked(tmp_path):
    tokenizer = byte_level()
    model = save_reward_model(tmp_path, tokenizer)
    config = CompareCreditConfig(
        "", "", "", batch_size=2, credit=CreditSettings(probe=ProbeSettings(samples=4))
    )
    return list(asked_texts(Pass((), lambda _: {}, model, plain(tokenizer)), TEXTS, config))


def by_row(asked, name):
    return {row: getattr(part, name)[at] for part in asked for at, row in enumerate(part.rows)}


def test_gains_begin_at_nothing_and_end_above(asked):
    for part in asked:
        ends = part.gains(torch.stack([torch.zeros_like(part.mask), part.mask], dim=1))
        assert ends[:, 0].abs().max() < 1e-5
        assert (ends[:, 1] >= 0).all()
        torch.testing.assert_close(part.shapley.sum(-1), ends[:, 1], atol=1e-4, rtol=1e-3)
    assert sorted(by_row(asked, "side")) == [0, 1, 2]


def test_shapley_values_come_from_the_model(asked):
    shapley, side, mask = (by_row(asked, name) for name in ("shapley", "side", "mask"))
    scores = [(shapley[row] * side[row])[mask[row]].tolist() for row in range(3)]
    numbers, curves = faithfulness_numbers(asked, scores, signed=True, seed=0)
    turned = [[-score for score in row] for row in scores]
    wrong, _ = faithfulness_numbers(asked, turned, signed=True, seed=0)
    assert numbers["shapley_correlation"] == pytest.approx(1.0, abs=1e-5)
    assert wrong["shapley_correlation"] == pytest.approx(-1.0, abs=1e-5)
    assert curves["deletion"][0] == pytest.approx(curves["insertion"][-1], abs=1e-5)
    assert curves["deletion"][-1] == pytest.approx(0.0, abs=1e-5)


def test_numbers_of_a_scorer_that_adds_by_hand():
    """Words worth 1, 4 and 2 nats of a text that is scored low: the model's credit is negative."""
    values, mask = torch.tensor([[1.0, 4.0, 2.0]]), torch.ones(1, 3).bool()

    def gains(keep):
        return (keep * values[:, None]).sum(-1)

    text = MarkedText("", "one four two", ((),))
    asked = [AskedTexts([0], [text], mask, torch.tensor([-1.0]), gains, values)]
    numbers, curves = faithfulness_numbers(asked, [[-1.0, -4.0, -2.0]], signed=True, seed=0)
    # Of three words, fractions 0.1 to 0.3 take one, 0.4 to 0.6 two, and more take all.
    fallen = [7.0, *[3.0] * 3, *[1.0] * 3, *[0.0] * 4]
    assert curves["deletion"] == pytest.approx(fallen)
    assert curves["insertion"] == pytest.approx([7.0 - score for score in fallen])
    assert numbers["deletion"] == pytest.approx((sum(fallen) - 3.5) / 10)
    assert numbers["insertion"] == pytest.approx(7 - numbers["deletion"])
    # 1, 5, 10 and 20 % are one word, half is two.
    assert numbers["comprehensiveness"] == pytest.approx((4 * 4.0 + 6.0) / 5)
    assert numbers["sufficiency"] == pytest.approx((4 * 3.0 + 1.0) / 5)
    assert numbers["shapley_correlation"] == pytest.approx(1.0)


def test_scores_without_a_sign_are_not_turned(asked):
    shapley, mask = by_row(asked, "shapley"), by_row(asked, "mask")
    scores = [shapley[row][mask[row]].tolist() for row in range(3)]
    numbers, _ = faithfulness_numbers(asked, scores, signed=False, seed=0)
    assert numbers["shapley_correlation"] == pytest.approx(1.0, abs=1e-5)
