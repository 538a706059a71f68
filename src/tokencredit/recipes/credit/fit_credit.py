"""What scores are usual, by length and by location: `tokencredit fit-credit`.

    tokencredit fit-credit --reward_model my/model --data answers.jsonl --output fitted.json

Reward models pay more for longer prefixes, or for segments that stand late. This measures by how
much, on responses of the kind that will be paid, for the credit methods that take it out:
`length-centred-prefix-difference` and, with segments, `located-segment`.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tokencredit.credit.location import fitted_location_normaliser
from tokencredit.credit.prefixes import prefix_length_means
from tokencredit.errors import ConfigError, ModelError
from tokencredit.models.hf_loading import quiet_transformers
from tokencredit.preference.hf_datasets import load_prompted_responses
from tokencredit.preference.hf_rows import DatasetSettings
from tokencredit.preference.pairs import PromptedResponse
from tokencredit.ranges import require_at_least, require_positive
from tokencredit.recipes.credit.score_tokens import ResponseColumns
from tokencredit.recipes.run.left_out import beside, require_some, tell_left_out, usable
from tokencredit.recipes.run.run_folder import write_atomically, writing
from tokencredit.recipes.run.shown_reading import print_reading
from tokencredit.recipes.settings import LoadingSettings, group
from tokencredit.scorers.hf_credit_models import FittedCredit
from tokencredit.scorers.hf_local import LocalScorer
from tokencredit.scorers.hf_segmentation import response_segments
from tokencredit.scorers.texts import loaded_reward_model, whole_texts
from tokencredit.text.pooling import segment_end_scores
from tokencredit.text.reading_settings import ReadingSettings
from tokencredit.text.segments import SegmentSettings

_Scores = tuple[Float[Tensor, "time_plus_1"], Float[Tensor, "segments"] | None]
"""Scores of the prefixes of one response, and those at the ends of its segments."""


@dataclass(frozen=True)
class FitCreditConfig:
    """Settings of one fit."""

    reward_model: str
    """Hub id or folder of a causal sequence-classification model with one or two outputs."""
    data: str
    """Dataset id, dataset folder, or JSON-lines file of prompts and responses."""
    output: str
    """JSON file to write, for `credit.fitted`."""
    split: str = "train"
    """Split of a dataset id or folder."""
    dataset: DatasetSettings = group(DatasetSettings)
    """Which part of a dataset is read, and what becomes of rows that cannot be used."""
    limit: int | None = None
    """Use only the first rows; None uses all."""
    columns: ResponseColumns = group(ResponseColumns)
    """Where prompts and responses stand."""
    segments: SegmentSettings = group(SegmentSettings)
    """How responses are cut, for the fit by location; `none` fits lengths alone."""
    reading: ReadingSettings = group(ReadingSettings)
    """How the reward model reads texts, where its configuration does not say."""
    batch_size: int = 16
    """Responses per forward pass."""
    loading: LoadingSettings = group(LoadingSettings)
    """How models are loaded."""
    show_example: bool = False
    """Print one text as the reward model reads it: its tokens, and where scores are read."""
    device: str | None = None
    """Device to compute on, such as `cuda`; None for the CPU."""

    def __post_init__(self) -> None:
        require_positive(self, "limit")
        require_at_least(self, 1, "batch_size")
        if self.columns.text is not None:
            raise ConfigError(
                f"columns.text is {self.columns.text!r}; expected prompts and responses"
            )


@quiet_transformers()
def fit_credit(config: FitCreditConfig) -> Path:
    """Measure what scores are usual and write it to a file.

    Args:
        config: the settings.

    Returns:
        The file.

    Raises:
        DataError: the data are not there, no row can be scored, or one cannot where that is an
            error, or there are too few for the location.
        ModelError: the reward model is not there, or scores no prefixes.
        RunFolderError: the file cannot be written.
    """
    left_out = config.dataset.collecting()
    rows = load_prompted_responses(
        config.data,
        split=config.split,
        prompt_column=config.columns.prompt,
        response_column=config.columns.response,
        limit=config.limit,
        dataset=config.dataset,
        left_out=left_out,
    )
    loading = {**vars(config.loading), "device": config.device}
    model, reading = loaded_reward_model(config.reward_model, config.reading, **loading)
    example = (rows[0].prompt, rows[0].response) if config.show_example else None
    print_reading("reward model", reading, example=example)
    scorer = LocalScorer(model, reading, reading, micro_batch_size=config.batch_size)
    if "prefix_scores" not in scorer.gives:
        raise ModelError(
            f"the reward model {config.reward_model!r} reads in both directions and scores no "
            "prefixes; expected a causal one"
        )
    found: list[_Scores] = []
    for first in range(0, len(rows), 16 * config.batch_size):
        part = rows[first : first + 16 * config.batch_size]
        found += usable(partial(_scores, config, scorer), part, left_out)
    require_some(found, left_out)
    scores_of_prefixes, there = _padded([prefixes for prefixes, _ in found])
    rewards = [ends for _, ends in found if ends is not None]
    fitted = FittedCredit(
        prefix_length_means(scores_of_prefixes, there[:, 1:]),
        fitted_location_normaliser(*_padded(rewards)) if rewards else None,
    )
    path = Path(config.output)
    with writing(path):
        write_atomically(path, fitted.written())
    tell_left_out(left_out, beside(path))
    print(f"fitted on {len(found)} responses: {path}")
    return path


def _scores(
    config: FitCreditConfig, scorer: LocalScorer, rows: list[PromptedResponse]
) -> list[_Scores]:
    """What the reward model says of each response."""
    reading = scorer.reading
    encoded = whole_texts(
        scorer.model,
        reading,
        [row.prompt for row in rows],
        [row.response for row in rows],
        ended=[row.ended for row in rows],
    )
    real = encoded.attention_mask.bool()
    found = scorer(encoded.batch, attention_mask=real).prefix_scores
    assert found is not None
    mask = encoded.batch.response_mask
    kept = torch.cat([torch.ones_like(mask[:, :1]), mask], dim=-1)
    prefixes = [row[real].cpu() for row, real in zip(found, kept, strict=True)]
    ids = response_segments(config.segments, reading.tokenizer, encoded.batch)
    if ids is None:
        return [(row, None) for row in prefixes]
    ends, is_segment = segment_end_scores(found, ids)
    rewards = [row[real].cpu() for row, real in zip(ends, is_segment, strict=True)]
    return list(zip(prefixes, rewards, strict=True))


def _padded(rows: list[Tensor]) -> tuple[Float[Tensor, "rows width"], Bool[Tensor, "rows width"]]:
    """Rows of numbers as one tensor, and where they are."""
    numbers = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    lengths = torch.tensor([len(row) for row in rows])
    return numbers, torch.arange(numbers.shape[1]) < lengths[:, None]
