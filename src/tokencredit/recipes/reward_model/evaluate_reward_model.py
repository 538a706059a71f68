"""Judge a reward model by pairs: accuracy, calibration, and how much of it is length.

    tokencredit evaluate-reward-model --reward_model rm --data pairs.jsonl --output evaluation

The model is a sequence classifier, or a language model trained by DPO together with its reference,
whose score is the sum of `dpo_beta` times the log-ratio. Beside its accuracy stand those of two
judges that read nothing: the longer answer wins, the shorter answer wins. A folder of
`train-feature-model` is read too: words stand in the place of its tokens.

The files in `rewardbench/` have the layouts that the RewardBench suite writes, of its version 1 for
pairs (arXiv 2403.13787) and of version 2 where rows have several worse answers (arXiv 2506.01937).
There a tie counts as RewardBench counts it: against the model among two, 1 / k among more.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from rich.console import Console
from rich.progress import track
from torch import Tensor

from tokencredit.errors import ConfigError
from tokencredit.evaluation.plots import plot_calibration, plot_prefix_accuracy
from tokencredit.models.hf_loading import quiet_transformers
from tokencredit.preference.hf_comparisons import Comparison, load_comparisons
from tokencredit.preference.hf_rows import DatasetSettings, LeftOut
from tokencredit.ranges import require_positive
from tokencredit.recipes.reward_model.evaluation_report import evaluation_tables, write_rewardbench
from tokencredit.recipes.reward_model.neighbours import NeighbourSettings, fused_comparisons
from tokencredit.recipes.reward_model.pair_evaluation import (
    ScoredComparison,
    evaluation,
    scored_pairs,
)
from tokencredit.recipes.run.left_out import encodable, tell_left_out
from tokencredit.recipes.run.run_folder import open_run_folder, require_same_run, write_atomically
from tokencredit.recipes.run.shown_reading import print_reading
from tokencredit.recipes.settings import LoadingSettings, free_settings, group, setting
from tokencredit.scorers.feature_folders import has_feature_model
from tokencredit.scorers.features import feature_fraction_scores, feature_reward
from tokencredit.scorers.hf_responses import Kind, ResponseScorer, loaded_scorer, scored_responses
from tokencredit.text.hf_token_rows import EncodedText, Truncation
from tokencredit.text.reading_settings import ReadingSettings


@dataclass(frozen=True)
class ComparisonColumns:
    """Names of the columns of judged answers."""

    prompt: str | None = setting(None, was="prompt_column")
    """Prompts, texts or lists of chat messages. None takes `prompt` or another usual name; without
    one, the prompt is what both texts begin with. An empty name is for answers without a prompt."""
    chosen: str = setting("chosen", was="chosen_column")
    """The preferred answers, texts or lists of texts; with `label` the first ones."""
    rejected: str = setting("rejected", was="rejected_column")
    """The others; with `label` the second ones."""
    label: str | None = setting(None, was="label_column")
    """Column that says which answer is better, by the name of its column or by one of
    `label_values`."""
    label_values: tuple[int | str, int | str] | None = None
    """The value of `label` where the first answer is better, and the one where the second is: `[0,
    1]` for PKU-SafeRLHF. None takes 1 and 2, and refuses data whose numbers may mean something
    else."""
    subset: str | None = setting(None, was="subset_column")
    """Column that names parts of the data. None takes `subset` if there is one, and the names of
    the data sets if there are several."""
    name: str | None = setting(None, was="name_column")
    """Column of the names of rows; None takes `id` if there is one."""


@dataclass(frozen=True)
class EvaluateRewardModelConfig:
    """One evaluation."""

    reward_model: str
    """Hub id or folder of a sequence-classification model with one or two outputs, or of a language
    model that was trained by DPO; or a folder of `train-feature-model`."""
    data: str | list[str]
    """JSON-lines file, dataset folder or dataset id; or a list of them."""
    output: str = setting(free=True)
    """Folder for `evaluation.json`, `pairs.jsonl`, two figures and `rewardbench/`."""
    kind: Kind | None = None
    """`classification` or `implicit`; None is `implicit` where a reference is given or the model's
    configuration names one."""
    reference: str | None = None
    """Hub id or folder of the reference of an implicit reward; None takes it from the model's
    configuration."""
    dpo_beta: float | None = None
    """Beta of an implicit reward; None takes it from the model's configuration."""
    split: str = "train"
    """Split of a dataset folder or id."""
    dataset: DatasetSettings = group(DatasetSettings)
    """Which part of a dataset is read, and what becomes of rows that cannot be used."""
    limit: int | None = None
    """Use only the first rows of each data set; None uses all."""
    reading: ReadingSettings = group(ReadingSettings)
    """How the model reads texts, where its configuration does not say."""
    max_length: int | None = None
    """Most tokens of prompt and response; None takes what the model can read."""
    truncation: Truncation = "prompt-start"
    """What a longer row loses first: `prompt-start` and then the end of the response, or
    `response-end`."""
    batch_size: int = setting(16, free=True)
    """Responses per forward pass."""
    confidence: float = 0.95
    """Coverage of the intervals."""
    bins: int = 10
    """Bins of the calibration curve."""
    columns: ComparisonColumns = group(ComparisonColumns)
    neighbours: NeighbourSettings = group(NeighbourSettings)
    loading: LoadingSettings = group(LoadingSettings)
    show_example: bool = setting(False, free=True)
    """Print one text as the reward model reads it: its tokens, and where scores are read."""
    device: str | None = setting(None, free=True)
    """Device to compute on, such as `cuda`; None for the CPU."""
    progress: bool = setting(True, free=True)
    """Show a progress bar."""

    def __post_init__(self) -> None:
        require_positive(self, "limit", "batch_size", "bins", "max_length", "dpo_beta")
        if not 0 < self.confidence < 1:
            raise ConfigError(f"confidence is {self.confidence}; expected a share between 0 and 1")
        if self.kind == "classification" and (self.reference or self.dpo_beta):
            raise ConfigError(
                "kind is 'classification' with a reference or dpo_beta; expected neither: only an "
                "implicit reward has them"
            )
        if has_feature_model(self.reward_model) and (
            self.kind or self.reference or self.dpo_beta or self.max_length
        ):
            raise ConfigError(
                f"reward_model is {self.reward_model!r}, a folder of train-feature-model, with "
                f"kind {self.kind!r}, reference {self.reference!r}, dpo_beta {self.dpo_beta} and "
                f"max_length {self.max_length}; expected none of them: it reads whole texts"
            )


