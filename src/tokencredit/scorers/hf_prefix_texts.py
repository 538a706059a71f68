"""Scores of the text up to each token of a policy, by a reward model that reads other tokens.

One pass over a whole response sees the end of a prefix in the tokens that later text made of it:
"goo" is another token where a "d" follows. What is read off such a pass depends on the future. Here
each prefix is tokenized as a text of its own. Where its tokens are the first ones of the whole
response, its score is read off the pass over that; where its last ones differ, these alone are fed,
as tails after the tokens that both share, all tails of a response in one pass.
"""

import itertools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from tokencredit.batch import ResponseScores, rows_of_like_length
from tokencredit.credit.methods import credit_method
from tokencredit.credit.settings import CreditSettings
from tokencredit.errors import TokenCreditWarning
from tokencredit.models.heads import float32_outputs, scalar_scores
from tokencredit.models.hf_architecture import require_room, sequence_classifier
from tokencredit.models.hf_kept_keys import attention_windows, layer_masks, rescales_positions
from tokencredit.models.hf_objectives import every_score, joined_scores
from tokencredit.models.hf_passes import evaluating
from tokencredit.text.hf_decoding import DecodedResponse
from tokencredit.text.hf_encoding import EncodedResponses

PrefixReading = Literal["own-text", "one-pass"]
"""How the text up to a token is scored: by its own tokens, or by those of the whole response."""

EncodeBeginnings = Callable[[int, Sequence[str]], EncodedResponses]
"""From the number of a row and beginnings of its response to what the reward model reads."""

# Queries times keys of one pass over rows with their tails: its mask has so many entries.
_MASK_ENTRIES = 2**26


def prefix_reading(credit: CreditSettings) -> PrefixReading:
    """How prefixes are to be scored for a credit: each by itself where credit is made of them."""
    return credit.prefixes if made_of_prefixes(credit) else "one-pass"


def made_of_prefixes(credit: CreditSettings) -> bool:
    """Whether a credit asks for the score of the text up to each token."""
    return not {"prefix_scores", "position_scores"}.isdisjoint(credit_method(credit.method).needs)


def warn_of_served_prefixes(credit: CreditSettings, address: str, *, reads_ids: bool) -> None:
    """Warn where a served model's prefixes are asked for as texts of their own.

    Args:
        credit: that is made from its scores.
        address: of the server.
        reads_ids: whether the model reads the policy's own tokens, so that there is no other way.
    """
    if not reads_ids and prefix_reading(credit) == "own-text":
        warnings.warn(
            f"the reward model at {address} is served and reads other tokens than the policy: it "
            "scores prefixes in one pass over the whole response, and later text may move the "
            "credit of earlier tokens. A reward model in this process scores each prefix as a text "
            "of its own; credit.prefixes 'one-pass' asks for this and is not warned of",
            TokenCreditWarning,
            stacklevel=3,
        )


class _Tail(NamedTuple):
    """Tokens of a prefix after those that it shares with the whole response."""

    shared: int
    ids: tuple[int, ...]


