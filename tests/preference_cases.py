"""Random answers to prompts, as tensors and as the Python numbers of the reference loops."""

from dataclasses import fields, replace

import torch
from reference.preference_losses import Response

from tokencredit.policy.losses.compared import Answers
from tokencredit.policy.losses.grouped import negative_weights
from tokencredit.policy.losses.methods import PREFERENCE_LOSSES, loss_options
from tokencredit.policy.losses.options import PreferenceLossSettings

NAMES = sorted(PREFERENCE_LOSSES)
WIDTHS = {"pairs": 2, "lists": 3, "singles": 1}


def answers_for(name: str, *, rows: int = 3, seed: int = 0, weights: bool = True) -> Answers:
    """Everything that any loss may ask for, in float64; NaN stands where no token is."""
    row = PREFERENCE_LOSSES[name]
    draw = torch.Generator().manual_seed(seed)
    width = WIDTHS[row.learns_from]
    present = torch.ones(rows, width, dtype=torch.bool)
    if row.learns_from == "lists":
        present[-1, -1] = False
    count, time = int(present.sum()), 5
    lengths = torch.randint(2, time + 1, (count,), generator=draw)
    mask = torch.arange(time) < lengths[:, None]

    def drawn(low: float, high: float, *shape: int) -> torch.Tensor:
        numbers = torch.rand(*shape, generator=draw, dtype=torch.float64)
        return low + (high - low) * numbers

    def tokens(low: float, high: float) -> torch.Tensor:
        return drawn(low, high, count, time).masked_fill(~mask, torch.nan)

    scores = drawn(-1, 2, rows, width)
    answers = Answers(
        tokens(-2.0, -0.1),
        mask,
        present,
        references=tuple(tokens(-2.0, -0.1) for _ in row.references),
        token_weights=tokens(0.5, 1.5) if weights else None,
        scores=scores,
        soft_labels=drawn(0.1, 0.9, rows),
        divergences=tokens(0.0, 0.5),
    )
    if row.teachers:
        answers = replace(answers, taught=tokens(-0.5, 0.5))
    if name in ("dft", "dft2"):
        averages = drawn(-1, 1, rows)
        found, _ = negative_weights(answers, options_of(name), averages)
        answers = replace(answers, negative_weights=found)
    return answers


def options_of(name: str, **given):
    return loss_options(name, PreferenceLossSettings(**given))


def losses_of(name: str, answers: Answers, **given) -> torch.Tensor:
    return PREFERENCE_LOSSES[name].losses(answers, options_of(name, **given))


def rows_of(answers: Answers, rows: slice) -> Answers:
    """Some of the prompts with their answers."""
    chosen = torch.zeros_like(answers.present)
    chosen[rows] = True
    kept = chosen[answers.present]
    found = {}
    for one in fields(answers):
        value = getattr(answers, one.name)
        if one.name == "references":
            value = tuple(part[kept] for part in value)
        elif one.name in ("present", "scores", "soft_labels", "negative_weights"):
            value = None if value is None else value[rows]
        elif value is not None:
            value = value[kept]
        found[one.name] = value
    return Answers(**found)


def as_floats(answers: Answers) -> list[list[Response]]:
    """The responses of each prompt, as the reference loops take them."""
    blank = torch.zeros_like(answers.logprobs)
    references = [*answers.references, blank, blank][:2]
    weights = torch.ones_like(blank) if answers.token_weights is None else answers.token_weights
    said = answers.divergences if answers.taught is None else answers.taught
    parts = (answers.logprobs, *references, weights, said)
    responses = [
        [tuple(float(part[row, at]) for part in parts) for at in mask.nonzero().flatten()]
        for row, mask in enumerate(answers.response_mask)
    ]
    left = iter(responses)
    return [[next(left) for there in row if there] for row in answers.present.tolist()]
