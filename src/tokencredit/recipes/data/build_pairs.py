"""Pairs made of what is known of answers: `tokencredit build-pairs`.

    tokencredit build-pairs --method ratings --data captions.jsonl --output pairs.jsonl

One command for every row of `PAIR_BUILDERS`. What it writes, `train-reward-model`,
`train-preferences` and `evaluate-reward-model` read as it is.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, set_seed

from tokencredit.errors import ConfigError, DataError
from tokencredit.models.hf_loading import (
    load_config,
    load_model,
    load_tokenizer,
    pad_token_id,
    quiet_transformers,
)
from tokencredit.models.hf_sampling import undrawable_ids
from tokencredit.models.hf_tree_samples import tree_samples
from tokencredit.names import named, require_named
from tokencredit.preference.builders import PAIR_BUILDERS, built_pairs
from tokencredit.preference.cells import Row
from tokencredit.preference.hf_answer_groups import (
    GroupColumns,
    load_answer_groups,
    load_aspect_groups,
)
from tokencredit.preference.hf_rows import DatasetSettings, LeftOut, dataset_rows, made_rows
from tokencredit.preference.layouts import row_prompt
from tokencredit.preference.pair_making import AnswerGroup, BuilderSettings, Built
from tokencredit.ranges import require_at_least, require_positive
from tokencredit.recipes.run.left_out import beside, tell_left_out
from tokencredit.recipes.run.run_folder import jsonl_text, write_atomically, writing
from tokencredit.recipes.settings import LoadingSettings, group
from tokencredit.sampling import Sampling
from tokencredit.scorers.named_texts import named_text_scorer
from tokencredit.text.hf_decoding import decoded_response
from tokencredit.text.hf_known_readings import reading_of, written_by
from tokencredit.text.hf_states import end_states
from tokencredit.text.reading_settings import ReadingSettings


@dataclass(frozen=True)
class TreeSettings:
    """How `tree` draws responses, and `demonstrations`, at a depth of 1."""

    policy: str | None = None
    """The language model that writes them, by Hub id or folder."""
    reward_model: str | None = None
    """What scores them, by any name that `vote-on-pairs` takes; None writes lists of responses that
    nobody has judged."""
    depth: int = 2
    """Number of parts in which a response is drawn; 1 draws independent responses."""
    branches: int = 2
    """Continuations at the start, and after each part except the last."""
    max_new_tokens: int = 64
    """Most tokens of a whole response."""
    temperature: float = 1.0
    """Temperature: logits are divided by it."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "depth", "branches", "max_new_tokens")
        require_positive(self, "temperature")


@dataclass(frozen=True)
class BuildPairsConfig:
    """One set of pairs."""

    method: str
    """`ratings`, `aspects`, `factors`, `consensus`, `design`, `contrast`, `tree` or
    `demonstrations`: see docs/data.md."""
    data: str
    """JSON-lines file, dataset folder or dataset id, with one answer a row or a list of them."""
    output: str
    """JSON-lines file to write."""
    build: BuilderSettings = group(BuilderSettings)
    """How pairs are made; a setting that the method does not read is refused."""
    columns: GroupColumns = group(GroupColumns)
    """Where answers and what is known of them stand."""
    features_model: str | None = None
    """For `design` and `contrast`: a model whose last hidden states are the features of answers or
    of prompts; None takes the column of features."""
    tree: TreeSettings = field(default_factory=TreeSettings)
    """How `tree` and `demonstrations` draw responses; `demonstrations` at a depth of 1,
    independently."""
    split: str = "train"
    """Split of a dataset folder or id."""
    dataset: DatasetSettings = group(DatasetSettings)
    """Which part of a dataset is read, and what becomes of rows that cannot be used."""
    limit: int | None = None
    """Use only the first rows; None uses all."""
    reading: ReadingSettings = group(ReadingSettings)
    """How models read texts, where their configuration does not say."""
    batch_size: int = 16
    """Texts per forward pass."""
    loading: LoadingSettings = group(LoadingSettings)
    """How models are loaded."""
    device: str | None = None
    """Device to compute on, such as `cuda`; None for the CPU."""

    def __post_init__(self) -> None:
        require_named("method", self.method, PAIR_BUILDERS)
        require_positive(self, "limit", "batch_size")
        if Path(self.output).suffix != ".jsonl":
            raise ConfigError(
                f"output is {self.output!r}; expected a file name that ends in .jsonl"
            )
        _require_settings_of_its_own(self)