def with_own_prefixes(
    scores: ResponseScores,
    own: ResponseScores,
    model: nn.Module,
    whole: EncodedResponses,
    decoded: Sequence[DecodedResponse],
    encode: EncodeBeginnings,
    *,
    micro_batch_size: int | None = None,
) -> ResponseScores:
    """Put the score of each prefix as a text of its own in the place of what one pass says of it.

    The prefix score of a policy's token is then a function of the tokens up to it, whatever comes
    later: prefix differences are causal. A token that ends inside a character is scored by the
    whole characters before it.

    Args:
        scores: of the whole responses, in the policy's tokens.
        own: the same in the reward model's tokens.
        model: the reward model, which scores prefixes.
        whole: the responses as it read them.
        decoded: the responses in the policy's tokens.
        encode: how it reads the beginning of one.
        micro_batch_size: responses per forward pass; None for as many as a mask of moderate size
            allows.

    Returns:
        The scores; as they are, with a warning, where attention takes no mask of our own.

    Raises:
        DataError: a text is longer than the model can read.
    """
    if own.prefix_scores is None or scores.prefix_scores is None:
        return scores
    pretrained = sequence_classifier(model)
    if own.position_scores is not None or not _takes_tails(pretrained):
        warnings.warn(
            f"{type(pretrained).__name__} reads other tokens than the policy and scores its "
            "prefixes in one pass over the whole response: later text may move the credit of "
            "earlier tokens. A model that is read at last tokens, loaded with attention 'sdpa' or "
            "'eager', scores each prefix as a text of its own; credit.prefixes 'one-pass' asks for "
            "this and is not warned of",
            TokenCreditWarning,
            stacklevel=2,
        )
        return scores
    trunks = read_ids(whole)
    starts = whole.batch.prompt_mask.sum(-1).tolist()
    joined = joined_scores(pretrained)
    outputs = [one.scores.prefix_scores for one in own.objectives.values()] or [own.prefix_scores]
    by_output = torch.stack([numbers for numbers in outputs if numbers is not None], dim=-1)
    found: list[dict[int, list[float]]] = []
    tails: list[dict[int, _Tail]] = []
    for row, (response, trunk, start) in enumerate(zip(decoded, trunks, starts, strict=True)):
        ends = sorted({0, *response.ends})
        paths = read_ids(encode(row, [response.response[:end] for end in ends]))
        found.append({})
        tails.append({})
        for end, path in zip(ends, paths, strict=True):
            alike = _alike(path, trunk)
            if alike == len(path) >= start:
                found[row][end] = by_output[row, alike - start].tolist()
            else:
                shared = min(alike, len(path) - 1)
                tails[row][end] = _Tail(shared, tuple(path[shared:]))
    for row, known in enumerate(_tail_scores(pretrained, trunks, tails, micro_batch_size)):
        found[row] |= {end: known[tail] for end, tail in tails[row].items()}
    prefix_scores = scores.prefix_scores.new_zeros(*scores.prefix_scores.shape, by_output.shape[-1])
    for row, response in enumerate(decoded):
        values = [found[row][end] for end in (0, *response.ends)]
        values += values[-1:] * (prefix_scores.shape[1] - len(values))
        prefix_scores[row] = torch.tensor(values).to(prefix_scores)
    if joined is None:
        return replace(scores, prefix_scores=prefix_scores[..., 0])
    objectives = {
        name: replace(one, scores=replace(one.scores, prefix_scores=prefix_scores[..., at]))
        for at, (name, one) in enumerate(scores.objectives.items())
    }
    weights = [one.weights for one in scores.objectives.values() if one.weights is not None]
    of_rows = torch.stack(weights, dim=-1)[:, None] if weights else None
    total = joined.joined(prefix_scores, of_rows)
    return replace(scores, prefix_scores=total, objectives=objectives)


def _takes_tails(model: PreTrainedModel) -> bool:
    """Whether a mask of our own can hide from tails what they must not see."""
    return attention_windows(model) is not None and not rescales_positions(model)


def read_ids(encoded: EncodedResponses) -> list[list[int]]:
    """Token ids of each row up to the last one of its response, which may have no characters."""
    batch = encoded.batch
    written = torch.tensor([any(b > a for a, b in row) for row in encoded.response_spans])
    response_mask = batch.response_mask & written.to(batch.response_mask.device)[:, None]
    real = replace(batch, response_mask=response_mask).attention_mask.bool()
    return [ids[mask].tolist() for ids, mask in zip(batch.input_ids, real, strict=True)]


def _alike(path: Sequence[int], trunk: Sequence[int]) -> int:
    """How many tokens two rows have in common from the start."""
    pairs = enumerate(zip(path, trunk, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(path), len(trunk)))


