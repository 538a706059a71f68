"""Texts as a reward model reads them, and what it says about them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from tokencredit.batch import Prompt, ResponseScores
from tokencredit.credit.methods import CreditSettings, credit_method
from tokencredit.models.hf_loading import context_length, pad_token_id
from tokencredit.reward_model.hf_scores import load_reward_model, score_responses
from tokencredit.scorers.credit_models import loaded_credit_models
from tokencredit.scorers.evidence import Responses
from tokencredit.scorers.local import LocalScorer
from tokencredit.scorers.policy_tokens import ended_scores
from tokencredit.scorers.segmentation import response_segments
from tokencredit.scorers.token_scores import CreditedScorer
from tokencredit.text.hf_encoding import EncodedResponses
from tokencredit.text.hf_rendering import Template, encoded_prompts, reads_eos
from tokencredit.text.segments import SegmentSettings


def loaded_reward_model(
    name_or_path: str, **loading: Any
) -> tuple[nn.Module, PreTrainedTokenizerBase]:
    """A reward model and its tokenizer, which has a pad token.

    Args:
        name_or_path: a folder or a Hub id.
        **loading: as `load_reward_model` takes it.

    Raises:
        ConfigError: the dtype is none of those that `load_model` knows.
        ModelError: as `load_reward_model`, or there is no pad token.
    """
    model, tokenizer = load_reward_model(name_or_path, **loading)
    pad_token_id(tokenizer)
    return model, tokenizer


def scored_texts(
    reward_model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    responses: Sequence[str],
    *,
    template: Template = "auto",
    attention_layer: int | None = None,
    micro_batch_size: int | None = None,
) -> tuple[EncodedResponses, ResponseScores]:
    """Responses in the reward model's own tokens, and what it says about them.

    They are whole responses, and end with the end of sequence if the model learnt on such.

    Args:
        reward_model: a sequence-classification model.
        tokenizer: its tokenizer.
        prompts: texts or conversations; an empty text stands for the start of a sequence.
        responses: one per prompt.
        template: as in `encoded_prompts`.
        attention_layer: whose attention to record; None for none.
        micro_batch_size: responses per forward pass; None for all at once.

    Raises:
        DataError, ModelError: as `encoded_prompts`.
        NumericError: a score is NaN or infinite.
    """
    encoded = encoded_prompts(
        tokenizer,
        prompts,
        responses,
        template=template,
        append_eos=bool(reads_eos(reward_model)),
        max_length=context_length(reward_model, tokenizer),
        device=next(reward_model.parameters()).device,
    )
    scores = score_responses(
        reward_model,
        encoded.batch,
        attention_mask=encoded.attention_mask,
        attention_layer=attention_layer,
        micro_batch_size=micro_batch_size,
    )
    return encoded, scores


@dataclass(frozen=True)
class PaidTexts:
    """Responses in the tokens of their scorer, and what each token is paid.

    Attributes:
        encoded: prompts and responses, with the characters of each token.
        sequence_scores: of each response, in nats.
        token_scores: by each credit, of each token, in nats.
    """

    encoded: EncodedResponses
    sequence_scores: Float[Tensor, "batch"]
    token_scores: tuple[Float[Tensor, "batch time"], ...]


def loaded_credited_scorer(
    reward_model: str,
    credit: CreditSettings,
    segments: SegmentSettings,
    *,
    template: Template,
    micro_batch_size: int,
    loading: Any,
    device: str | None,
) -> CreditedScorer:
    """A reward model with a credit, for responses in the reward model's own tokens.

    Args:
        reward_model: folder or Hub id.
        credit: the method and its options.
        segments: how responses are cut.
        template: as in `encoded_prompts`.
        micro_batch_size: responses per forward pass.
        loading: `dtype`, `attn_implementation`, `pad_token` and `trust_remote_code`.
        device: to compute on; None for the CPU.

    Raises:
        ConfigError, DataError, ModelError: as `loaded_reward_model` and `loaded_credit_models`.
    """
    model, tokenizer = loaded_reward_model(reward_model, device=device, **vars(loading))
    others = {name: value for name, value in vars(loading).items() if name != "pad_token"}
    models = loaded_credit_models(credit, tokenizer, loading={**others, "device": device})
    scorer = LocalScorer(model, tokenizer, tokenizer, template, credit.layer, micro_batch_size)
    return CreditedScorer(scorer, tokenizer, credit, models, segments, micro_batch_size)


def paid_texts(
    credited: Sequence[CreditedScorer], prompts: Sequence[Prompt], responses: Sequence[str]
) -> PaidTexts:
    """What each token of whole responses is paid, in the reward model's own tokens.

    One forward pass serves every credit that needs no more.

    Args:
        credited: of one `LocalScorer` that reads its own tokens, as `loaded_credited_scorer` makes
            it.
        prompts: texts or conversations; an empty text stands for the start of a sequence.
        responses: one per prompt.

    Raises:
        DataError, ModelError: as `encoded_prompts`.
        NumericError: a score is NaN or infinite.
    """
    scorer = credited[0].scorer
    assert isinstance(scorer, LocalScorer)
    attends = any("attention" in credit_method(one.credit.method).needs for one in credited)
    encoded, scores = scored_texts(
        scorer.model,
        scorer.tokenizer,
        prompts,
        responses,
        template=scorer.template,
        attention_layer=scorer.attention_layer if attends else None,
        micro_batch_size=scorer.micro_batch_size,
    )
    scores = ended_scores(scores, encoded.batch.response_mask)
    paid = []
    for one in credited:
        asked = Responses(
            encoded.batch,
            attention_mask=encoded.attention_mask.bool(),
            segment_ids=response_segments(one.segments, one.tokenizer, encoded.batch),
        )
        paid.append(one.paid(asked, scores=scores))
    return PaidTexts(encoded, scores.sequence_scores, tuple(paid))


def other_credit(
    credited: CreditedScorer, credit: CreditSettings, *, loading: Any, device: str | None
) -> CreditedScorer:
    """A credited scorer with another credit, whose own model is loaded if it needs one.

    Args:
        credited: as `loaded_credited_scorer` returns it.
        credit: the other method.
        loading: as there.
        device: as there.
    """
    others = {name: value for name, value in vars(loading).items() if name != "pad_token"}
    models = loaded_credit_models(credit, credited.tokenizer, loading={**others, "device": device})
    return replace(credited, credit=credit, models=models)
