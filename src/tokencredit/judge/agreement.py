"""Whether a judge prefers what people prefer, and whether the order of the responses matters."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tokencredit.batch import Prompt
from tokencredit.errors import ConfigError
from tokencredit.judge.questions import judge_question
from tokencredit.judge.scores import Judge, asked_verdicts, response_labels
from tokencredit.judge.setups import JudgeSetup


@dataclass(frozen=True)
class PairVerdicts:
    """What a judge says of pairs of responses.

    Attributes:
        first: how much the better response is preferred where it is shown first; NaN where that
            cannot be read.
        second: the same where it is shown second. Of a judge that sees one response at a time both
            are the difference of the two scores.
        ordered: whether there is an order, in which two responses are shown.
        unreadable: how many verdicts could not be read, by the reason.
        verdicts: how many there were.
    """

    first: Float[Tensor, "pairs"]
    second: Float[Tensor, "pairs"]
    ordered: bool
    unreadable: Mapping[str, int]
    verdicts: int


def pair_verdicts(
    judge: Judge,
    setup: JudgeSetup,
    prompts: Sequence[Prompt],
    chosen: Sequence[str],
    rejected: Sequence[str],
    *,
    principle: str = "",
    rubric: str = "",
    ask_again: int = 0,
) -> PairVerdicts:
    """Verdicts on labelled pairs in both orders, whatever order the set-up itself would take.

    Set-ups that compare with a reference or a group compare the two with each other; those that
    rate a list rate both at once, and how much one is preferred is the difference of the ratings.

    Args:
        judge: from questions to replies, in their order.
        setup: a row of `JUDGE_SETUPS`, or one of your own.
        prompts: what was asked.
        chosen: the better response to each.
        rejected: the other one.
        principle: for a template that has one.
        rubric: likewise, the same for all.
        ask_again: how often a question whose reply cannot be read is asked again.

    Raises:
        ConfigError: there are not as many responses as prompts.
        DataError: as `judge_question` and `asked_verdicts`.

    >>> from tokencredit.judge.setups import JUDGE_SETUPS
    >>> from tokencredit.judge.verdicts import Reply
    >>> def likes_the_first(questions):
    ...     return [Reply(logprobs={"a": -0.1, "b": -2.1})] * len(questions)
    >>> said = pair_verdicts(likes_the_first, JUDGE_SETUPS["pairwise-rl"], ["?"], ["x"], ["y"])
    >>> said.first, said.second
    (tensor([2.]), tensor([-2.]))
    """
    if not len(prompts) == len(chosen) == len(rejected):
        raise ConfigError(
            f"there are {len(prompts)} prompts, {len(chosen)} better and {len(rejected)} worse "
            "responses; expected one of each"
        )
    each = setup.asks == "each"
    shown = [[[good], [bad]] if each else [[good, bad], [bad, good]]
             for good, bad in zip(chosen, rejected, strict=True)]  # fmt: skip
    questions = [
        judge_question(
            setup.template,
            prompt,
            texts,
            labels=response_labels(setup, len(texts)),
            principle=principle,
            rubric=rubric,
            answers=setup.answers,
        )
        for prompt, both in zip(prompts, shown, strict=True)
        for texts in both
    ]
    read, _ = asked_verdicts(
        judge, setup, questions, [1 if each else 2] * len(questions), ask_again
    )
    verdicts = [one for some in read for one in some]
    # How much what stands first is preferred: a difference of ratings, or one verdict on both.
    leads = torch.tensor(
        [some[0].score - (some[1].score if len(some) == 2 else 0.0) for some in read]
    ).view(-1, 2)
    first, second = leads[:, 0], -leads[:, 1]
    if each:
        first = second = leads[:, 0] - leads[:, 1]
    unreadable = Counter(one.reason for one in verdicts if not one.readable)
    return PairVerdicts(first, second, not each, dict(unreadable), len(verdicts))