def _tail_scores(
    model: PreTrainedModel,
    trunks: Sequence[list[int]],
    tails: Sequence[dict[int, _Tail]],
    micro_batch_size: int | None,
) -> list[dict[_Tail, list[float]]]:
    """Every output for each tail of each row, after the tokens of the row that it shares."""
    distinct = [sorted(set(row.values())) for row in tails]
    some = [row for row, found in enumerate(distinct) if found]
    scores: list[dict[_Tail, list[float]]] = [{} for _ in tails]
    if not some:
        return scores
    lengths = torch.tensor([_columns(distinct[row]) for row in some])
    size = max(1, _MASK_ENTRIES // int(lengths.max()) ** 2)
    with torch.no_grad(), evaluating(model):
        for part in rows_of_like_length(lengths, min(size, micro_batch_size or size)):
            rows = [some[at] for at in part.tolist()]
            values = _pass(model, [(trunks[row], distinct[row]) for row in rows])
            for row, found in zip(rows, values, strict=True):
                scores[row] = dict(zip(distinct[row], found, strict=True))
    return scores


def _columns(tails: Sequence[_Tail]) -> int:
    """How many tokens are fed for some tails: the longest part that they share, and themselves."""
    return max(tail.shared for tail in tails) + sum(len(tail.ids) for tail in tails)


def _pass(
    model: PreTrainedModel, rows: Sequence[tuple[list[int], list[_Tail]]]
) -> list[list[list[float]]]:
    """One forward pass over the shared tokens of some rows and all tails after them."""
    width = max(_columns(tails) for _, tails in rows)
    ids, positions, sees = torch.zeros(3, len(rows), width, dtype=torch.long)
    owner = torch.full((len(rows), width), -2)  # -1 on shared tokens, a number on those of a tail
    ends: list[list[int]] = []
    for row, (trunk, tails) in enumerate(rows):
        require_room(model, max(tail.shared + len(tail.ids) for tail in tails))
        depth = max(tail.shared for tail in tails)
        ids[row, :depth] = torch.tensor(trunk[:depth], dtype=torch.long)
        positions[row, :depth] = torch.arange(depth)
        sees[row, :depth] = torch.arange(1, depth + 1)
        owner[row, :depth] = -1
        stops = itertools.accumulate((len(tail.ids) for tail in tails), initial=depth)
        ends.append([])
        for number, (tail, (begin, stop)) in enumerate(
            zip(tails, itertools.pairwise(stops), strict=True)
        ):
            ids[row, begin:stop] = torch.tensor(tail.ids)
            positions[row, begin:stop] = torch.arange(tail.shared, tail.shared + stop - begin)
            sees[row, begin:stop] = tail.shared
            owner[row, begin:stop] = number
            ends[row].append(stop - 1)
    device = model.device
    hidden = model.base_model(
        input_ids=ids.to(device),
        attention_mask=_masks(model, positions.to(device), sees.to(device), owner.to(device)),
        position_ids=positions.to(device),
        use_cache=False,
    ).last_hidden_state
    read = [hidden[row, torch.tensor(at, device=device)] for row, at in enumerate(ends)]
    joined = joined_scores(model)
    with every_score(joined):
        outputs = float32_outputs(model.score, torch.cat(read))
    outputs = scalar_scores(outputs)[:, None] if joined is None else outputs[:, : len(joined.names)]
    values = iter(outputs.tolist())
    return [list(itertools.islice(values, len(at))) for at in ends]


def _masks(
    model: PreTrainedModel,
    positions: Int[Tensor, "batch columns"],
    sees: Int[Tensor, "batch columns"],
    owner: Int[Tensor, "batch columns"],
) -> Tensor | dict[str, Tensor]:
    """What each column sees: so many shared tokens, and its own tail up to itself."""
    columns = torch.arange(positions.shape[1], device=positions.device)
    shared = (owner == -1)[:, None] & (columns < sees[:, :, None])
    same = (owner[:, None] == owner[:, :, None]) & (owner >= 0)[:, None]
    visible: Bool[Tensor, "batch columns columns"] = shared | (same & (columns <= columns[:, None]))
    visible[:, columns, columns] = True  # a row of zeros would be a division by zero
    distances = positions[:, :, None] - positions[:, None]
    return layer_masks(model, visible, distances)