@quiet_transformers()
def evaluate_reward_model(config: EvaluateRewardModelConfig) -> Path:
    """Evaluate one reward model; an earlier evaluation in the folder is replaced.

    Args:
        config: the settings.

    Returns:
        The folder: `evaluation.json`, `pairs.jsonl`, `prefix_accuracy.png`, `calibration.png`,
        `rewardbench/`.

    Raises:
        DataError: the data are not there, no row can be scored, or one cannot where that is an
            error.
        ModelError: a model or its tokenizer is not there or lacks what is needed.
        ConfigError: an implicit reward without reference or dpo_beta.
        NumericError: a score is NaN or infinite.
        RunFolderError: the folder holds something else, or cannot be written.
    """
    require_same_run(config.output, config, free=free_settings(type(config)))
    left_out = config.dataset.collecting()
    comparisons = _loaded(config, config.data, config.limit, left_out)
    scorer = _scorer(config)
    scored = _scored(config, scorer, comparisons, left_out, tell=True)
    joined: dict[str, Any] = {}
    if config.neighbours.data is not None:
        plain = evaluation(scored, confidence=config.confidence, bins=config.bins)["accuracy"]
        scored, told = _fused(config, scorer, scored)
        joined = {"neighbours": {**told, "accuracy_without": plain}}
    folder = open_run_folder(config.output, config, free=free_settings(type(config)))
    tell_left_out(left_out, folder / "skipped.jsonl")
    found = {
        "reward_model": config.reward_model,
        "kind": "features" if scorer is None else scorer.kind,
        "reference": None if scorer is None else scorer.reference,
        "dpo_beta": None if scorer is None else scorer.dpo_beta,
        "data": config.data,
        **evaluation(scored, confidence=config.confidence, bins=config.bins),
        **joined,
    }
    _write(folder, found, scored)
    write_rewardbench(folder / "rewardbench", config.reward_model, scorer, scored)
    console = Console()
    for table in evaluation_tables(found):
        console.print(table)
    print(f"evaluation: {folder}")
    return folder


def _loaded(
    config: EvaluateRewardModelConfig,
    data: str | list[str],
    limit: int | None,
    left_out: list[LeftOut] | None,
) -> list[Comparison]:
    """Comparisons in the columns that the settings name."""
    return load_comparisons(
        data,
        split=config.split,
        prompt_column=config.columns.prompt,
        chosen_column=config.columns.chosen,
        rejected_column=config.columns.rejected,
        label_column=config.columns.label,
        label_values=config.columns.label_values,
        subset_column=config.columns.subset,
        name_column=config.columns.name,
        limit=limit,
        dataset=config.dataset,
        left_out=left_out,
    )


def _scorer(config: EvaluateRewardModelConfig) -> ResponseScorer | None:
    """The model; None for one of features, which reads no tokens."""
    if has_feature_model(config.reward_model):
        return None
    return loaded_scorer(
        config.reward_model,
        config.reading,
        kind=config.kind,
        reference=config.reference,
        dpo_beta=config.dpo_beta,
        device=config.device,
        **asdict(config.loading),
    )


