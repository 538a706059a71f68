"""From what the policy says of a batch of answers to its loss, with the weights of tokens."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from tokencredit.credit.implicit import top_share_mask
from tokencredit.logprobs import token_logprobs
from tokencredit.masking import left_packed, masked_row_mean, masked_sum
from tokencredit.models.hf_joined_rows import (
    WORTHWHILE,
    JoinedRows,
    joined_rows,
    reads_joined_rows,
)
from tokencredit.models.hf_short_attention import short_attention
from tokencredit.policy.losses.compared import Answers
from tokencredit.policy.losses.grouped import negative_weights
from tokencredit.policy.losses.listwise import best_answers
from tokencredit.policy.losses.offline import effective_share
from tokencredit.policy.losses.token_weights import (
    bounded_scores,
    credit_weights,
    decay_weights,
    edit_weights,
    magnitude_weights,
    selected_weights,
    token_regularisers,
)
from tokencredit.preference.labels import edit_labels
from tokencredit.recipes.preferences.constants import Numbers, bounded_already
from tokencredit.recipes.preferences.rows import AnswerRow
from tokencredit.recipes.preferences.settings import TrainPreferencesConfig
from tokencredit.reward_model.hf_vocabulary import trained_statistics


def answer_statistics(
    model: nn.Module,
    input_ids: Int[Tensor, "answers sequence"],
    attention_mask: Int[Tensor, "answers sequence"],
    counted: Tensor,
    taught: Float[Tensor, "answers time numbers"] | None = None,
    present: Bool[Tensor, "rows width"] | None = None,
    *,
    statistic: Callable[..., Tensor] = token_logprobs,
    frozen: Sequence[nn.Module] = (),
) -> Float[Tensor, "answers time *rest"]:
    """Log-probabilities of response tokens, with gradient, from column 0 on.

    Args:
        model: the policy.
        input_ids: as of `answer_batch`.
        attention_mask: likewise.
        counted: likewise.
        taught: likewise; None for none.
        present: likewise: the prompt of the answers of a row is read once, where that is less to
            read and the models can; None reads every answer with its own.
        statistic: as of `trained_statistics`, log-probabilities first.
        frozen: models that it compares with.
    """
    joined = None
    if present is not None and all(map(reads_joined_rows, (model, *frozen))):
        joined = _joined(input_ids, attention_mask.bool(), present.sum(-1).tolist())
    width = (input_ids if joined is None else joined.input_ids).shape[1]
    with short_attention(model, width):
        return trained_statistics(
            model,
            input_ids,
            attention_mask,
            counted,
            statistic,
            frozen=frozen,
            beside=taught,
            joined=joined,
        )


def _joined(
    input_ids: Int[Tensor, "answers sequence"],
    real: Bool[Tensor, "answers sequence"],
    sizes: list[int],
) -> JoinedRows | None:
    """The answers of each prompt in one row; None where that is hardly less to read."""
    rows = [ids[mask].tolist() for ids, mask in zip(input_ids, real, strict=True)]
    joined = joined_rows(rows, sizes)
    less = joined.input_ids.numel() <= WORTHWHILE * input_ids.numel()
    return joined if less else None


def logprobs_and_divergences(
    logits: Tensor, token_ids: Tensor, frozen_logits: Tensor
) -> Float[Tensor, "tokens 2"]:
    """Log-probabilities, and KL(reference || policy) over the vocabulary in their place.

    Args:
        logits: of the policy.
        token_ids: in their place.
        frozen_logits: of the reference.
    """
    width = min(logits.shape[-1], frozen_logits.shape[-1])  # heads may be wider than tokenizers
    policy = logits[:, :width].log_softmax(-1)
    reference = frozen_logits[:, :width].log_softmax(-1)
    divergences = (reference.exp() * (reference - policy)).sum(-1)
    return torch.stack([token_logprobs(logits, token_ids), divergences], dim=-1)


def constant_weights(
    config: TrainPreferencesConfig, rows: Sequence[AnswerRow], credit: Numbers | None
) -> Numbers | None:
    """Weights of all response tokens, as far as they are constants of the run; None for 1.

    Of a pair the first answer is the chosen side; of a list those above its mean score are, or the
    first where there are no scores; a single answer is one.

    Args:
        config: the settings.
        rows: of the data.
        credit: of each response token; None where nothing asks for it.
    """
    kind = config.token_weights.kind
    if kind not in ("credit", "magnitude", "select", "decay"):
        return None
    return [
        [
            _weights_of(config, None if credit is None else credit[at][side], length, chosen)
            for side, (length, chosen) in enumerate(
                zip(row.response_lengths, _chosen_sides(config, row), strict=True)
            )
        ]
        for at, row in enumerate(rows)
    ]


def _chosen_sides(config: TrainPreferencesConfig, row: AnswerRow) -> list[bool]:
    if config.row.learns_from == "lists" and row.scores is not None:
        mean = sum(row.scores) / len(row.scores)
        return [score >= mean for score in row.scores]
    return [side == 0 for side in range(len(row.texts))]


def _weights_of(
    config: TrainPreferencesConfig, credit: Tensor | None, length: int, chosen: bool
) -> Float[Tensor, "tokens"]:
    """Weights of the tokens of one response."""
    settings = config.token_weights
    mask = torch.ones(1, length, dtype=torch.bool)
    if credit is None:
        return decay_weights(mask, decay=settings.decay)[0]
    if settings.kind == "select":
        selected = top_share_mask(
            credit[None], mask, share=settings.share, side="top" if chosen else "bottom"
        )
        return selected_weights(selected, mask)[0]
    if settings.kind == "magnitude":
        return magnitude_weights(credit[None], mask)[0]
    return credit_weights(
        credit[None],
        mask,
        side="chosen" if chosen else "rejected",
        strength=settings.strength,
        unit=settings.unit,
        clip=settings.clip,
        mean=settings.mean,
    )[0]


def credit_magnitudes(config: TrainPreferencesConfig, credit: Numbers | None) -> Numbers | None:
    """The size of the credit of each token, mean one before it is cut at 2; None where none is.

    In the place of the distance of two teachers it has the range of that distance.

    Args:
        config: the settings.
        credit: of each response token.
    """
    if credit is None or config.options.adaptive != "credit":
        return None
    return [
        [
            magnitude_weights(
                one[None], torch.ones_like(one[None], dtype=torch.bool), clip=2.0, mean="free"
            )[0]
            for one in row
        ]
        for row in credit
    ]


def edited_tokens(
    config: TrainPreferencesConfig, rows: Sequence[AnswerRow]
) -> list[list[Tensor]] | None:
    """True on tokens that differ between both responses of each pair; None where nobody asks.

    Args:
        config: the settings.
        rows: pairs.
    """
    if config.token_weights.kind != "edits":
        return None
    found = []
    for row in rows:
        chosen, rejected = (text.input_ids[text.start :] for text in row.texts)
        labels = edit_labels(rejected, chosen)
        found.append([torch.tensor(one) != 0 for one in labels])
    return found


def regulariser_scores(config: TrainPreferencesConfig, credit: Numbers | None) -> Numbers | None:
    """Credit between −1/2 and 1/2 for the regulariser; None where there is none.

    Args:
        config: the settings.
        credit: of each response token.
    """
    if credit is None or not config.regulariser.strength:
        return None
    if bounded_already(config.credit):
        return credit
    return [[bounded_scores(one[None])[0] for one in row] for row in credit]


@dataclass
class Measured:
    """What the log lines and the loss remember of the run.

    Attributes:
        sums: of measured numbers since the last row of metrics.
        count: how many batches they are of.
        log_averages: running averages of `dft`, of each row; empty for other losses.
    """

    sums: dict[str, float] = field(default_factory=dict)
    count: int = 0
    log_averages: list[float] = field(default_factory=list)

    def add(self, numbers: dict[str, float]) -> None:
        """Count the numbers of one batch."""
        self.count += 1
        for name, value in numbers.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def means(self) -> dict[str, float]:
        """The means since the last row of metrics, which are forgotten."""
        found = {name: value / max(self.count, 1) for name, value in self.sums.items()}
        self.sums, self.count = {}, 0
        return found


@dataclass(frozen=True)
class Objective:
    """The loss of batches of answers.

    Attributes:
        config: the settings.
        names: of the columns of `constants`, in their order: `reference`, `start`, `weights`,
            `regulariser`.
    """

    config: TrainPreferencesConfig
    names: tuple[str, ...]

    def answers(self, outputs: Tensor, inputs: dict[str, Tensor]) -> tuple[Answers, Tensor | None]:
        """What the loss is made of, and the regulariser's credit where there is one.

        Args:
            outputs: as of `answer_statistics`.
            inputs: as of `answer_batch`.
        """
        mask, _ = left_packed(inputs["counted"], inputs["counted"])
        outputs = outputs[..., None] if outputs.ndim == 2 else outputs
        logprobs = outputs[..., 0]
        constants = {
            name: inputs["constants"][..., at].to(logprobs.device)
            for at, name in enumerate(self.names)
        }
        references = tuple(constants[name] for name in self.config.row.references)
        weights, ref_weights = constants.get("weights"), None
        if "edited" in inputs:
            settings = self.config.token_weights
            weigh = partial(
                edit_weights, inputs["edited"], response_mask=mask, delta=settings.delta
            )
            weights = weigh(logprobs=logprobs)
            if settings.confidence == "own" and references:
                ref_weights = weigh(logprobs=references[0])
        scores = inputs.get("scores")
        further = outputs[..., 1] if outputs.shape[-1] > 1 else None
        teaches = self.config.row.teachers > 0
        found = Answers(
            logprobs,
            mask,
            inputs["present"],
            references,
            weights,
            ref_weights,
            scores=scores,
            soft_labels=inputs.get("soft_labels"),
            divergences=None if teaches else further,
            taught=further if teaches else None,
        )
        return found, constants.get("regulariser")

    def losses(
        self, answers: Answers, bounded: Tensor | None
    ) -> tuple[Float[Tensor, "rows"], dict[str, float]]:
        """One loss per prompt, and numbers for the metrics.

        Args:
            answers: of a batch.
            bounded: credit of the regulariser; None for none.
        """
        row, options = self.config.row, self.config.options
        losses = row.losses(answers, options)
        measured = self._measured(answers)
        if bounded is not None and row.pair is not None:
            terms = token_regularisers(
                answers.logprobs,
                bounded,
                answers.response_mask,
                normalisation=self.config.regulariser.normalisation,
            )
            chosen, rejected = row.pair.scores(answers, options).detach().unbind(-1)
            wrong = torch.sigmoid(row.pair.scale(options) * (rejected - chosen))
            price = self.config.regulariser.strength * (options.dpo_beta or 1.0)
            added = price * wrong * answers.by_row(terms).sum(-1)
            losses = losses + added
            measured["regulariser"] = float(added.detach().mean())
        return losses, measured

    @torch.no_grad()
    def _measured(self, answers: Answers) -> dict[str, float]:
        row, options = self.config.row, self.config.options
        found: dict[str, float] = {}
        if answers.references:
            ratios = masked_sum(answers.logprobs - answers.references[0], answers.response_mask)
            found["log_ratio"] = float(ratios.mean())
        if answers.taught is not None:
            mean = masked_row_mean(answers.taught, answers.response_mask).mean()
            found["taught"] = float(mean)
        if row.pair is not None:
            chosen, rejected = row.pair.scores(answers, options).unbind(-1)
            margins = row.pair.scale(options) * (chosen - rejected)
            found["accuracy"] = float((chosen > rejected).float().mean())
            found["margin"] = float(margins.mean())
            found["largest_margin"] = float(margins.abs().max())
        elif row.learns_from != "singles":
            scores = answers.side_scores(length_normalised=True)
            scores = scores.masked_fill(~answers.present, -torch.inf)
            best = scores.argmax(-1)
            wanted = torch.zeros_like(best)
            if answers.scores is not None:
                wanted = best_answers(answers.scores, answers.present).int().argmax(-1)
            found["accuracy"] = float((best == wanted).float().mean())
        elif answers.scores is not None:
            found["effective_share"] = float(effective_share(answers.scores[:, 0].clamp(min=0)))
        return found


def with_negative_weights(
    answers: Answers, options: Any, log_averages: Float[Tensor, "rows"]
) -> tuple[Answers, Float[Tensor, "rows"]]:
    """Answers with the weights of all but the first, and the new averages.

    Args:
        answers: of a batch.
        options: of `dft` or `dft2`.
        log_averages: so far.
    """
    weights, averages = negative_weights(answers, options, log_averages)
    return replace(answers, negative_weights=weights), averages
