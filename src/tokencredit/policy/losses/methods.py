"""Every offline loss by its name: what it learns from, its references, its form and its options.

`PREFERENCE_LOSSES` is the one list. A loss of pairs is a row with a `PairForm`: which references a
side score has, whether it is divided by the length, offset, scale and link. Losses of lists and of
single responses are rows with a function. `train-preferences` reads the rest off the row.
"""

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from tokencredit.errors import ConfigError
from tokencredit.masking import masked_sum
from tokencredit.names import named
from tokencredit.policy.losses.compared import Answers, PairForm, PreferenceLoss
from tokencredit.policy.losses.grouped import (
    discriminated,
    imitated,
    imitated_by_score,
    imitated_near_reference,
    of_leftovers,
    ordered,
    ranked,
    soft_listed,
)
from tokencredit.policy.losses.options import PreferenceLossSettings, require_in_range
from tokencredit.policy.losses.preference import calibrated_likelihoods
from tokencredit.policy.losses.taught import (
    advantaged_pairs,
    advantages,
    alignments,
    distilled,
    distilled_pairs,
    divergences,
)


def _none(_options: Any) -> tuple[float, ...]:
    return ()


def _smoothed(options: Any, _answers: Answers) -> float:
    return 1.0 - float(options.label_smoothing)


def _gap(answers: Answers) -> Float[Tensor, "rows"]:
    """How much more the chosen response is worth, by the scores of the data."""
    return answers.scores[:, 0] - answers.scores[:, 1]


def _divergence_gap(options: Any, answers: Answers, *, moves_chosen: bool) -> Tensor:
    """How much further the policy is from the reference along the rejected response."""
    sums = answers.by_row(masked_sum(answers.divergences, answers.response_mask))
    chosen, rejected = sums.unbind(-1)
    return options.strength * (rejected - (chosen if moves_chosen else chosen.detach()))


def _calibrated(setting: Literal["online", "offline"]) -> Callable[[Any, Answers], Tensor]:
    """The likelihood of the calibration policy's responses."""

    def term(options: Any, answers: Answers) -> Tensor:
        found = answers.by_row(
            calibrated_likelihoods(
                answers.logprobs,
                answers.response_mask,
                setting=setting,
                strength=options.strength * options.dpo_beta,
            )
        )
        sides = {"chosen": found[:, 0], "rejected": found[:, 1], "both": found.mean(-1)}
        return sides[options.calibration]

    return term


_BETA = {"dpo_beta": 0.1}