def _scored(
    config: EvaluateRewardModelConfig,
    scorer: ResponseScorer | None,
    comparisons: list[Comparison],
    left_out: list[LeftOut] | None,
    *,
    tell: bool = False,
) -> list[ScoredComparison]:
    """Comparisons that can be scored, scored; `tell` prints how the model reads the first."""
    if scorer is None:
        reward = feature_reward(config.reward_model)
        return encodable(partial(_counted, reward), comparisons, left_out)
    read = encodable(partial(_read, config, scorer), comparisons, left_out)
    first, _ = read[0]
    example = (first.prompt, first.chosen[0]) if config.show_example else None
    if tell:
        print_reading("reward model", scorer.reading, example=example)
    return _scored_comparisons(config, scorer, read)


def _counted(
    reward: Callable[[list[Any], list[str]], list[float]], comparisons: list[Comparison]
) -> list[ScoredComparison]:
    """Comparisons scored by the features of their texts."""
    answers = [one.chosen + one.rejected for one in comparisons]
    prompts = [one.prompt for one, some in zip(comparisons, answers, strict=True) for _ in some]
    table = feature_fraction_scores(reward, prompts, [text for some in answers for text in some])
    return _of_comparisons(comparisons, table)


def _fused(
    config: EvaluateRewardModelConfig,
    scorer: ResponseScorer | None,
    scored: list[ScoredComparison],
) -> tuple[list[ScoredComparison], dict[str, Any]]:
    """Scores joined with those of neighbours; rows that cannot be used are no neighbours."""
    assert config.neighbours.data is not None
    left_out = config.dataset.collecting()
    texts = _loaded(config, config.neighbours.data, config.neighbours.limit, left_out)
    known = _scored(config, scorer, texts, left_out)
    fused, told = fused_comparisons(scored, known, config.neighbours)
    return fused, {**told, "left_out": len(left_out or [])}


def _read(
    config: EvaluateRewardModelConfig, scorer: ResponseScorer, comparisons: list[Comparison]
) -> list[tuple[Comparison, list[EncodedText]]]:
    """Comparisons with their answers, the better ones first, as the model reads them."""
    answers = [
        (one.prompt, answer, end)
        for one in comparisons
        for side, end in zip((one.chosen, one.rejected), one.ended, strict=True)
        for answer in side
    ]
    lengths = (config.max_length, scorer.max_length)
    rows = iter(
        scorer.reading.rows(
            [prompt for prompt, _, _ in answers],
            [answer for _, answer, _ in answers],
            ended=[end for _, _, end in answers],
            max_length=min((length for length in lengths if length is not None), default=None),
            truncation=config.truncation,
        )
    )
    return [(one, list(islice(rows, len(one.chosen + one.rejected)))) for one in comparisons]


def _scored_comparisons(
    config: EvaluateRewardModelConfig,
    scorer: ResponseScorer,
    read: list[tuple[Comparison, list[EncodedText]]],
) -> list[ScoredComparison]:
    """Every answer scored once, and put back to its comparison."""
    rows = [row for _, answers in read for row in answers]
    scores = track(
        scored_responses(scorer, rows, batch_size=config.batch_size),
        description="scoring",
        total=len(rows),
        console=Console(stderr=True),
        disable=not config.progress,
    )
    return _of_comparisons([one for one, _ in read], torch.stack(list(scores)))


def _of_comparisons(
    comparisons: list[Comparison], table: Float[Tensor, "answers fractions"]
) -> list[ScoredComparison]:
    """Scores of answers, put back to their comparisons."""
    parts = torch.split(table, [len(one.chosen + one.rejected) for one in comparisons])
    return [
        ScoredComparison(one, part[: len(one.chosen)], part[len(one.chosen) :])
        for one, part in zip(comparisons, parts, strict=True)
    ]


def _write(folder: Path, found: dict[str, Any], scored: list[ScoredComparison]) -> None:
    """The evaluation, the scores of every pair, and the figures."""
    rows = (json.dumps(pair.json_row(), ensure_ascii=False) + "\n" for pair in scored_pairs(scored))
    write_atomically(folder / "pairs.jsonl", "".join(rows))
    plot_prefix_accuracy(found["fractions"], folder / "prefix_accuracy.png")
    plot_calibration(
        found["calibration"]["curve"],
        folder / "calibration.png",
        xlabel="predicted probability of its choice",
        ylabel="share of right choices",
    )
    # Last: where it stands, the rest is whole.
    write_atomically(folder / "evaluation.json", json.dumps(found, indent=2) + "\n")
