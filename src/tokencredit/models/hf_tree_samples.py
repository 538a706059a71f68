"""Responses that share their beginnings: several ways on at each of some places."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from tokencredit.batch import padded_rows
from tokencredit.errors import ConfigError
from tokencredit.models.hf_sampling import drawn_sequences, response_extent
from tokencredit.sampling import Sampling


@dataclass(frozen=True)
class TreeSample:
    """One response of a tree.

    Attributes:
        ids: of its tokens, up to and with the end of sequence.
        ended: whether it came to one.
        path: which branch it took at each place, from the first.
    """

    ids: tuple[int, ...]
    ended: bool
    path: tuple[int, ...]


def tree_samples(
    model: Any,
    prompt_ids: Sequence[int],
    *,
    depth: int,
    branches: int,
    sampling: Sampling,
    pad_token_id: int,
    eos_token_id: int | Sequence[int] | None,
) -> list[TreeSample]:
    """The leaves of a tree of responses to one prompt, drawn from the global random numbers.

    At the start, and after each of `depth` equal parts but the last, every beginning that has not
    ended is gone on with `branches` times. A beginning that has ended is one leaf. A depth of 1
    draws independent responses.

    Args:
        model: a causal language model.
        prompt_ids: of the prompt.
        depth: in how many parts a response is drawn.
        branches: ways on at each place.
        sampling: `max_new_tokens` is that of a whole response.
        pad_token_id: stands where there is no token.
        eos_token_id: ends a response; one, several or None.

    Returns:
        At most `branches` to the power of `depth` responses, in the order of their paths.

    Raises:
        ConfigError: the numbers do not fit each other.
        DataError: the prompt is empty, or does not fit the context with a response.

    Source: Qiu et al. 2024, arXiv 2402.10184, from notes on the paper; no code was found. Where
    they cut is not known to us: here all parts have the same number of tokens.
    """
    if depth < 1 or branches < 1 or depth > sampling.max_new_tokens:
        raise ConfigError(
            f"depth is {depth}, branches {branches} and max_new_tokens {sampling.max_new_tokens}; "
            "expected at least 1 of each, and a token for every part"
        )
    if branches > 1 and sampling.temperature == 0.0:
        raise ConfigError(
            f"temperature is 0 with {branches} branches, which would all be the same; expected one "
            "above 0"
        )
    device = next(model.parameters()).device
    leaves = [TreeSample((), False, ())]
    for part in range(depth):
        new = sampling.max_new_tokens * (part + 1) // depth
        new -= sampling.max_new_tokens * part // depth
        going = [leaf for leaf in leaves if not leaf.ended]
        if not going:
            break
        rows = [[*prompt_ids, *leaf.ids] for leaf in going]
        ids, mask = padded_rows(rows, fill=pad_token_id, side="left")
        sequences = drawn_sequences(
            model,
            ids.to(device),
            mask.to(device),
            sampling=replace(sampling, max_new_tokens=new, min_new_tokens=0),
            pad_token_id=pad_token_id,
            eos_token_id=eos_token_id,
            copies=branches,
        )[:, ids.shape[1] :]
        real, ended = response_extent(sequences, eos_token_id)
        grown = [leaf for leaf in leaves if leaf.ended]
        for row, (some, there, end) in enumerate(zip(sequences, real, ended.tolist(), strict=True)):
            leaf = going[row // branches]
            ids_of = (*leaf.ids, *torch.masked_select(some, there).tolist())
            grown.append(TreeSample(ids_of, end, (*leaf.path, row % branches)))
        leaves = sorted(grown, key=lambda leaf: leaf.path)
    return leaves
