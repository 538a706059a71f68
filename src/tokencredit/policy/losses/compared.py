"""What a loss of preferences is made of: responses to prompts, forms of pairs, and its row."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tokencredit.errors import DataError
from tokencredit.policy.losses.preference import Link, pair_losses, side_scores


@dataclass(frozen=True)
class Answers:
    """What is known of the responses to a batch of prompts.

    Responses stand one after another, those of a prompt together: of a pair the chosen one first.

    Attributes:
        logprobs: of the policy, in nats.
        response_mask: True on response tokens.
        present: of each prompt, which of its responses are there: all True but for lists of
            different lengths.
        references: log-probabilities of the frozen models that the loss names, in their order.
        token_weights: constants; None for 1.
        ref_weights: those of the references where they are others; None for the same.
        scores: rewards of the responses; None where nothing asks for them.
        soft_labels: of each pair; None where nothing asks for them.
        divergences: KL(reference || policy) over the vocabulary at each token; None likewise.
        taught: what the teachers say of each token, as the loss makes it; None likewise.
        negative_weights: of all responses but the first, as of `discriminative_weights`.
    """

    logprobs: Float[Tensor, "answers time"]
    response_mask: Bool[Tensor, "answers time"]
    present: Bool[Tensor, "rows width"]
    references: tuple[Float[Tensor, "answers time"], ...] = ()
    token_weights: Float[Tensor, "answers time"] | None = None
    ref_weights: Float[Tensor, "answers time"] | None = None
    # `| Any`, since a row that runs has all that it needs and no None to think of.
    scores: Float[Tensor, "rows width"] | Any = None
    soft_labels: Float[Tensor, "rows"] | Any = None
    divergences: Float[Tensor, "answers time"] | Any = None
    taught: Float[Tensor, "answers time"] | Any = None
    negative_weights: Float[Tensor, "rows others"] | Any = None

    def by_row(self, values: Float[Tensor, "answers"]) -> Float[Tensor, "rows width"]:
        """One number per response as a row per prompt, zero where no response is."""
        grid = values.new_zeros(self.present.shape)
        grid[self.present] = values
        return grid

    def side_scores(
        self, shares: tuple[float, ...] = (), *, length_normalised: bool = False
    ) -> Float[Tensor, "rows width"]:
        """Scores of the responses, a row per prompt.

        Args:
            shares: of the references.
            length_normalised: whether they are divided by the length.

        Raises:
            DataError: a reference is missing.
        """
        if shares and len(shares) != len(self.references):
            raise DataError(
                f"the loss compares with {len(shares)} frozen models, and {len(self.references)} "
                "are there; expected the log-probabilities of each"
            )
        anchors = list(zip(shares, self.references, strict=False)) if shares else []

        def scores(logprobs: Tensor, anchors: Any, weights: Tensor | None) -> Tensor:
            return side_scores(
                logprobs,
                self.response_mask,
                references=anchors,
                token_weights=weights,
                length_normalised=length_normalised,
            )

        if self.ref_weights is None:
            return self.by_row(scores(self.logprobs, anchors, self.token_weights))
        own = scores(self.logprobs, (), self.token_weights)
        less = scores(torch.zeros_like(self.logprobs), anchors, self.ref_weights)
        return self.by_row(own + less)


Number = float | Float[Tensor, "rows"]


@dataclass(frozen=True)
class PairForm:
    """What makes a loss of pairs, of the options `o` and the answers.

    Attributes:
        link: as of `pair_losses`.
        scale: what differences are multiplied by.
        offset: what the chosen score shall be ahead.
        soft_label: probability that the chosen response is the better one.
        shares: of the references in a side score.
        bias: what the score of the other side is multiplied by.
        length_normalised: whether side scores are divided by the length.
        further: a term that is added.
    """

    link: Link = "logistic"
    scale: Callable[[Any], float] = lambda o: o.dpo_beta
    offset: Callable[[Any, Answers], Number] = lambda _o, _answers: 0.0
    soft_label: Callable[[Any, Answers], Number] = lambda _o, _answers: 1.0
    shares: Callable[[Any], tuple[float, ...]] = lambda _o: (1.0,)
    bias: Callable[[Any], float] = lambda _o: 1.0
    length_normalised: bool = False
    further: Callable[[Any, Answers], Number] = lambda _o, _answers: 0.0

    def scores(self, answers: Answers, options: Any) -> Float[Tensor, "rows 2"]:
        """Side scores, the chosen one first."""
        return answers.side_scores(self.shares(options), length_normalised=self.length_normalised)

    def losses(self, answers: Answers, options: Any) -> Float[Tensor, "rows"]:
        """One loss per pair."""
        chosen, rejected = self.scores(answers, options).unbind(-1)
        found = pair_losses(
            chosen,
            rejected,
            link=self.link,
            scale=self.scale(options),
            offset=self.offset(options, answers),
            soft_label=self.soft_label(options, answers),
            bias=self.bias(options),
            tau=options.tau or 0.05,
        )
        return found + self.further(options, answers)


Rows = Literal["pairs", "lists", "singles"]
Need = Literal["scores", "soft_labels", "vocabulary", "selection", "prompt_values"]


@dataclass(frozen=True)
class PreferenceLoss:
    """One row of the table of losses.

    Attributes:
        words: what it is, in a line.
        source: where it comes from.
        options: names of the settings that it reads, with their defaults.
        pair: its form; None for a loss that is not of pairs.
        group: from answers and options to one loss per prompt; None for a loss with a form.
        learns_from: `pairs`, `lists` of scored responses, or `singles`.
        references: frozen models that it compares with: none, the `reference`, or also the `start`,
            the model as it was before this training.
        needs: what rows or models must give besides.
        teachers: how many models it learns from: a `teacher`, or also a `teacher_reference`.
        taught: from the log-probabilities of policy and teachers over the events of some tokens,
            the options, how many of the events are kept tokens, and the size of credit, to a
            number per token.
    """

    words: str
    source: str
    options: Mapping[str, Any] = field(default_factory=dict)
    pair: PairForm | None = None
    group: Callable[[Answers, Any], Float[Tensor, "rows"]] | None = None
    learns_from: Rows = "pairs"
    references: tuple[Literal["reference", "start"], ...] = ("reference",)
    needs: tuple[Need, ...] = ()
    teachers: Literal[0, 1, 2] = 0
    taught: Callable[..., Float[Tensor, "tokens"]] | None = None

    @property
    def compares_with(self) -> tuple[str, ...]:
        """All models that speak besides the policy."""
        return (*self.references, *("teacher", "teacher_reference")[: self.teachers])

    def losses(self, answers: Answers, options: Any) -> Float[Tensor, "rows"]:
        """One loss per prompt, of options that `loss_options` resolved."""
        if self.pair is not None:
            return self.pair.losses(answers, options)
        assert self.group is not None
        return self.group(answers, options)