@quiet_transformers()
def build_pairs(config: BuildPairsConfig) -> Path:
    """Make pairs by one method and write them.

    Args:
        config: the settings.

    Returns:
        The file; rows that could not be used lie beside it.

    Raises:
        DataError: the data are not there, lack a column, hold a rating outside the scale, or make
            no pair at all.
        ConfigError: the method lacks a setting.
        ModelError, ServerError: a model is not there or lacks what is needed.
        RunFolderError: the file cannot be written.
    """
    left_out = config.dataset.collecting()
    groups = _groups(config, left_out)
    built = built_pairs(config.method, groups, config.build)
    counts = {name: count for name, count in built.counts.items() if count}
    if not built.rows:
        raise DataError(
            f"method {config.method!r} makes no pair of {config.data}, which has {len(groups)} "
            f"prompts ({_in_words(counts)}); expected answers that differ: look at the settings of "
            "the method"
        )
    path = Path(config.output)
    with writing(path):
        write_atomically(path, jsonl_text(built.rows))
    tell_left_out(left_out, beside(path))
    _print_counts(config, groups, built, counts)
    return path


def _groups(config: BuildPairsConfig, left_out: list[LeftOut] | None) -> list[AnswerGroup]:
    """The answers that the method works on, with what it needs to know of them."""
    where: dict[str, Any] = {
        "split": config.split,
        "limit": config.limit,
        "dataset": config.dataset,
        "left_out": left_out,
    }
    if config.method == "tree":
        return _drawn_groups(config, where)
    if config.method == "demonstrations":
        return _demonstrated_groups(config, where)
    if config.method == "aspects":
        return load_aspect_groups(config.data, columns=config.columns, **where)
    row, columns = named("method", config.method, PAIR_BUILDERS), config.columns
    numbers = {name: getattr(columns, name) for name in row.numbers}
    numbers |= {name.lstrip("-"): name.lstrip("-") for name in config.build.factors}
    features = {"features": "features_model"}
    cells = {
        name: getattr(columns, name)
        for name in row.may
        if name != "error" and not (name in features and config.features_model)
    }
    optional = [name for name in row.may if (config.method, name) != ("design", "features")]
    if "error" in row.may:
        numbers["error"] = columns.error
    found = load_answer_groups(
        config.data, columns=columns, numbers=numbers, cells=cells, optional=optional, **where
    )
    return found if config.features_model is None else _with_features(config, found)


def _with_features(config: BuildPairsConfig, groups: list[AnswerGroup]) -> list[AnswerGroup]:
    """Answers with the states of a model at their ends; for `contrast` at the ends of prompts."""
    assert config.features_model is not None
    said = load_config(
        config.features_model, trust_remote_code=config.loading.trust_remote_code
    ).architectures
    writes = any(name.endswith(("CausalLM", "LMHeadModel")) for name in said or ())
    kind = AutoModelForCausalLM if writes else AutoModelForSequenceClassification
    model, _, reading = _model(config, kind, config.features_model)
    of_prompts = config.method == "contrast"
    texts = [("", str(one.prompt)) if of_prompts else (one.prompt, text)
             for one in groups for text in one.responses]  # fmt: skip
    rows = reading.rows([prompt for prompt, _ in texts], [text for _, text in texts])
    states = iter(end_states(model, rows, batch_size=config.batch_size).tolist())
    return [
        replace(one, cells={**one.cells, "features": tuple(next(states) for _ in one.responses)})
        for one in groups
    ]


def _drawn_groups(config: BuildPairsConfig, where: dict[str, Any]) -> list[AnswerGroup]:
    """Trees of responses to the prompts of the data, with scores where a model gives them."""
    left_out = where.pop("left_out")
    rows = dataset_rows(config.data, **where)

    def prompt_of(row: Row) -> Any:
        found = row_prompt(row, config.columns.prompt)
        return row.value("prompt") if found is None else found

    prompts = list(made_rows(prompt_of, rows, name=config.data, left_out=left_out))
    groups = _trees(config, prompts, depth=config.tree.depth)
    scorer = config.tree.reward_model
    return groups if scorer is None else _scored(config, scorer, groups)


