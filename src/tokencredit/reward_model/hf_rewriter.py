"""A language model that rewrites answers into better ones, as a reward on every token.

It has learnt to map a worse answer to the better one and the better one to itself. Asked to write
down an answer that it has just read, it finds the tokens likely that it would keep.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tokencredit.errors import ConfigError, DataError, ModelError
from tokencredit.logprobs import token_logprobs
from tokencredit.models.hf_loading import context_length
from tokencredit.models.hf_logprobs import response_statistics
from tokencredit.text.hf_encoding import EncodedResponses
from tokencredit.text.hf_reading import Reading

TEMPLATE = "{prompt}{response}\n\nBetter answer:\n"
INSTRUCTION = "Write your last answer again, and better. If it is good, repeat it."

Prompt = str | Sequence[Mapping[str, str]]


@dataclass(frozen=True)
class RewriterLogprobs:
    """What a rewriter says about responses that it has read.

    Attributes:
        encoded: the rewriting prompts and responses in the rewriter's own tokens, with the
            characters of each response token.
        logprobs: of each response token, in nats; zero outside `encoded.batch.response_mask`.
        likeliest_logprobs: of the token that it would rather have written in the same place.
    """

    encoded: EncodedResponses
    logprobs: Float[Tensor, "batch time"]
    likeliest_logprobs: Float[Tensor, "batch time"]


def rewriting_prompt(
    prompt: Prompt, response: str, *, template: str = TEMPLATE, instruction: str = INSTRUCTION
) -> str | list[dict[str, str]]:
    r"""What a rewriter reads before it writes.

    Args:
        prompt: text, or the messages of a conversation so far.
        response: the answer to rewrite.
        template: of texts; holds `{prompt}` and `{response}` once each.
        instruction: of conversations: what the user says after the answer.

    Raises:
        ConfigError: the template lacks a place or has one twice.

    >>> rewriting_prompt("2 + 2 =", " 5", template="{prompt}{response}\nBetter:")
    '2 + 2 = 5\nBetter:'
    >>> rewriting_prompt([{"role": "user", "content": "2 + 2?"}], "5", instruction="Again.")[1:]
    [{'role': 'assistant', 'content': '5'}, {'role': 'user', 'content': 'Again.'}]
    """
    if not isinstance(prompt, str):
        said = [*map(dict, prompt), {"role": "assistant", "content": response}]
        return [*said, {"role": "user", "content": instruction}]
    require_template(template)
    # In one pass, since a prompt may hold the text "{response}".
    texts = {"{prompt}": prompt, "{response}": response}
    return re.sub(r"\{prompt\}|\{response\}", lambda place: texts[place[0]], template)


def require_template(template: str) -> None:
    """The template has each place once.

    Raises:
        ConfigError: it has not.
    """
    counts = {place: template.count(place) for place in ("{prompt}", "{response}")}
    if any(count != 1 for count in counts.values()):
        raise ConfigError(
            f"template is {template!r}; expected '{{prompt}}' and '{{response}}' once each, as in "
            f"{TEMPLATE!r}"
        )


def stored_templates(model: nn.Module) -> tuple[str, str]:
    """Template and instruction that a rewriter was trained with.

    Raises:
        ModelError: its configuration does not say.
    """
    config: Any = model.config
    found = [getattr(config, f"rewriter_{name}", None) for name in ("template", "instruction")]
    if None in found:
        raise ModelError(
            f"the configuration of {config.name_or_path!r} has no rewriter_template; expected a "
            "rewriter: train one with `tokencredit train-rewriter`"
        )
    return str(found[0]), str(found[1])


def rewriter_logprobs(
    model: nn.Module,
    reading: Reading,
    prompts: Sequence[Prompt],
    responses: Sequence[str],
    *,
    ended: bool | Sequence[bool] = True,
    micro_batch_size: int | None = None,
) -> RewriterLogprobs:
    """Log-probability of each response token when the rewriter has read that very response.

        log π_rewriter(y_t | x, y, y_{<t})

    With the likeliest log-probabilities beside them this is what `likelihood_credit` needs. Tokens
    are the rewriter's; `encoded.response_spans` says which characters they stand for, and
    `project_token_scores` carries token scores over to the tokens of a policy.

    Args:
        model: a causal language model that `train-rewriter` made: its configuration holds the
            template.
        reading: how it reads.
        prompts: texts or conversations.
        responses: what it reads and is asked to write, one per prompt.
        ended: as in `Reading.encoded`.
        micro_batch_size: rows per forward pass; None for all at once.

    Raises:
        ModelError: the configuration holds no template, or as in `Reading.encoded`.
        DataError: prompts and responses differ in number or kind, or a row is longer than the
            model can read.
        NumericError: the model gives NaN or infinite values.

    Source: Zhou et al. 2024, arXiv 2409.00162 (a reward model trained by sequence likelihood to map
    the worse answer to the better one and the better one to itself).
    """
    template, instruction = stored_templates(model)
    if len(prompts) != len(responses):
        raise DataError(f"{len(prompts)} prompts and {len(responses)} responses; expected one each")
    sources: list[Any] = [
        rewriting_prompt(prompt, response, template=template, instruction=instruction)
        for prompt, response in zip(prompts, responses, strict=True)
    ]
    length = context_length(model, reading.tokenizer)
    encoded = reading.encoded(sources, responses, ended=ended, max_length=length)
    both = response_statistics(
        model, encoded.batch, _own_and_likeliest, micro_batch_size=micro_batch_size
    )
    return RewriterLogprobs(encoded, both[..., 0], both[..., 1])


def _own_and_likeliest(
    logits: Float[Tensor, "tokens vocab"], token_ids: Int[Tensor, "tokens"]
) -> Float[Tensor, "tokens two"]:
    """Log-probability of the token that is there, and of the one the model likes best."""
    ids = (token_ids, logits.argmax(-1))
    return torch.stack([token_logprobs(logits, some) for some in ids], dim=-1)
