"""What the reward model itself says of scores of words: deletion, insertion, Shapley values.

Words are taken away and put back whole. Scores are turned towards what the reward model says of a
text: if it scores the text below its prompt alone, the words that pull it down are to go first, and
what falls is the score times -1. So every number reads the same way for good and for bad texts.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tokencredit.credit.perturbation import shapley_credit
from tokencredit.evaluation.agreement import pearson_correlation
from tokencredit.evaluation.faithfulness import (
    area_under_curve,
    comprehensiveness,
    deletion_curve,
    insertion_curve,
    sufficiency,
)
from tokencredit.kept_tokens import ScoresOfKept
from tokencredit.preference.marked_texts import MarkedText
from tokencredit.recipes.credit.agreement import padded, untied
from tokencredit.recipes.credit.compare_settings import CompareCreditConfig
from tokencredit.recipes.credit.passes import Pass
from tokencredit.recipes.credit.words import EncodedWords, WordScores, kept_words
from tokencredit.reward_model.hf_perturbed import scores_without_tokens

Numbers = dict[str, float]
KEYS = ("deletion", "insertion", "comprehensiveness", "sufficiency", "shapley_correlation")


@dataclass(frozen=True)
class AskedTexts:
    """Some texts that a reward model answers questions about.

    Attributes:
        rows: which of all texts they are.
        texts: the texts themselves.
        mask: True on the words that each has.
        side: 1 where the text scores higher than its prompt alone, else -1.
        gains: how much more the text scores on that side, in nats, with some words than with none.
        shapley: sampled Shapley value of each word on that side, in nats.
    """

    rows: list[int]
    texts: list[MarkedText]
    mask: Bool[Tensor, "batch words"]
    side: Float[Tensor, "batch"]
    gains: ScoresOfKept
    shapley: Float[Tensor, "batch words"]


def asked_texts(
    scored: Pass, texts: Sequence[MarkedText], config: CompareCreditConfig
) -> Iterator[AskedTexts]:
    """The texts in batches, with the Shapley values of their words.

    Args:
        scored: the reward model and its tokenizer.
        texts: a sample; every word costs `credit.probe.samples` scores.
        config: the settings.
    """
    for rows, batch in scored.batches(texts, config):
        yield _asked(scored, rows, batch, config)


def faithfulness_numbers(
    asked: Sequence[AskedTexts], scores: WordScores, *, signed: bool, seed: int
) -> tuple[Numbers, dict[str, list[float]]]:
    """How faithful scores are to the reward model, in means over texts.

    Args:
        asked: the texts of the sample.
        scores: of the words of all texts of the sample, as the method gives them.
        signed: whether they are in the unit of the reward model's score, as credit is, and so
            turned with it, or have no sign, as the length of a word.
        seed: of ties.

    Returns:
        `deletion`, `insertion`, `comprehensiveness` and `sufficiency` in nats,
        `shapley_correlation` of the scores with the Shapley values, per text and then averaged;
        and the two curves.
    """
    columns: dict[str, list[Tensor]] = {key: [] for key in (*KEYS, "_deletion", "_insertion")}
    for part in asked:
        values, _ = padded([scores[row] for row in part.rows])
        values = values * part.side[:, None] if signed else values
        rows = [row[: len(scores[at])].tolist() for row, at in zip(values, part.rows, strict=True)]
        order, _ = padded(untied(rows, part.texts, seed=seed))
        deletion = deletion_curve(part.gains, order, part.mask)
        insertion = insertion_curve(part.gains, order, part.mask)
        columns["_deletion"].append(deletion)
        columns["_insertion"].append(insertion)
        columns["deletion"].append(area_under_curve(deletion))
        columns["insertion"].append(area_under_curve(insertion))
        columns["comprehensiveness"].append(comprehensiveness(part.gains, order, part.mask))
        columns["sufficiency"].append(sufficiency(part.gains, order, part.mask))
        columns["shapley_correlation"].append(pearson_correlation(values, part.shapley, part.mask))
    means = {key: torch.cat(found).nanmean(0) for key, found in columns.items()}
    curves = {key[1:]: means.pop(key).tolist() for key in ("_deletion", "_insertion")}
    return {key: float(value) for key, value in means.items()}, curves


def _asked(
    scored: Pass, rows: list[int], batch: EncodedWords, config: CompareCreditConfig
) -> AskedTexts:
    by_tokens = scores_without_tokens(
        scored.model,
        batch.encoded.batch,
        attention_mask=batch.encoded.attention_mask,
        micro_batch_size=4 * config.batch_size,
    )
    by_words, mask = kept_words(by_tokens, batch), batch.word_mask
    whole, alone = by_words(torch.stack([mask, torch.zeros_like(mask)], dim=1)).unbind(-1)
    side = torch.where(whole >= alone, 1.0, -1.0)

    def gains(keep: Bool[Tensor, "batch subsets words"]) -> Float[Tensor, "batch subsets"]:
        return side[:, None] * (by_words(keep) - alone[:, None])

    # Other orders than those of the method `shapley`, whose row then shows the error of sampling.
    generator = torch.Generator().manual_seed(config.seed + 1)
    shapley = shapley_credit(gains, mask, samples=config.credit.probe.samples, generator=generator)
    return AskedTexts(rows, batch.texts, mask, side, gains, shapley)
