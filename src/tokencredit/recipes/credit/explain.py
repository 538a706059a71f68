"""Show which tokens of one response a score came from: `tokencredit explain`.

    tokencredit explain --reward_model my/model --prompt "How was it?" --response " A good film."

One forward pass serves every credit method but those that ask the reward model again and again:
gradients, leave-one-out and Shapley values.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console

from tokencredit.errors import ConfigError, RunFolderError
from tokencredit.evaluation.heatmap import heatmap_html, heatmap_png, heatmap_terminal
from tokencredit.evaluation.report import report_html
from tokencredit.evaluation.token_display import text_pieces, visible
from tokencredit.models.hf_loading import quiet_transformers
from tokencredit.recipes.run_folder import write_atomically
from tokencredit.scorers.evidence import (
    TextCredit,
    credit_numbers,
    require_text_credit,
    text_credit,
)
from tokencredit.scorers.texts import loaded_reward_model, scored_texts
from tokencredit.text.hf_rendering import Template, token_texts


@dataclass(frozen=True)
class ExplainConfig:
    """Settings of one explanation.

    Attributes:
        reward_model: Hub id or folder of a sequence-classification model with one or two outputs.
        response: the text to explain, with its leading space if it has one.
        prompt: the text that it answers; none for a text that stands alone.
        credit_methods: ways from the score to token scores, one row of the heat map each. Models
            that read in both directions, such as BERT, score no prefixes: leave
            `prefix-difference` out for them.
        output: file that ends in .html or .png; None prints to the terminal.
        credit_beta: share of the score that `attention` spreads; the rest stays on the last token.
        attention_layer: layer that `attention` reads; -1 is the last.
        credit_decay: share of the potential that `smoothed-prefix-difference` keeps per token.
        gradient_steps: gradients of `integrated-gradients`.
        window_width: most tokens that `window` reads at once.
        shapley_samples: orders of the tokens that `shapley` tries out; even.
        seed: of these orders.
        template: `chat` renders with the reward model's chat template, the prompt as a message of
            the user; `plain` joins prompt and response; `auto` is `chat` where the reward model
            has a chat template and there is a prompt.
        dtype: of the weights.
        attn_implementation: of transformers; None for its default.
        device: to compute on; None for the CPU.
        pad_token: token to pad with, where the tokenizer names none.
        trust_remote_code: run code that comes with the model; off unless you trust its author.
    """

    reward_model: str
    response: str
    prompt: str = ""
    credit_methods: tuple[TextCredit, ...] = ("attention", "prefix-difference")
    output: str | None = None
    credit_beta: float = 0.8
    attention_layer: int = -1
    credit_decay: float = 0.5
    gradient_steps: int = 16
    window_width: int = 3
    shapley_samples: int = 20
    seed: int = 0
    template: Template = "auto"
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = "float32"
    attn_implementation: str | None = None
    device: str | None = None
    pad_token: str | None = None
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        for name in self.credit_methods:
            require_text_credit(name, setting="one of credit_methods")
        if not self.credit_methods:
            raise ConfigError("credit_methods is empty; expected at least one")
        if self.output is not None and Path(self.output).suffix not in (".html", ".png"):
            raise ConfigError(
                f"output is {self.output!r}; expected a file name that ends in .html or .png, or "
                "none to print to the terminal"
            )
        if not self.prompt and self.template == "chat":
            raise ConfigError(
                "template is 'chat' but there is no prompt; expected one, or template 'plain' for "
                "a text that stands alone"
            )


@dataclass(frozen=True)
class _Explanation:
    """Pieces of the response's text, and what each method pays each of them, in nats."""

    sequence_score: float
    pieces: list[str]
    scores: dict[str, list[float]]


@quiet_transformers()
def explain(config: ExplainConfig) -> Path | None:
    """Draw the heat map of one response, one row for every credit method.

    Args:
        config: the settings.

    Returns:
        The file that was written; None where the heat map was printed.

    Raises:
        DataError: the response is empty or longer than the reward model can read.
        ModelError: the reward model or its tokenizer is not there or lacks what is needed.
        NumericError: a score is NaN or infinite.
        RunFolderError: the output cannot be written.
    """
    explanation = _explained(config)
    caption = f"score {explanation.sequence_score:+.3f} nats"
    if config.prompt:
        caption += f", prompt: {config.prompt}"
    if config.output is None:
        _print(explanation, caption)
        return None
    path = Path(config.output)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".html":
            heatmap = heatmap_html(explanation.pieces, explanation.scores, caption=caption)
            page = report_html(
                "What each token is worth",
                notes=[f"Reward model: {config.reward_model}"],
                heatmaps=[heatmap],
            )
            write_atomically(path, page)
        else:
            heatmap_png(explanation.pieces, explanation.scores, path, caption=caption)
    except OSError as error:
        raise RunFolderError(
            f"{path} cannot be written ({error}); expected a folder with room and permission"
        ) from error
    print(f"heat map: {path}")
    return path


def _explained(config: ExplainConfig) -> _Explanation:
    model, tokenizer = loaded_reward_model(
        config.reward_model,
        dtype=config.dtype,
        attn_implementation=config.attn_implementation,
        device=config.device,
        pad_token=config.pad_token,
        trust_remote_code=config.trust_remote_code,
    )
    encoded, scores = scored_texts(
        model,
        tokenizer,
        [config.prompt],
        [config.response],
        template=config.template if config.prompt else "plain",
        attention_layer=config.attention_layer if "attention" in config.credit_methods else None,
    )
    (names,), (spans,) = token_texts(tokenizer, encoded, [config.response]), encoded.response_spans
    paid = {}
    for method in config.credit_methods:
        token_scores = text_credit(
            method,
            model,
            encoded.batch,
            scores,
            attention_mask=encoded.attention_mask,
            **credit_numbers(config),
        )
        paid[method] = token_scores[0, : len(spans)].tolist()
    pieces, groups = text_pieces(config.response, spans, names)
    return _Explanation(
        scores.sequence_scores.item(),
        pieces,
        {method: [sum(row[i] for i in group) for group in groups] for method, row in paid.items()},
    )


def _print(explanation: _Explanation, caption: str) -> None:
    console = Console()
    console.print(visible(caption), markup=False, highlight=False)
    for method, scores in explanation.scores.items():
        console.print(f"\n{method}, sum {sum(scores):+.3f}", style="bold")
        console.print(heatmap_terminal(explanation.pieces, scores))
