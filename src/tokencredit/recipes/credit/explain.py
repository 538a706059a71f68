"""Show which tokens of one response a score came from: `tokencredit explain`.

    tokencredit explain --reward_model my/model --prompt "How was it?" --response " A good film."

One forward pass serves every credit method but those that ask the reward model again and again:
gradients, leave-one-out and Shapley values.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from tokencredit.aggregation.methods import CombinationSettings
from tokencredit.batch import Prompt
from tokencredit.credit.methods import credit_method
from tokencredit.credit.settings import CreditSettings, with_method
from tokencredit.errors import ConfigError, DataError
from tokencredit.evaluation.heatmap import heatmap_png
from tokencredit.evaluation.report import report_html
from tokencredit.evaluation.token_display import objective_shares
from tokencredit.evaluation.token_heatmap import TokenHeatmap, text_heatmap
from tokencredit.models.hf_loading import quiet_transformers
from tokencredit.preference.cells import read_messages
from tokencredit.preference.pairs import conversation_and_answer
from tokencredit.recipes.run.run_folder import write_atomically, writing
from tokencredit.recipes.run.shown_reading import print_reading
from tokencredit.recipes.settings import LoadingSettings, group, setting
from tokencredit.scorers.rewards import Rewards
from tokencredit.scorers.source_settings import RewardSource, required_sources
from tokencredit.scorers.text_rewards import (
    loaded_text_rewards,
    other_credit,
    paid_texts,
    reader_of,
)
from tokencredit.text.hf_token_rows import token_texts
from tokencredit.text.reading_settings import ReadingSettings
from tokencredit.text.segments import SegmentSettings


@dataclass(frozen=True)
class ExplainConfig:
    """Settings of one explanation."""

    response: str = ""
    """The text to explain, with its leading space if it has one; leave it out if `messages` end
    with it."""
    reward_model: str | None = None
    """Hub id or folder of a sequence-classification model with one or two outputs."""
    rewards: tuple[RewardSource, ...] = ()
    """Several sources of reward instead of `reward_model`, as in `train-policy`. Tokens are those
    of the first model among them."""
    combine: CombinationSettings = group(CombinationSettings)
    """How several sources become one reward."""
    prompt: str = ""
    """The prompt that it answers; empty for a text without one."""
    ended: bool = True
    """Whether the response ended; one that was cut off is read without what closes a response."""
    messages: str | None = None
    """The conversation that it answers, instead of `prompt`: a JSON file or JSON itself, a list of
    messages with `role` and `content`. Without a `response` the last message is explained."""
    methods: tuple[str, ...] = setting(("attention", "prefix-difference"), was="credit_methods")
    """Credit methods, one row of the heat map each. Models that read in both directions, such as
    BERT, score no prefixes: leave `prefix-difference` out for them."""
    output: str | None = None
    """File that ends in .html or .png; None prints to the terminal."""
    credit: CreditSettings = group(CreditSettings)
    """Options of the methods; `credit.method` is not read."""
    segments: SegmentSettings = group(SegmentSettings)
    """How the response is cut, for methods that need segments or to pay at their ends."""
    reading: ReadingSettings = group(ReadingSettings)
    """How the reward model reads texts, where its configuration does not say."""
    loading: LoadingSettings = group(LoadingSettings)
    """How models are loaded."""
    show_example: bool = False
    """Print one text as the reward model reads it: its tokens, and where scores are read."""
    device: str | None = None
    """Device to compute on, such as `cuda`; None for the CPU."""

    def __post_init__(self) -> None:
        required_sources(self.reward_model, self.rewards, combine=self.combine)
        if self.messages is not None and self.prompt:
            raise ConfigError("prompt and messages are both given; expected one of them")
        if not self.response and self.messages is None:
            raise ConfigError(
                "there is no response; expected one, or messages that end with the assistant's"
            )
        for name in self.methods:
            credit_method(name)
        if not self.methods:
            raise ConfigError("methods is empty; expected at least one")
        if self.output is not None and Path(self.output).suffix not in (".html", ".png"):
            raise ConfigError(
                f"output is {self.output!r}; expected a file name that ends in .html or .png, or "
                "none to print to the terminal"
            )


@quiet_transformers()
def explain(config: ExplainConfig) -> Path | None:
    """Draw the heat map of one response, one row for every credit method.

    Args:
        config: the settings.

    Returns:
        The file that was written; None where the heat map was printed.

    Raises:
        DataError: the messages cannot be read; the response is empty or longer than the reward
            model can read.
        ModelError: the reward model or its tokenizer is not there or lacks what is needed.
        NumericError: a score is NaN or infinite.
        RunFolderError: the output cannot be written.
    """
    heatmap = explanation(config)
    if config.output is None:
        Console().print(heatmap)
        return None
    path = Path(config.output)
    with writing(path):
        if path.suffix == ".html":
            page = report_html(
                "What each token is worth",
                notes=[f"Reward: {_names(config)}"],
                heatmaps=[heatmap.html()],
            )
            write_atomically(path, page)
        else:
            heatmap_png(heatmap.tokens, heatmap.scores, path, caption=heatmap.caption)
    print(f"heat map: {path}")
    return path


@quiet_transformers()
def explanation(config: ExplainConfig) -> TokenHeatmap:
    """The heat map of one response, one row for every credit method.

    Below the row of a method stand those of the objectives of a reward model that has several,
    times their weights, which add up to it. A notebook shows the result as `explain` draws it.

    Args:
        config: the settings; `output` is not read.

    Raises:
        DataError, ModelError, NumericError: as `explain`.
    """
    prompt, response = _asked(config)
    rewards = _rewards(config, prompt, response)
    found = paid_texts(rewards, [prompt], [response], ended=config.ended)
    (spans,) = found.encoded.response_spans
    (names,) = token_texts(rewards[0].credited.tokenizer, found.encoded, [response])
    rows: dict[str, list[float]] = {}
    parts: list[str] = []
    for method, scores, objectives in zip(
        config.methods, found.token_scores, found.objectives, strict=True
    ):
        own = {
            name: (
                one.weight_of(0),
                None if one.token_scores is None else one.token_scores[0].tolist(),
            )
            for name, one in objectives.items()
        }
        shares = objective_shares(method, own)
        rows |= {method: scores[0].tolist(), **shares}
        parts += shares
    score = found.sequence_scores.item()
    caption = f"score {score:+.3f} nats"
    if prompt:
        said = prompt if isinstance(prompt, str) else prompt[-1]["content"]
        caption += f", prompt: {said}"
    return text_heatmap(
        response,
        spans,
        names,
        rows,
        caption=caption,
        parts=tuple(parts),
        sequence_score=score,
    )


def _asked(config: ExplainConfig) -> tuple[Prompt, str]:
    """The prompt, a text or a conversation, and the response."""
    if config.messages is None:
        return config.prompt, config.response
    messages = read_messages(_json(config.messages))
    if config.response:
        return messages, config.response
    return conversation_and_answer("", messages)


def _json(text_or_file: str) -> Any:
    """JSON, or what a file holds of it: a list, or an object with the list under `messages`."""
    is_json = text_or_file.lstrip().startswith(("[", "{"))
    try:
        text = text_or_file if is_json else Path(text_or_file).read_text(encoding="utf-8-sig")
        value = json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            f"messages are {text_or_file!r:.200}, which cannot be read: {error}; expected JSON or "
            "the name of a file that holds it: a list of messages with 'role' and 'content'"
        ) from error
    inside = value.get("messages") if isinstance(value, dict) else None
    return value if inside is None else inside


def _rewards(config: ExplainConfig, prompt: Prompt, response: str) -> list[Rewards]:
    """The sources of reward, loaded once, with the credit of each method."""
    loading = {**vars(config.loading), "device": config.device}
    first, *others = [with_method(config.credit, name) for name in config.methods]
    loaded = loaded_text_rewards(
        required_sources(config.reward_model, config.rewards, combine=config.combine),
        first,
        config.segments,
        combine=config.combine,
        reading=config.reading,
        micro_batch_size=32,
        loading=loading,
    )
    example = (prompt, response) if config.show_example else None
    print_reading("reward model", reader_of(loaded)[1], example=example)
    return [loaded, *(other_credit(loaded, credit, loading=loading) for credit in others)]


def _names(config: ExplainConfig) -> str:
    sources = required_sources(config.reward_model, config.rewards, combine=config.combine)
    return ", ".join(one.model for one in sources)
