"""What judges learn from: questions with the answer that they should have given."""

import math
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tokencredit.batch import Prompt
from tokencredit.errors import ConfigError, DataError
from tokencredit.judge.questions import Question, judge_question
from tokencredit.judge.scores import response_labels
from tokencredit.judge.setups import JudgeSetup
from tokencredit.judge.verdicts import Reply, Verdict


@dataclass(frozen=True)
class Lesson:
    """A question and its right answer.

    Attributes:
        question: to the judge.
        correct: above 0 where the response, or the first of two, is the good one, below 0 where it
            is not; its size is how much better that is, where the data say so.
        shown: how many responses the question is about.
    """

    question: Question
    correct: float
    shown: int


def pair_lessons(
    setup: JudgeSetup,
    prompts: Sequence[Prompt],
    chosen: Sequence[str],
    rejected: Sequence[str],
    *,
    principle: str = "",
    rubric: str = "",
    strengths: Sequence[float] = (),
) -> list[Lesson]:
    """Two questions of each pair: both orders, or each response by itself.

    Args:
        setup: a row of `JUDGE_SETUPS`, or one of your own, that does not rate lists.
        prompts: what was asked.
        chosen: the better response to each.
        rejected: the other one.
        principle: for a template that has one.
        rubric: likewise.
        strengths: how much better, above 0; none for 1.

    Raises:
        ConfigError: the set-up rates lists, of which a pair says nothing.

    >>> from tokencredit.judge.setups import JUDGE_SETUPS
    >>> two = pair_lessons(JUDGE_SETUPS["pairwise-rl"], ["Why?"], ["So."], ["No."])
    >>> [lesson.correct for lesson in two]
    [1.0, -1.0]
    """
    if setup.asks == "list":
        raise ConfigError(
            "the set-up rates all responses to a prompt at once, and a pair says which of two is "
            "better; expected a set-up that asks about each, or compares two"
        )
    lessons = []
    for at, (prompt, good, bad) in enumerate(zip(prompts, chosen, rejected, strict=True)):
        strength = float(strengths[at]) if strengths else 1.0
        shown = [[good], [bad]] if setup.asks == "each" else [[good, bad], [bad, good]]
        for texts, sign in zip(shown, (1.0, -1.0), strict=True):
            question = judge_question(
                setup.template,
                prompt,
                texts,
                labels=response_labels(setup, len(texts)),
                principle=principle,
                rubric=rubric,
                answers=setup.answers,
            )
            lessons.append(Lesson(question, sign * strength, len(texts)))
    return lessons


def rollout_lessons(
    single: JudgeSetup,
    double: JudgeSetup,
    prompt: Prompt,
    responses: Sequence[str],
    right: Sequence[bool],
    *,
    seed: int,
    single_share: float = 0.3,
    principle: str = "",
) -> list[Lesson]:
    """Questions made of the responses of a policy whose correctness is known (SPARK).

    Where all responses are right, or all wrong, one of them is to be judged by itself. Where some
    are, that is done with a probability of `single_share`; otherwise a right and a wrong one are
    shown together, in random order.

    Args:
        single: a set-up that asks about each response.
        double: a set-up that compares two.
        prompt: what was asked.
        responses: of the policy.
        right: which are right, by a rule.
        seed: of what is drawn; the same rows draw the same.
        single_share: probability of a question about one response where there are both kinds.
        principle: for templates that have one.

    Returns:
        One lesson; none without responses.

    Raises:
        ConfigError: the set-ups are of other kinds, or the share is none.
        DataError: not as many verdicts as responses.

    Source: SPARK, arXiv 2509.22624, and its code (`new_data_gen.py`): 0.3, and at most 32 prompts
    of each kind a step, which the caller limits. Their third kind, reflection on a wrong answer, is
    not here.

    >>> from tokencredit.judge.setups import JUDGE_SETUPS
    >>> single, double = JUDGE_SETUPS["rlbff"], JUDGE_SETUPS["rm-r1"]
    >>> asked = rollout_lessons(
    ...     single, double, "1+1?", ["2", "3"], [True, False], seed=0, single_share=0.0
    ... )
    >>> asked[0].correct in (1.0, -1.0)
    True
    """
    if single.asks != "each" or double.asks not in ("reference", "group"):
        raise ConfigError(
            f"the set-ups ask for {single.asks!r} and {double.asks!r}; expected one that asks "
            "about each response, and one that compares two"
        )
    if not 0 <= single_share <= 1:
        raise ConfigError(f"single_share is {single_share}; expected a share from 0 to 1")
    if len(right) != len(responses):
        raise DataError(f"{len(responses)} responses and {len(right)} verdicts; expected as many")
    if not responses:
        return []
    draw = random.Random(repr((seed, str(prompt), *responses)))
    good = [text for text, fine in zip(responses, right, strict=True) if fine]
    bad = [text for text, fine in zip(responses, right, strict=True) if not fine]
    if good and bad and draw.random() >= single_share:
        pair = pair_lessons(
            double, [prompt], [draw.choice(good)], [draw.choice(bad)], principle=principle
        )
        return [draw.choice(pair)]
    at = draw.randrange(len(responses))
    question = judge_question(
        single.template,
        prompt,
        [responses[at]],
        labels=response_labels(single, 1),
        principle=principle,
        answers=single.answers,
    )
    return [Lesson(question, 1.0 if right[at] else -1.0, 1)]


