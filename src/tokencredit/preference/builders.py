"""Every way to make pairs of what is known of answers, by its name, with what it needs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tokencredit.preference.pair_making import (
    AnswerGroup,
    BuilderSettings,
    Built,
    pairs_by_consensus,
    pairs_by_contrast,
    pairs_by_demonstration,
    pairs_by_design,
    pairs_by_factors,
    pairs_by_ratings,
    pairs_by_tree,
)


@dataclass(frozen=True)
class PairBuilder:
    """One row of the table.

    Attributes:
        words: what it makes, in a line.
        source: where it comes from.
        build: from answers to rows.
        numbers: columns of numbers that it reads, by the names of their settings.
        may: columns that it reads where they are there.
        settings: names in `BuilderSettings` that it heeds.
        models: settings of models that may stand in the place of columns, or draw the answers.
        least: answers to a prompt that it needs.
        differs: from what was published; empty where nothing is known to differ.
    """

    words: str
    source: str
    build: Callable[[Sequence[AnswerGroup], BuilderSettings], Built]
    numbers: tuple[str, ...] = ()
    may: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    least: int = 2
    differs: str = ""


def built_pairs(name: str, groups: Sequence[AnswerGroup], settings: BuilderSettings) -> Built:
    """Rows by one method of the table.

    Args:
        name: in `PAIR_BUILDERS`.
        groups: with the columns that it needs.
        settings: of the method.

    Returns:
        Its rows. Prompts with fewer answers than it needs are counted.

    Raises:
        ConfigError, DataError: as the function of the method.

    >>> group = AnswerGroup("Why?", ("So.", "No."), (True, True), {"rating": (4.0, 1.0)})
    >>> built_pairs("ratings", [group], BuilderSettings()).rows[0]["chosen"]
    'So.'
    """
    row = PAIR_BUILDERS[name]
    enough = [group for group in groups if len(group.responses) >= row.least]
    built = row.build(enough, settings)
    few = len(groups) - len(enough)
    if few:
        built.counts[f"prompts with fewer than {row.least} answers"] = few
    return built


_RATED = ("z", "best_share", "most_pairs", "seed")

PAIR_BUILDERS: dict[str, PairBuilder] = {
    "ratings": PairBuilder(
        "pairs of answers whose ratings differ by more than their errors allow",
        "2406.10522",
        pairs_by_ratings,
        numbers=("rating",),
        may=("error",),
        settings=_RATED,
        differs="any number of pairs of a prompt unless most_pairs is set, and all answers may be "
        "preferred unless best_share is; the code draws 1000 from the best half",
    ),
    "aspects": PairBuilder(
        "pairs by the mean of the aspects of UltraFeedback that have a number",
        "2310.01377",
        pairs_by_ratings,
        settings=_RATED,
        differs="its overall_score is never read: many of its tens should be ones",
    ),
    "factors": PairBuilder(
        "the better of two answers by factors in the order of their importance (HERON)",
        "2309.02632",
        pairs_by_factors,
        settings=("factors", "thresholds", "most_pairs", "seed"),
    ),
    "consensus": PairBuilder(
        "the best of the answers that most agree with, against one that says something else (RLP)",
        "2403.19279",
        pairs_by_consensus,
        numbers=("score",),
        may=("group",),
        settings=("least_share", "seed"),
        differs="answers say the same if a column says so, or if they are the same but for spaces "
        "and case; the paper asks an entailment model",
    ),
    "design": PairBuilder(
        "which pairs to ask people about: those that add most to what is known",
        "2410.17055",
        pairs_by_design,
        may=("features",),
        settings=("count", "ridge"),
        models=("features_model",),
        differs="one pair after another is taken; the paper solves the continuous problem",
    ),
    "contrast": PairBuilder(
        "answers to prompts that are nearly alike, exchanged: pairs to evaluate with",
        "2309.16155",
        pairs_by_contrast,
        may=("features",),
        settings=("least_likeness", "most_likeness"),
        models=("features_model",),
        least=1,
        differs="prompts without a column of features are compared by their words; the paper has "
        "sentence embeddings",
    ),
    "tree": PairBuilder(
        "responses of a policy that share their beginnings, and pairs of them by a reward model",
        "2402.10184",
        pairs_by_tree,
        settings=("most_pairs", "seed"),
        models=("tree.policy", "tree.reward_model"),
        differs="read from notes, no code was found: parts have equal numbers of tokens; a reward "
        "model judges where the paper has people",
    ),
    "demonstrations": PairBuilder(
        "each answer of the data against responses of a policy (Inverse-RLignment)",
        "2405.15624",
        pairs_by_demonstration,
        settings=("most_pairs", "seed"),
        models=("tree.policy",),
        least=1,
        differs="pairs of one prompt; the paper classifies texts. Answers of people differ from a "
        "policy's in more than quality: as there, let the answers be responses of the fine-tuned "
        "policy, and the policy the one before",
    ),
}
"""Ways to make pairs."""
