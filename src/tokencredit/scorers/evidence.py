"""Token scores of whole texts by every method that needs the reward model alone.

Those of `tokencredit.scorers.local` cost one forward pass. The others ask the reward model
again and again, or for gradients: they are there to look at it, and no policy trains on them.
"""

import difflib
from dataclasses import replace
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from tokencredit.batch import ResponseBatch, ResponseScores
from tokencredit.credit.gradients import gradient_times_input_credit, integrated_gradients_credit
from tokencredit.credit.perturbation import leave_one_out_credit, shapley_credit, window_credit
from tokencredit.credit.prefixes import smoothed_prefix_scores
from tokencredit.credit.redistribution import last_attention_received, mean_attention_received
from tokencredit.errors import ConfigError
from tokencredit.models.hf_architecture import text_positions
from tokencredit.models.hf_attention import recorded_attention
from tokencredit.reward_model.hf_perturbed import (
    response_embeddings,
    score_of_embeddings,
    scores_without_tokens,
)
from tokencredit.scorers.token_scores import CREDIT_NAMES, credited, required_prefix_scores


def generator_attention(
    policy: Any, batch: ResponseBatch, *, layer: int, kind: Literal["mean", "last"]
) -> Float[Tensor, "batch time"]:
    """Credit weights from the policy's own attention (ABC-D, ABC-D2).

    Args:
        policy: a causal language model.
        batch: its responses.
        layer: whose attention is read; -1 is the last.
        kind: what later tokens give on average ("mean"), or what the last token gives ("last").
    """
    start, time = batch.prompt_ids.shape[1], batch.response_ids.shape[1]
    rows = (start + torch.arange(time, device=batch.response_ids.device)).expand(len(batch), -1)
    mask = batch.attention_mask
    with recorded_attention(policy, rows, mask, layer=layer) as record:
        policy(
            input_ids=batch.input_ids,
            attention_mask=mask,
            position_ids=text_positions(mask),
            logits_to_keep=1,
            use_cache=False,
        )
    attention = record.rows[:, :, start:]
    if kind == "mean":
        return mean_attention_received(attention, batch.response_mask)
    return last_attention_received(attention, batch.response_mask)


TextCredit = Literal[
    "terminal",
    "uniform",
    "attention",
    "prefix-difference",
    "smoothed-prefix-difference",
    "gradient-times-input",
    "integrated-gradients",
    "leave-one-out",
    "window",
    "shapley",
]


TEXT_CREDITS: tuple[TextCredit, ...] = get_args(TextCredit)


ONE_PASS: tuple[str, ...] = (*CREDIT_NAMES, "smoothed-prefix-difference")


def text_credit(
    name: str,
    model: nn.Module,
    responses: ResponseBatch,
    scores: ResponseScores | None,
    *,
    attention_mask: Bool[Tensor, "batch sequence"] | Int[Tensor, "batch sequence"] | None = None,
    segment_ids: Int[Tensor, "batch time"] | None = None,
    credit_beta: float = 1.0,
    credit_decay: float = 0.5,
    gradient_steps: int = 16,
    window_width: int = 3,
    shapley_samples: int = 20,
    seed: int = 0,
    micro_batch_size: int = 32,
) -> Float[Tensor, "batch time"]:
    """Token scores of responses by the method of this name.

    Args:
        name: one of `TEXT_CREDITS`.
        model: the reward model.
        responses: in its own tokens.
        scores: what it said about them, with attention for "attention"; only the methods of
            `ONE_PASS` need it.
        attention_mask: real tokens of prompt and response, as in `score_responses`.
        segment_ids: what "leave-one-out", "window" and "shapley" take together, words for example;
            None takes token by token.
        credit_beta: the share of a score that "attention" spreads.
        credit_decay: share of the potential that "smoothed-prefix-difference" keeps per token.
        gradient_steps: gradients of "integrated-gradients", from the mean embedding of the
            vocabulary: no token, but as long as one.
        window_width: most tokens or segments that "window" reads at once.
        shapley_samples: orders of the segments that "shapley" tries out; even.
        seed: of the orders.
        micro_batch_size: texts per forward pass of "leave-one-out", "window" and "shapley".

    Returns:
        Token scores in nats; what they sum to stands with each method.

    Raises:
        ConfigError: there is no such method, or the scores were made without what it needs.
        ModelError: the method needs prefix scores and the model has none.
    """
    require_text_credit(name)
    mask = responses.response_mask
    match name:
        case "gradient-times-input" | "integrated-gradients":
            return _by_gradients(name, model, responses, attention_mask, gradient_steps)
        case "leave-one-out" | "window" | "shapley":
            kept = scores_without_tokens(
                model,
                responses,
                attention_mask=attention_mask,
                micro_batch_size=micro_batch_size,
            )
            if name == "leave-one-out":
                return leave_one_out_credit(kept, mask, segment_ids=segment_ids)
            if name == "window":
                return window_credit(kept, mask, width=window_width, segment_ids=segment_ids)
            return shapley_credit(
                kept,
                mask,
                samples=shapley_samples,
                generator=torch.Generator().manual_seed(seed),
                segment_ids=segment_ids,
            )
    if scores is None:
        raise ConfigError(f"credit {name!r} without scores; expected those of the responses")
    if name == "smoothed-prefix-difference":
        prefixes = required_prefix_scores(name, scores)
        smoothed = smoothed_prefix_scores(prefixes, mask, decay=credit_decay)
        scores = replace(scores, prefix_scores=smoothed)
        name = "prefix-difference"
    return credited(name, scores, mask, credit_beta=credit_beta)


def _by_gradients(
    name: str,
    model: nn.Module,
    responses: ResponseBatch,
    attention_mask: Bool[Tensor, "batch sequence"] | Int[Tensor, "batch sequence"] | None,
    steps: int,
) -> Float[Tensor, "batch time"]:
    score = score_of_embeddings(model, responses, attention_mask=attention_mask)
    embeddings = response_embeddings(model, responses)
    if name == "gradient-times-input":
        return gradient_times_input_credit(score, embeddings, responses.response_mask)
    table = model.get_input_embeddings().weight.detach()  # type: ignore[operator]
    baseline = table.mean(0).expand_as(embeddings)
    return integrated_gradients_credit(
        score, embeddings, baseline, responses.response_mask, steps=steps
    )


def credit_numbers(config: Any) -> dict[str, Any]:
    """The numbers of `text_credit` that `score-tokens` and `explain` have as settings."""
    names = (
        "credit_beta",
        "credit_decay",
        "gradient_steps",
        "window_width",
        "shapley_samples",
        "seed",
    )
    return {name: getattr(config, name) for name in names}


def require_text_credit(name: str, *, setting: str = "credit") -> None:
    """Raise ConfigError, with the nearest name, if no method of texts has this one."""
    if name not in TEXT_CREDITS:
        near = difflib.get_close_matches(name, TEXT_CREDITS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(
            f"{setting} is {name!r}; expected one of {', '.join(map(repr, TEXT_CREDITS))}{hint}"
        )
