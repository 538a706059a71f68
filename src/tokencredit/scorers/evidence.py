"""What a credit method is made from, gathered for a batch of responses."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from tokencredit.batch import Prompt, ResponseBatch, ResponseScores, RewardScorer, padded_rows
from tokencredit.credit.evidence import NEEDS, OF_SCORERS, Evidence
from tokencredit.credit.implicit import implicit_values
from tokencredit.credit.methods import credit_method
from tokencredit.credit.settings import CreditSettings
from tokencredit.errors import ConfigError, ModelError
from tokencredit.kept_tokens import ScoresOfKept
from tokencredit.masking import left_packed
from tokencredit.models.hf_architecture import text_positions
from tokencredit.models.hf_attention import recorded_attention
from tokencredit.models.hf_logprobs import response_logprobs, response_statistics
from tokencredit.reward_model.hf_perturbed import (
    distinct_subsets,
    response_embeddings,
    score_of_embeddings,
    scores_without_tokens,
)
from tokencredit.reward_model.hf_token_classifier import token_classifier_logits
from tokencredit.scorers.hf_credit_models import CreditModels
from tokencredit.scorers.hf_local import LocalScorer
from tokencredit.scorers.hf_policy_tokens import attended_tokens
from tokencredit.scorers.hf_pooled import PooledRewardModel
from tokencredit.scorers.hf_trained_reading import trained_segments
from tokencredit.scorers.python_rewards import FunctionScorer

AskPolicy = Callable[[Callable[[Any], Tensor]], Tensor]
"""Calls a function with the policy; what shards the policy gathers it around the call."""


@dataclass(frozen=True)
class Responses:
    """Responses that are to be paid, as their reader finds them.

    Attributes:
        batch: token ids and masks.
        conversations: what was asked, for a reward model that renders it itself; None takes the
            text of the prompt's ids.
        attention_mask: the tokens that the reward model reads, closing ones included, where the
            batch was encoded for this very model.
        segment_ids: of each response token, where the settings cut segments.
        ended: True for responses that have ended, where no token says so, as in texts; None for
            those whose last token says so.
    """

    batch: ResponseBatch
    conversations: Sequence[Prompt] | None = None
    attention_mask: Bool[Tensor, "batch sequence"] | None = None
    segment_ids: Int[Tensor, "batch time"] | None = None
    ended: Bool[Tensor, "batch"] | None = None


def response_scores(
    scorer: RewardScorer, responses: Responses, *, attention: bool = False
) -> ResponseScores:
    """What a scorer says of responses, closing tokens included where they are known."""
    keywords: dict[str, Any] = {"attention": attention, "conversations": responses.conversations}
    encoded_for_it = isinstance(scorer, LocalScorer | PooledRewardModel) and (
        scorer.reading is scorer.writer
    )
    if responses.attention_mask is not None and encoded_for_it:
        keywords["attention_mask"] = responses.attention_mask
    elif responses.ended is not None:
        keywords["ended"] = responses.ended
    if isinstance(scorer, FunctionScorer) and scorer.at_ends:
        keywords["segment_ids"] = responses.segment_ids
    return scorer(responses.batch, **keywords)


def require_evidence(settings: CreditSettings, scorer: RewardScorer, *, where: str) -> None:
    """Raise an error where a scorer cannot give what a credit method needs.

    Args:
        settings: name the method.
        scorer: of the responses.
        where: what the scorer is, for the message: "the reward model", for example.

    Raises:
        ConfigError: there is no such method.
        ModelError: the scorer lacks something; the message names it.
    """
    needs = credit_method(settings.method).needs
    lacking = [need for need in needs if need in OF_SCORERS and need not in scorer.gives]
    if lacking:
        given = ", ".join(need.replace("_", " ") for need in OF_SCORERS if need in scorer.gives)
        raise ModelError(
            f"credit method {settings.method!r} needs {NEEDS[lacking[0]]}, and {where} gives "
            f"{given}; expected {_INSTEAD.get(lacking[0], 'another method')}"
        )


_OF_ONE_PASS = {
    "sequence_scores",
    "prefix_scores",
    "position_scores",
    "attention",
    "quoted_scores",
}
_INSTEAD = {
    "prefix_scores": "a causal reward model, which scores prefixes, or credit method 'attention', "
    "or 'terminal', which needs the score alone",
    "position_scores": "a causal reward model in this process, or one that is read at last tokens",
    "attention": "one that offers attention, or another method",
    "quoted_scores": "a judge that quotes evidence, with judge.setup 'evidence', alone or with "
    "this credit as its own, or another method",
    "embeddings": "a reward model in this process, or another method",
}


def gathered_evidence(
    settings: CreditSettings,
    scorer: RewardScorer,
    responses: Responses,
    *,
    models: CreditModels | None = None,
    scores: ResponseScores | None = None,
    ask_policy: AskPolicy | None = None,
    micro_batch_size: int | None = None,
) -> Evidence:
    """All that the method of the settings needs to know about responses, and nothing else.

    Args:
        settings: the method and its options.
        scorer: of the responses.
        responses: what is paid.
        models: that the method needs besides the scorer.
        scores: what the scorer said of the responses, with attention if the method needs it; None
            asks it.
        ask_policy: of the policy that wrote the responses, where there is one.
        micro_batch_size: rows per forward pass of the other models.

    Raises:
        ConfigError: there is no such method, or it needs segments and there are none.
        ModelError: the scorer lacks what the method needs.
        DataError, NumericError: as the models that are asked.
    """
    method, batch = credit_method(settings.method), responses.batch
    models = models or CreditModels()
    needs = set(method.needs)
    require_evidence(settings, scorer, where="the reward model")
    if "segments" in needs and responses.segment_ids is None:
        raise ConfigError(
            f"credit method {settings.method!r} needs {NEEDS['segments']}; expected a kind of "
            "them: set segments.kind"
        )
    evidence = Evidence(
        batch.response_mask,
        segment_ids=responses.segment_ids,
        length_means=models.fitted.length_means,
        location=models.fitted.location if "location" in needs else None,
        dpo_beta=models.dpo_beta,
    )
    if needs & _OF_ONE_PASS:
        if scores is None:
            scores = response_scores(scorer, responses, attention="attention" in needs)
        found = {name: one for name, one in vars(scores).items() if name != "objectives"}
        evidence = replace(evidence, **found)
        if scores.position_scores is None:
            evidence = replace(evidence, position_scores=scores.prefix_scores)
    if needs & {"kept_tokens", "embeddings"}:
        evidence = replace(evidence, **_asked_again(needs, scorer, responses, micro_batch_size))
    if "policy_attention" in needs:
        ask = ask_policy or (lambda call: call(models.model))
        attention = ask(lambda policy: policy_attention(policy, batch, layer=settings.layer))
        evidence = replace(evidence, policy_attention=attention)
    if needs & {"log_ratio", "implicit_values", "token_classes", "two_prompts"}:
        found = _of_other_models(needs, settings, models, responses, micro_batch_size)
        evidence = replace(evidence, **found)
    return evidence


def _of_other_models(
    needs: set[Any],
    settings: CreditSettings,
    models: CreditModels,
    responses: Responses,
    size: int | None,
) -> dict[str, Any]:
    """What models besides the reward model say, by the names of `Evidence`."""
    batch = responses.batch
    if "log_ratio" in needs:
        pair = (models.model, models.reference)
        own, reference = (response_logprobs(some, batch, micro_batch_size=size) for some in pair)
        return {"policy_logprobs": own, "ref_logprobs": reference}
    if "implicit_values" in needs:
        return {"token_values": _token_values(models, batch, size)}
    if "token_classes" in needs:
        logits = token_classifier_logits(
            models.model,
            batch,
            attention_mask=responses.attention_mask,
            micro_batch_size=size,
        )
        return {"token_logits": logits}
    better, worse = (
        response_logprobs(models.model, _instructed(models, batch, text), micro_batch_size=size)
        for text in (settings.better_prompt, settings.worse_prompt)
    )
    return {"policy_logprobs": better, "ref_logprobs": worse}


def _token_values(
    models: CreditModels, batch: ResponseBatch, size: int | None
) -> dict[str, Float[Tensor, "batch time"]]:
    """Q of each token and V before it, as the logits of a policy trained by DPO imply them."""

    def values(
        logits: Float[Tensor, "tokens vocab"], token_ids: Int[Tensor, "tokens"]
    ) -> Float[Tensor, "tokens two"]:
        own = models.dpo_beta * logits.gather(-1, token_ids[:, None])[:, 0].float()
        return torch.stack([own, implicit_values(logits, dpo_beta=models.dpo_beta)], dim=-1)

    q, v = response_statistics(models.model, batch, values, micro_batch_size=size).unbind(-1)
    return {"q": q, "v": v}


def _instructed(models: CreditModels, batch: ResponseBatch, text: str) -> ResponseBatch:
    """Responses to prompts that begin with an instruction."""
    tokenizer: Any = models.tokenizer
    instruction = tokenizer(text, add_special_tokens=False)["input_ids"]
    rows = []
    for ids, real in zip(batch.prompt_ids, batch.prompt_mask, strict=True):
        row = ids[real].tolist()
        first = 1 if row[:1] == [tokenizer.bos_token_id] else 0  # what begins a sequence stays so
        rows.append([*row[:first], *instruction, *row[first:]])
    prompt_ids, prompt_mask = padded_rows(rows, fill=0, side="left")
    device = batch.prompt_ids.device
    return replace(batch, prompt_ids=prompt_ids.to(device), prompt_mask=prompt_mask.to(device))


def _asked_again(
    needs: set[Any], scorer: RewardScorer, responses: Responses, size: int | None
) -> dict[str, Any]:
    """Functions that ask the reward model as often as they are called."""
    batch = responses.batch
    local, rows = scorer if isinstance(scorer, LocalScorer) else None, None
    as_read = local is not None and trained_segments(local.model.config) is None
    if local is not None and as_read and not local.is_gated:
        encoded_for_it = local.reading is local.writer
        rows = local.own_rows(
            batch,
            responses.conversations,
            responses.attention_mask if encoded_for_it else None,
            responses.ended,
        )
    if local is None or rows is None:
        if "embeddings" in needs:
            raise ModelError(
                "gradients with respect to embeddings, of a reward model that reads other tokens "
                "than it is asked about, or is read at several positions; expected one with the "
                "vocabulary of the responses that is read at the last token"
            )
        return {"kept": scores_of_kept_tokens(scorer, responses, micro_batch_size=size)}
    own, real = rows.batch, rows.attention_mask
    more = own.response_ids.shape[1] - batch.response_ids.shape[1]  # columns of closing tokens
    if "kept_tokens" in needs:
        kept = scores_without_tokens(
            local.model, own, attention_mask=real, micro_batch_size=size or 32
        )
        return {"kept": lambda keep: kept(pad(keep, (0, more), value=True))}
    embeddings = response_embeddings(local.model, own)[:, : batch.response_ids.shape[1]]
    table = local.model.get_input_embeddings().weight.detach()  # type: ignore[operator]
    score = score_of_embeddings(local.model, own, attention_mask=real)
    return {
        "score_of_embeddings": lambda embeddings: score(pad(embeddings, (0, 0, 0, more))),
        "embeddings": embeddings,
        # The mean embedding of the vocabulary: no token, but as long as one.
        "baseline": table.mean(0).expand_as(embeddings),
    }


def scores_of_kept_tokens(
    scorer: RewardScorer, responses: Responses, *, micro_batch_size: int | None = None
) -> ScoresOfKept:
    """A function that scores responses when only some of their tokens stay, by any scorer.

    Args:
        scorer: of responses, whatever tokens its own model reads.
        responses: whole ones.
        micro_batch_size: responses per call of the scorer; None for 32.
    """
    batch, size = responses.batch, micro_batch_size or 32
    attended = attended_tokens(batch)

    def scores(keep: Bool[Tensor, "batch subsets time"]) -> Float[Tensor, "batch subsets"]:
        rows, kept, asked = distinct_subsets(keep)
        found = []
        for some in torch.split(torch.arange(len(rows), device=rows.device), size):
            part, of = batch[rows[some]], rows[some].tolist()
            stays = attended[rows[some]] & (kept[some] | ~part.response_mask)
            ids, real = left_packed(part.response_ids, stays)
            if not ids.shape[1]:  # nothing stays of any of them
                ids, real = part.response_ids[:, :1], part.response_mask[:, :1] & False
            shorter = ResponseBatch(part.prompt_ids, part.prompt_mask, ids, real)
            asked_of = responses.conversations
            chats = None if asked_of is None else [asked_of[row] for row in of]
            said = responses.ended
            ended: dict[str, Any] = {} if said is None else {"ended": said[rows[some]]}
            found.append(scorer(shorter, conversations=chats, **ended).sequence_scores)
        return torch.cat(found)[asked].view(keep.shape[:2])

    return scores


def policy_attention(
    policy: Any, batch: ResponseBatch, *, layer: int
) -> Float[Tensor, "batch time time"]:
    """Attention of a language model's response tokens to each other.

    Args:
        policy: a causal language model.
        batch: responses in its tokens.
        layer: whose attention is read; -1 is the last.
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
    return record.rows[:, :, start:]