def _demonstrated_groups(config: BuildPairsConfig, where: dict[str, Any]) -> list[AnswerGroup]:
    """The answers of the data, and as many responses of the policy as the tree has branches."""
    shown = load_answer_groups(
        config.data, columns=config.columns, numbers={}, cells={}, optional=[], **where
    )
    drawn = _trees(config, [one.prompt for one in shown], depth=1)
    return [
        AnswerGroup(
            one.prompt,
            one.responses + other.responses,
            one.ended + other.ended,
            {},
            {"drawn": (False,) * len(one.responses) + (True,) * len(other.responses)},
        )
        for one, other in zip(shown, drawn, strict=True)
    ]


def _trees(config: BuildPairsConfig, prompts: list[Any], *, depth: int) -> list[AnswerGroup]:
    """Responses of the policy to each prompt."""
    tree = config.tree
    if tree.policy is None:
        raise ConfigError(
            f"method {config.method!r} has no tree.policy; expected a model that writes"
        )
    model, tokenizer, _ = _model(config, AutoModelForCausalLM, tree.policy)
    reading = written_by(tokenizer)
    set_seed(config.build.seed)
    sampling = Sampling(
        tree.max_new_tokens,
        temperature=tree.temperature,
        suppress_tokens=undrawable_ids(tokenizer, model),
    )
    groups = []
    for prompt, ids in zip(prompts, reading.prompt_rows(prompts, where=config.data), strict=True):
        leaves = tree_samples(
            model,
            ids,
            depth=depth,
            branches=tree.branches,
            sampling=sampling,
            pad_token_id=pad_token_id(tokenizer),
            eos_token_id=reading.turn_ends,
        )
        texts = [decoded_response(tokenizer, ids, leaf.ids).response for leaf in leaves]
        ended = tuple(leaf.ended for leaf in leaves)
        cells = {"tokens": tuple(leaf.ids for leaf in leaves)}
        groups.append(AnswerGroup(prompt, tuple(texts), ended, {}, cells))
    return groups


def _scored(
    config: BuildPairsConfig, reward_model: str, groups: list[AnswerGroup]
) -> list[AnswerGroup]:
    scores = named_text_scorer(
        reward_model,
        reading=config.reading,
        batch_size=config.batch_size,
        device=config.device,
        **vars(config.loading),
    )
    prompts = [one.prompt for one in groups for _ in one.responses]
    texts = [text for one in groups for text in one.responses]
    found = iter(scores(prompts, texts, [end for one in groups for end in one.ended]).tolist())
    return [
        replace(one, numbers={"score": tuple(next(found) for _ in one.responses)}) for one in groups
    ]


def _model(config: BuildPairsConfig, kind: Any, name: str) -> tuple[Any, Any, Any]:
    loading = config.loading
    model = load_model(kind, name, device=config.device, **loading.of_frozen)
    tokenizer = load_tokenizer(
        name, trust_remote_code=loading.trust_remote_code, pad_token=loading.pad_token
    )
    return model, tokenizer, reading_of(model, tokenizer, config.reading)


def _require_settings_of_its_own(config: BuildPairsConfig) -> None:
    """Raise ConfigError at a setting of another method: it would be passed over in silence."""
    row, usual = PAIR_BUILDERS[config.method], BuilderSettings()
    wrong = [
        f"build.{one.name}"
        for one in fields(usual)
        if one.name not in row.settings
        and getattr(config.build, one.name) != getattr(usual, one.name)
    ]
    if config.features_model and "features_model" not in row.models:
        wrong.append("features_model")
    if config.tree != TreeSettings() and "tree.policy" not in row.models:
        wrong.append("tree")
    if config.tree.reward_model and "tree.reward_model" not in row.models:
        wrong.append("tree.reward_model")
    if wrong:
        own = [*(f"build.{name}" for name in row.settings), *row.models]
        raise ConfigError(
            f"method {config.method!r} has no {', '.join(wrong)}; expected among {', '.join(own)}"
        )


def _in_words(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items()) or "nothing was left out"


def _print_counts(
    config: BuildPairsConfig, groups: Sequence[AnswerGroup], built: Built, counts: dict[str, int]
) -> None:
    table = Table("", "count", title=f"build-pairs by {config.method}")
    table.add_row("prompts", str(len(groups)))
    table.add_row("answers", str(sum(len(one.responses) for one in groups)))
    for name, count in counts.items():
        table.add_row(name, str(count))
    table.add_row("rows written", str(len(built.rows)), style="bold")
    Console().print(table)
    print(f"{len(built.rows)} rows: {config.output}")