PREFERENCE_LOSSES: dict[str, PreferenceLoss] = {
    "dpo": PreferenceLoss("log(1 + e^-z) of log-ratios", "2305.18290", _BETA, PairForm()),
    "dpo-mean": PreferenceLoss(
        "DPO of log-ratios per token",
        "2411.15124",
        {"dpo_beta": 5.0},
        PairForm(length_normalised=True),
    ),
    "cdpo": PreferenceLoss(
        "DPO where some labels are flipped",
        "Mitchell 2023",
        _BETA | {"label_smoothing": 0.1},
        PairForm(soft_label=_smoothed),
    ),
    "robust": PreferenceLoss(
        "DPO where some labels are flipped, unbiased",
        "2403.00409",
        _BETA | {"label_smoothing": 0.1},
        PairForm("robust", soft_label=_smoothed),
    ),
    "cream": PreferenceLoss(
        "DPO with the consistency of each label",
        "2410.12735",
        _BETA,
        PairForm(soft_label=lambda _o, a: a.soft_labels),
        needs=("soft_labels",),
    ),
    "dno": PreferenceLoss(
        "DPO with labels as soft as the scores say",
        "2404.03715",
        _BETA,
        PairForm(soft_label=lambda _o, a: torch.sigmoid(_gap(a))),
        needs=("scores",),
    ),
    "ipo": PreferenceLoss(
        "squared distance of log-ratios to 1 / (2 beta)",
        "2310.12036",
        _BETA,
        PairForm("squared", lambda _o: 1.0, lambda o, _a: 1 / (2 * o.dpo_beta)),
    ),
    "ipo-mean": PreferenceLoss(
        "IPO of log-ratios per token, as in TRL",
        "2310.12036",
        _BETA,
        PairForm(
            "squared", lambda _o: 1.0, lambda o, _a: 1 / (2 * o.dpo_beta), length_normalised=True
        ),
    ),
    "copg": PreferenceLoss(
        "squared distance of log-ratios to the gap of the scores",
        "2406.19185",
        _BETA,
        PairForm("squared", lambda o: (o.dpo_beta / 2) ** 0.5, lambda o, a: _gap(a) / o.dpo_beta),
        needs=("scores",),
    ),
    "inpo": PreferenceLoss(
        "IPO whose anchor lies between reference and start",
        "2407.00617",
        {"dpo_beta": 0.0075, "reference_share": 1 / 3},
        PairForm(
            "squared",
            lambda _o: 1.0,
            lambda o, _a: 1 / (2 * o.dpo_beta),
            shares=lambda o: (o.reference_share, 1 - o.reference_share),
        ),
        references=("reference", "start"),
    ),
    "cpl": PreferenceLoss(
        "logistic of log-probs, the rejected side biased",
        "2310.13639",
        _BETA | {"bias": 0.5},
        PairForm(shares=_none, bias=lambda o: o.bias),
        references=(),
    ),
    "cpl-kl": PreferenceLoss(
        "logistic of log-ratios, the rejected side biased",
        "2310.13639",
        {"dpo_beta": 0.2, "bias": 0.75},
        PairForm(bias=lambda o: o.bias),
    ),
    "simpo": PreferenceLoss(
        "logistic of log-probs per token, with a margin",
        "2405.14734",
        {"dpo_beta": 2.0, "margin": 1.0},
        PairForm(offset=lambda o, _a: o.margin / o.dpo_beta, shares=_none, length_normalised=True),
        references=(),
    ),
    "sepo": PreferenceLoss(
        "logistic of log-probs per token, of selected tokens",
        "2408.13518",
        {"dpo_beta": 1.0},
        PairForm(shares=_none, length_normalised=True),
        references=(),
        needs=("selection",),
    ),
    "slic": PreferenceLoss(
        "hinge of log-ratios, with a margin",
        "2305.10425",
        _BETA | {"margin": 1.0},
        PairForm("hinge", offset=lambda o, _a: o.margin / o.dpo_beta),
    ),
    "modpo": PreferenceLoss(
        "DPO beside other rewards, which the scores of the data are",
        "2310.03708",
        _BETA | {"own_weight": 0.5},
        PairForm(
            scale=lambda o: o.dpo_beta / o.own_weight,
            offset=lambda o, a: (1 - o.own_weight) * _gap(a) / o.dpo_beta,
        ),
        needs=("scores",),
    ),
    "discopop": PreferenceLoss(
        "a mix of logistic and exponential, found by search",
        "2406.08414",
        {"dpo_beta": 0.05, "tau": 0.05},
        PairForm("discopop"),
    ),
    "tdpo1": PreferenceLoss(
        "DPO less how far the policy is from the reference along the way",
        "2404.11999",
        _BETA | {"strength": 1.0},
        PairForm(offset=lambda o, a: _divergence_gap(o, a, moves_chosen=True)),
        needs=("vocabulary",),
    ),
    "tdpo2": PreferenceLoss(
        "tdpo1 with the divergence of the chosen side as a constant",
        "2404.11999",
        _BETA | {"strength": 0.5},
        PairForm(offset=lambda o, a: _divergence_gap(o, a, moves_chosen=False)),
        needs=("vocabulary",),
    ),
    "vpo-online": PreferenceLoss(
        "DPO with optimism: calibration responses are pushed down",
        "2405.19320",
        _BETA | {"strength": 0.01, "calibration": "both"},
        PairForm(further=_calibrated("online")),
    ),
    "vpo-offline": PreferenceLoss(
        "DPO with pessimism: calibration responses are pulled up",
        "2405.19320",
        _BETA | {"strength": 0.01, "calibration": "chosen"},
        PairForm(further=_calibrated("offline")),
    ),
    "mapl": PreferenceLoss(
        "DPO on pairs built of pairs: answers under other prompts, two instructions at once",
        "2505.12845",
        _BETA,
        PairForm(),
    ),
    "pro": PreferenceLoss(
        "each response against all worse ones, sharper by the gap",
        "2306.17492",
        {"sft_coef": 0.05},
        group=ranked,
        learns_from="lists",
        references=(),
        needs=("scores",),
    ),
    "rrhf": PreferenceLoss(
        "how much likelier worse responses are",
        "2304.05302",
        {"sft_coef": 0.01},
        group=ordered,
        learns_from="lists",
        references=(),
        needs=("scores",),
    ),
    "brain": PreferenceLoss(
        "KL to the shares that the scores call for",
        "2402.02479",
        {"list_temperature": 1.0},
        group=soft_listed,
        learns_from="lists",
        needs=("scores",),
    ),
    "dft": PreferenceLoss(
        "the first response against all others, by their likelihood",
        "2502.18679",
        {"list_temperature": 1.0, "average_rate": 0.85},
        group=discriminated,
        learns_from="lists",
    ),
    "dft2": PreferenceLoss(
        "dft per token, without the model that wrote the others",
        "2502.18679",
        {"list_temperature": 0.3, "average_rate": 0.9},
        group=discriminated,
        learns_from="lists",
        references=(),
    ),
    "a-lol": PreferenceLoss(
        "likelihood by advantage and clipped ratio",
        "2305.14718",
        {"ratio": "sequence", "ratio_clip": 0.9, "prompt_value": "head"},
        group=of_leftovers,
        learns_from="singles",
        needs=("scores", "prompt_values"),
    ),
    "likelihood": PreferenceLoss(
        "likelihood of the responses (SFT, rejection sampling)",
        "2304.06767",
        group=imitated,
        learns_from="singles",
        references=(),
    ),
    "superhf": PreferenceLoss(
        "likelihood, and KL from the reference at each token",
        "2310.16763",
        {"strength": 0.35},
        group=imitated_near_reference,
        learns_from="singles",
        needs=("vocabulary",),
    ),
    "weighted-likelihood": PreferenceLoss(
        "likelihood times the score",
        "2304.06767",
        group=imitated_by_score,
        learns_from="singles",
        references=(),
        needs=("scores",),
    ),
    "aligndistil": PreferenceLoss(
        "KL to what two teachers together call for, at each token",
        "2503.02832",
        _BETA
        | {
            "extrapolation": 10.0,
            "adaptive": "distance",
            "anchor": "teacher",
            "scaling": "inverse",
            "top_k": 0,
        },
        group=distilled,
        learns_from="singles",
        references=(),
        teachers=2,
        taught=alignments,
    ),
    "dckd": PreferenceLoss(
        "likelihood of the chosen response, and the KL of a teacher on both",
        "2502.17927",
        {"sft_coef": 1.0, "strength": 0.2, "top_k": 50},
        group=distilled_pairs,
        references=(),
        teachers=1,
        taught=divergences,
    ),
    "adpa": PreferenceLoss(
        "likelihood of the chosen response, and the advantage of a teacher on the other",
        "2502.17927",
        {"sft_coef": 1.0, "strength": 1.5, "top_k": 50, "advantage_clip": "none"},
        group=advantaged_pairs,
        references=(),
        teachers=2,
        taught=advantages,
    ),
}
"""Rows by the names that settings take."""


def preference_loss(name: str) -> PreferenceLoss:
    """The row of this name.

    Raises:
        ConfigError: there is none; the message names the nearest.

    >>> preference_loss("ipo").references
    ('reference',)
    """
    return named("loss", name, PREFERENCE_LOSSES)


def loss_options(name: str, settings: PreferenceLossSettings) -> PreferenceLossSettings:
    """The options of a loss, with its defaults where none are given.

    Args:
        name: of the loss.
        settings: what is given.

    Raises:
        ConfigError: there is no such loss, it has no such option, or a number lies outside its
            range.

    >>> loss_options("simpo", PreferenceLossSettings(margin=0.5)).dpo_beta
    2.0
    """
    row = preference_loss(name)
    for one in fields(settings):
        value = getattr(settings, one.name)
        if value is not None and one.name not in row.options:
            raise ConfigError(
                f"{one.name} is {value!r} with loss {name!r}, which has no such option; expected "
                f"{' or '.join(row.options) or 'none'}, or another loss"
            )
    missing = {key: value for key, value in row.options.items() if getattr(settings, key) is None}
    found = replace(settings, **missing)
    require_in_range(found, row.options, zero_temperature=name == "brain")
    return found
