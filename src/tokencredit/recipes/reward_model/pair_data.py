"""The pairs of recipes that learn from nothing else."""

from tokencredit.preference.hf_datasets import load_pairs
from tokencredit.preference.hf_rows import LeftOut
from tokencredit.preference.pairs import PreferencePair
from tokencredit.recipes.reward_model.causal_settings import (
    TrainImplicitRewardConfig,
    TrainRewriterConfig,
)
from tokencredit.recipes.supervised import Source, train_and_held_out


def training_pairs(
    config: TrainImplicitRewardConfig | TrainRewriterConfig,
) -> tuple[list[PreferencePair], list[PreferencePair], list[LeftOut] | None]:
    """Pairs to train on, pairs that are held out, and rows that cannot be used.

    No prompt stands on both sides.

    Raises:
        DataError: the data are not there, are empty, or a row does not fit.
    """

    def load(source: Source) -> list[PreferencePair]:
        return load_pairs(
            **vars(source),
            prompt_column=config.columns.prompt,
            chosen_column=config.columns.chosen,
            rejected_column=config.columns.rejected,
            limit=config.limit,
        )

    return train_and_held_out(config, load, text=lambda pair: pair.chosen)
