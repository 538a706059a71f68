"""Responses as a reward model over the vocabulary sees them: in reports, and while it guides."""

import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from tokencredit.batch import ResponseBatch, rows_of_like_length
from tokencredit.decoding.rules import GUIDANCE_METHODS
from tokencredit.errors import TokenCreditWarning
from tokencredit.evaluation.prefix_accuracy import FRACTIONS, tokens_at_fractions
from tokencredit.masking import last_true_index
from tokencredit.models.hf_loading import load_model, load_tokenizer
from tokencredit.models.hf_logprobs import response_logprobs, response_statistics
from tokencredit.models.hf_vocabularies import require_same_vocabulary
from tokencredit.reward_model.losses.vocabulary import token_values
from tokencredit.text.hf_reading import Reading
from tokencredit.text.hf_token_rows import EncodedText, response_batch
from tokencredit.text.hf_written_rows import ended_responses

VocabularyObjective = Literal["farma", "genarm", "cd-fudge", "cd-q"]

METHOD_OF_OBJECTIVE: dict[str, str] = {
    "farma": "farma",
    "genarm": "genarm",
    "cd-fudge": "cd",
    "cd-q": "cd",
}
"""The method of `generate` that each objective of `train-vocabulary-reward` is made for."""


def load_vocabulary_reward(
    name_or_path: str, policy_tokenizer: PreTrainedTokenizerBase, *, method: str, **loading: Any
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model that scores every next token of a policy, and its tokenizer.

    Args:
        name_or_path: a folder or a Hub id.
        policy_tokenizer: of the model that is guided. Tokens that the reward model alone knows do
            no harm, nor does a head that is wider than the tokenizer.
        method: of `GUIDANCE_METHODS`, one that needs a model over the vocabulary; warns where the
            model was trained for another.
        **loading: as `load_model` takes it.

    Raises:
        ModelError: nothing that can be loaded is there, weights of the language model are missing
            (of a sequence classifier, for example), or a token of the policy has another id there.
    """
    tokenizer = load_tokenizer(
        name_or_path, trust_remote_code=bool(loading.get("trust_remote_code", False))
    )
    require_same_vocabulary(policy_tokenizer, tokenizer, argument="reward_model")
    model = load_model(
        AutoModelForCausalLM,
        name_or_path,
        expected=f"a causal language model for method {method!r}, as `train-vocabulary-reward` "
        "makes it: for a model with one score take another method, such as 'pargs'",
        **loading,
    )
    trained = getattr(model.config, "vocabulary_objective", None)
    fitting = METHOD_OF_OBJECTIVE.get(str(trained), method)
    if fitting != method:
        warnings.warn(
            f"method is {method!r} and the reward model was trained by objective {trained!r}, "
            f"whose logits mean something else; expected method {fitting!r}",
            TokenCreditWarning,
            stacklevel=2,
        )
    return model, tokenizer


def guiding_scores(method: str) -> Literal["logits", "logprobs"]:
    """What a method adds to the log-probabilities of the policy, as `VocabScorer` names it.

    Args:
        method: of `GUIDANCE_METHODS`; an objective of training that is no method adds logits.
    """
    row = GUIDANCE_METHODS.get(method)
    return "logits" if row is None else row.vocabulary_scores


def vocabulary_prefix_scores(
    model: PreTrainedModel,
    batch: ResponseBatch,
    *,
    method: str,
    over_tokens: Literal["sum", "mean"] = "sum",
    micro_batch_size: int | None = None,
) -> Float[Tensor, "batch time"]:
    """What the model says of the text up to and with each response token.

        z_{y_t}(x, y_{<t})   or   Σ_{i ≤ t} log π_r(y_i | x, y_{<i})

    Args:
        model: a causal language model in evaluation mode.
        batch: in its own tokens.
        method: the second is that of methods that add log-probabilities, as of `guiding_scores`.
        over_tokens: of the second: `mean` divides by the number of tokens so far.
        micro_batch_size: rows per forward pass at most; None sets no limit of its own.

    Returns:
        Float32, zero where `batch.response_mask` is False.

    Raises:
        DataError, ModelError, NumericError: as `response_statistics`.
    """
    if guiding_scores(method) == "logits":
        return response_statistics(model, batch, token_values, micro_batch_size=micro_batch_size)
    logprobs = response_logprobs(model, batch, micro_batch_size=micro_batch_size)
    mask = batch.response_mask.to(logprobs.device)
    sums = logprobs.cumsum(-1)
    if over_tokens == "mean":
        sums = sums / mask.cumsum(-1).clamp(min=1)
    return sums.masked_fill(~mask, 0.0)


def vocabulary_sequence_scores(
    model: PreTrainedModel, batch: ResponseBatch, *, method: str, reading: Reading
) -> Float[Tensor, "batch"]:
    """What the model says of whole responses: the last value, or the sum of log-probabilities.

    An end of sequence is left out where the model was trained without. A response that is nothing
    else scores 0.

    Args:
        model: a causal language model in evaluation mode.
        batch: in its own tokens.
        method: as of `vocabulary_prefix_scores`.
        reading: of the model.
    """
    mask = batch.response_mask
    if reading.template == "plain" and not reading.append_eos:
        mask = mask & ~ended_responses(batch, reading.turn_ends)
        batch = ResponseBatch(batch.prompt_ids, batch.prompt_mask, batch.response_ids, mask)
    scores = vocabulary_prefix_scores(model, batch, method=method)
    last = last_true_index(mask).to(scores.device)
    found = scores.gather(-1, last.clamp(min=0)[:, None])[:, 0]
    return found.masked_fill(last < 0, 0.0)


def vocabulary_fraction_scores(
    model: PreTrainedModel,
    rows: Sequence[EncodedText],
    *,
    method: str,
    over_tokens: Literal["sum", "mean"],
    pad_id: int,
    batch_size: int,
    context: AbstractContextManager[Any],
) -> Float[Tensor, "rows fractions"]:
    """Score of each response when 20, 40, 60, 80 and 100 % of it have been seen.

    Args:
        model: the trained one.
        rows: prompts with their responses, which reach to the end of the row.
        method: as of `vocabulary_prefix_scores`.
        over_tokens: as there.
        pad_id: fills padding.
        batch_size: rows per forward pass, those of like length together.
        context: autocast, or none.
    """
    model.eval()
    scores = torch.empty(len(rows), len(FRACTIONS))
    for some in rows_of_like_length(torch.tensor([len(row) for row in rows]), batch_size):
        batch = response_batch([rows[row] for row in some], pad_id=pad_id)
        read = tokens_at_fractions(batch.response_mask)
        if guiding_scores(method) == "logits":  # of the tokens that are read alone
            none = torch.zeros_like(batch.response_mask)
            batch = replace(batch, response_mask=none.scatter(-1, read, True))
        with context:
            found = vocabulary_prefix_scores(model, batch, method=method, over_tokens=over_tokens)
        scores[some] = found.cpu().gather(-1, read)
    return scores
