"""Guided decoding in a loop of our own, which `generate(custom_generate=...)` runs.

What `generate()` itself cannot do: leave finished rows unscored without being told how, write down
each step, and let a head on the language model's own trunk score without a pass of its own.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList
from transformers.utils import ModelOutput

from tokencredit.decoding.candidates.hf_running_text import RunningText
from tokencredit.decoding.candidates.hf_shared_trunk import SharedTrunkScorer
from tokencredit.decoding.hf_guide import GuidedStep, RewardGuide
from tokencredit.decoding.rules import chosen_tokens, guidance_kl
from tokencredit.errors import ConfigError
from tokencredit.models.hf_architecture import require_room

# Steps with more candidates than this (the whole vocabulary, for example) are not written down.
_RECORDED = 256


@dataclass
class GuidedOutput(ModelOutput):  # type: ignore[misc]
    """Responses, and what was known at each of their tokens; zero outside the response mask.

    Column t is about response token t. `chosen_scores - prefix_scores` is what a token added to
    the score: its reward in `prefix_difference_credit`.

    Attributes:
        sequences: prompts and responses, padded after a finished one.
        response_mask: True on response tokens, the one that ends a response included.
        chosen_scores: of the text with the chosen token, in nats.
        prefix_scores: of the text before it; zero from `VocabScorer`.
        lm_logprobs: of the chosen token by the language model, before guidance and temperature.
        guided_logprobs: of the chosen token by the distribution that it was drawn from; of greedy
            search, that whose mode it is.
        guidance_kl: divergence of that distribution from the language model's, in nats.
        candidate_ids: the tokens that were scored; None where there are more than 256 in a step.
        candidate_mask: True on candidates that count.
        candidate_scores: of the text with each candidate.
        candidate_logprobs: of each candidate by the language model.
    """

    sequences: Tensor | None = None
    response_mask: Tensor | None = None
    chosen_scores: Tensor | None = None
    prefix_scores: Tensor | None = None
    lm_logprobs: Tensor | None = None
    guided_logprobs: Tensor | None = None
    guidance_kl: Tensor | None = None
    candidate_ids: Tensor | None = None
    candidate_mask: Tensor | None = None
    candidate_scores: Tensor | None = None
    candidate_logprobs: Tensor | None = None


@torch.no_grad()
def guided_generate(
    model: Any,
    input_ids: Int[Tensor, "batch prompt"],
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    generator: torch.Generator | None = None,
    **model_kwargs: Any,
) -> GuidedOutput | Int[Tensor, "batch sequence"]:
    """Responses drawn under a `RewardGuide`, as `generate()` would draw them.

    Called by `model.generate(ids, attention_mask=mask, logits_processor=[guide],
    custom_generate=guided_generate, ...)`: all options of `generate()` that concern greedy search
    and sampling hold, and tokens are those that `generate()` itself would give with the guide.

    Args:
        model: a causal language model in evaluation mode.
        input_ids: prompts, padded on the left.
        logits_processor: one of them a `RewardGuide`.
        stopping_criteria: as `generate()` makes them.
        generation_config: `return_dict_in_generate` asks for a `GuidedOutput`.
        generator: of the random numbers; the global one by default.
        model_kwargs: of them, only the attention mask is read.

    Returns:
        Ids of prompts and responses, or a `GuidedOutput`.

    Raises:
        ConfigError: there is no guide or more than one, or beams or an assistant are asked for.
        DataError: prompt and response do not fit the context of the language model.
    """
    guide = _the_guide(logits_processor, generation_config)
    mask = model_kwargs.get("attention_mask")
    mask = torch.ones_like(input_ids) if mask is None else mask
    mask = mask.bool()
    new_tokens = (stopping_criteria.max_length or mask.shape[1]) - mask.shape[1]
    require_room(model, int(mask.sum(-1).max()) + new_tokens)
    next_logits = _NextLogits(model, guide)
    ids, active = input_ids, torch.ones(len(input_ids), dtype=torch.bool, device=input_ids.device)
    padding = _padding_id(generation_config)
    temperature = 1.0 if generation_config.do_sample else 0.0
    record = _Record()
    while bool(active.any()):
        logits = next_logits(ids, mask)
        for processor in logits_processor:
            is_guide = processor is guide
            logits = (
                guide.guided_logits(ids, logits, mask, active)
                if is_guide
                else processor(ids, logits)
            )
        tokens = chosen_tokens(logits, temperature=temperature, generator=generator)
        tokens = tokens.masked_fill(~active, padding)
        assert guide.last_step is not None
        record.add(guide.last_step, logits, tokens, active)
        ids = torch.cat([ids, tokens[:, None]], dim=-1)
        mask = pad(mask, (0, 1), value=True)
        active = active & ~stopping_criteria(ids, None)
    return record.output(ids) if generation_config.return_dict_in_generate else ids


class _NextLogits:
    """Logits of the next token, by the scorer's own pass where that predicts as well."""

    def __init__(self, model: Any, guide: RewardGuide) -> None:
        shared = guide.scorer if isinstance(guide.scorer, SharedTrunkScorer) else None
        self.shared = shared if shared is not None and shared.model is model else None
        self.text = RunningText(model)

    def __call__(
        self, ids: Int[Tensor, "batch time"], mask: Bool[Tensor, "batch time"]
    ) -> Float[Tensor, "batch vocab"]:
        """The logits of the next token, in float32."""
        if self.shared is not None:
            return self.shared.next_logits(ids, mask)
        return self.text.outputs(ids, mask)[:, -1].float()