def written_verdict(setup: JudgeSetup, reply: str) -> Verdict:
    """What a whole text says by the rules of a set-up; where that asks for a token, its last word.

    Args:
        setup: that reads the text.
        reply: as the judge wrote it.

    >>> from tokencredit.judge.setups import JUDGE_SETUPS
    >>> written_verdict(JUDGE_SETUPS["rlbff"], "It is rude. So: No.").score
    -1.0
    """
    if len(setup.answers) != 2:
        return setup.read(Reply(reply), 2)[0]
    words = re.findall(r"\w+", reply.lower())
    if not words or words[-1] not in setup.answers:
        return Verdict(math.nan, "the last word is no answer")
    return Verdict(1.0 if words[-1] == setup.answers[0] else -1.0)


def choice_correctness(setup: JudgeSetup, reply: str, correct: float) -> float:
    """1 where a judge's text names the right side, −1 otherwise, also where it cannot be read.

    Args:
        setup: that reads the text.
        reply: as the judge in training wrote it.
        correct: of its `Lesson`.

    Source: RM-R1, Chen et al. 2025, arXiv 2505.02387, which has no reward for the form.

    >>> from tokencredit.judge.setups import JUDGE_SETUPS
    >>> choice_correctness(JUDGE_SETUPS["rm-r1"], "<answer>[[B]]</answer>", -1.0)
    1.0
    """
    verdict = written_verdict(setup, reply)
    return 1.0 if verdict.readable and verdict.score * correct > 0 else -1.0


def strength_correctness(setup: JudgeSetup, reply: str, correct: float) -> float:
    """A point for an answer that can be read, and one for its number or half for its sign alone.

    Args:
        setup: that reads the text.
        reply: as the judge in training wrote it.
        correct: of its `Lesson`, a strength with its sign.

    Returns:
        0, 1, 1.5 or 2.

    Source: Think-RM, Hong et al. 2025, arXiv 2505.16265, and its code.

    >>> from tokencredit.judge.setups import JUDGE_SETUPS
    >>> strength_correctness(JUDGE_SETUPS["think-rm"], "<answer>2</answer>", 3.0)
    1.5
    """
    verdict = written_verdict(setup, reply)
    if not verdict.readable:
        return 0.0
    same_sign = 0.5 if verdict.score * correct > 0 else 0.0
    return 1.0 + (1.0 if verdict.score == correct else same_sign)


CORRECTNESS: dict[str, Callable[[JudgeSetup, str, float], float]] = {
    "choice": choice_correctness,
    "strength": strength_correctness,
}
"""Rewards of judges in training, by their names."""