class _Record:
    """What `GuidedOutput` tells, collected step by step."""

    def __init__(self) -> None:
        self.columns: dict[str, list[Tensor]] = {}
        self.steps: list[GuidedStep] | None = []

    def add(
        self,
        step: GuidedStep,
        logits: Float[Tensor, "batch vocab"],
        tokens: Int[Tensor, "batch"],
        active: Bool[Tensor, "batch"],
    ) -> None:
        """Keep one more step: what the guide knew, the final logits, and what was chosen."""
        is_chosen = (step.candidate_ids == tokens[:, None]) & step.candidate_mask
        chosen = is_chosen.long().argmax(-1, keepdim=True)
        values = {
            "chosen_scores": step.candidate_scores.gather(-1, chosen)[:, 0],
            "prefix_scores": step.prefix_scores,
            "lm_logprobs": step.logprobs.gather(-1, tokens[:, None])[:, 0],
            "guided_logprobs": logits.log_softmax(-1).gather(-1, tokens[:, None])[:, 0],
            "guidance_kl": guidance_kl(logits, step.logprobs),
        }
        self.columns.setdefault("response_mask", []).append(active)
        for name, value in values.items():
            self.columns.setdefault(name, []).append(value.masked_fill(~active, 0.0))
        if step.candidate_ids.shape[1] > _RECORDED:
            self.steps = None
        elif self.steps is not None:
            own = step.logprobs.gather(-1, step.candidate_ids)
            self.steps.append(step._replace(logprobs=own))

    def output(self, ids: Int[Tensor, "batch sequence"]) -> GuidedOutput:
        """All steps put together."""
        columns = {name: torch.stack(values, dim=1) for name, values in self.columns.items()}
        return GuidedOutput(sequences=ids, **columns, **self._candidates())

    def _candidates(self) -> dict[str, Tensor]:
        """Candidates of all steps, as wide as the widest."""
        if not self.steps:
            return {}
        widest = max(step.candidate_ids.shape[1] for step in self.steps)
        padded = [
            [pad(value, (0, widest - value.shape[1])) for value in (*step[:3], step.logprobs)]
            for step in self.steps
        ]
        ids, mask, scores, logprobs = (
            torch.stack(values, dim=1) for values in zip(*padded, strict=True)
        )
        return {
            "candidate_ids": ids.masked_fill(~mask, 0),
            "candidate_mask": mask,
            "candidate_scores": scores.masked_fill(~mask, 0.0),
            "candidate_logprobs": logprobs.masked_fill(~mask, 0.0),
        }


def _the_guide(processors: LogitsProcessorList, config: GenerationConfig) -> RewardGuide:
    """The one guide among the processors, of a search that the loop knows."""
    guides = [processor for processor in processors if isinstance(processor, RewardGuide)]
    if len(guides) != 1:
        raise ConfigError(
            f"there are {len(guides)} guides among the logits processors; expected one: "
            "generate(..., logits_processor=[RewardGuide(...)], custom_generate=guided_generate)"
        )
    if (config.num_beams or 1) > 1:
        raise ConfigError(
            f"num_beams is {config.num_beams}; expected greedy search or sampling: leave "
            "custom_generate out to have beams with a guide"
        )
    return guides[0]


def _padding_id(config: GenerationConfig) -> int:
    """The id that fills a row after its finished response."""
    if config.pad_token_id is not None:
        return int(config.pad_token_id)
    end = config.eos_token_id
    return int((end[0] if isinstance(end, list) else end) or 0)
