"""Where segments of rows end: every n tokens, where the text says so, or where entropy is high."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from tokencredit.batch import padded_rows
from tokencredit.errors import ConfigError
from tokencredit.models.hf_ends import turn_end_ids
from tokencredit.models.hf_loading import load_model, load_tokenizer
from tokencredit.models.hf_logprobs import response_entropies
from tokencredit.models.hf_vocabularies import require_same_vocabulary
from tokencredit.text.hf_decoding import decoded_response
from tokencredit.text.hf_token_rows import EncodedText, ReadAt, response_batch
from tokencredit.text.segments import entropy_segments, ngram_segments, segment_ends
from tokencredit.text.sentences import text_segments

SegmentEnds = Callable[[Sequence[EncodedText]], list[list[bool]]]
"""From rows to where the segments of each end, the last of them at the end of the row."""


@dataclass(frozen=True)
class SegmentEndSettings:
    """Where segments end, with `positions: segments`."""

    kind: Literal["ngram", "sentence", "clause", "entropy"] = field(
        default="ngram", metadata={"was": "segments"}
    )
    """`ngram`: every `length` tokens. `sentence` or `clause`: by the text. `entropy`: before tokens
    where the entropy of the reference exceeds `entropy`."""
    length: int = field(default=5, metadata={"was": "segment_length"})
    """Tokens of an `ngram`."""
    entropy: float = 2.0
    """Entropy of the reference's next-token distribution above which a segment begins, in nats."""
    reference: str | None = None
    """Hub id or folder of the language model whose entropies count, in the tokens of the reward
    model; None for the language model that training starts from."""

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ConfigError(f"length is {self.length}; expected segments of at least 1 token")
        if not self.entropy >= 0:
            raise ConfigError(f"entropy is {self.entropy}; expected 0 nats or more")


def entropy_reference(
    name_or_path: str, tokenizer: PreTrainedTokenizerBase, **loading: Any
) -> PreTrainedModel:
    """The language model whose entropies say where segments end.

    Args:
        name_or_path: a folder or a Hub id.
        tokenizer: of the reward model; tokens that the reference alone knows do no harm, nor does a
            pad token that it does not know.
        **loading: as `load_model` takes it.

    Raises:
        ModelError: nothing that can be loaded is there, weights of a language model are missing (of
            a reward model, for example), or a token has another id there.
    """
    trust = bool(loading.get("trust_remote_code", False))
    other = load_tokenizer(name_or_path, trust_remote_code=trust)
    theirs = other.get_vocab()
    own = {t: id_ for t, id_ in tokenizer.get_vocab().items() if t != tokenizer.pad_token}
    if any(theirs.get(token) != id_ for token, id_ in own.items()):
        require_same_vocabulary(tokenizer, other, argument=f"the reference {name_or_path!r}")
    asked = "a causal language model as segments.reference, whose entropies say where segments end"
    return load_model(AutoModelForCausalLM, name_or_path, expected=asked, **loading)


def segment_end_finder(
    segments: SegmentEndSettings,
    tokenizer: PreTrainedTokenizerBase,
    *,
    reference: PreTrainedModel | None = None,
    batch_size: int = 16,
) -> SegmentEnds:
    """What finds the ends of the segments of rows; the last segment ends where the row does.

    Args:
        segments: where they end.
        tokenizer: of the rows.
        reference: whose entropies count; needed for `entropy` alone.
        batch_size: rows per forward pass of the reference.

    Raises:
        ConfigError: entropies without a reference.
    """
    if segments.kind != "entropy":
        return lambda rows: [_ends(_segment_ids(segments, tokenizer, row)) for row in rows]
    if reference is None:
        raise ConfigError("kind is 'entropy' without a reference; expected a language model")

    turn_ends = turn_end_ids(tokenizer)

    def ends(rows: Sequence[EncodedText]) -> list[list[bool]]:
        return [
            row_ends
            for at in range(0, len(rows), batch_size)
            for row_ends in _entropy_ends(
                segments, reference, rows[at : at + batch_size], turn_ends=turn_ends
            )
        ]

    return ends


def _segment_ids(
    segments: SegmentEndSettings, tokenizer: PreTrainedTokenizerBase, row: EncodedText
) -> Tensor:
    """The number of the segment of each token, -1 outside the response."""
    mask = torch.tensor([row.response_mask])
    if segments.kind == "ngram":
        return ngram_segments(mask, n=segments.length)
    ids = row.input_ids
    decoded = decoded_response(
        tokenizer, ids[: row.start], [ids[i] for i in mask[0].nonzero().flatten().tolist()]
    )
    segment_ids = torch.full(mask.shape, -1)
    kind: Any = segments.kind
    segment_ids[mask] = text_segments(decoded.spans, decoded.response, kind=kind)
    return segment_ids


def _entropy_ends(
    segments: SegmentEndSettings,
    reference: PreTrainedModel,
    rows: Sequence[EncodedText],
    *,
    turn_ends: Sequence[int],
) -> list[list[bool]]:
    """Ends before tokens where the reference was unsure; an end of sequence begins no segment."""
    batch = response_batch(rows, pad_id=0).to(reference.device)
    entropies = response_entropies(reference, batch).cpu()
    mask, _ = padded_rows([row.response_mask[row.start :] for row in rows], fill=0, side="right")
    ids, _ = padded_rows([row.input_ids[row.start :] for row in rows], fill=0, side="right")
    is_eos = torch.isin(ids, ids.new_tensor(list(turn_ends)))
    segment_ids = entropy_segments(
        entropies, mask.bool(), threshold=segments.entropy, is_eos=is_eos & mask.bool()
    )
    lengths = [len(row) - row.start for row in rows]
    return [
        [False] * row.start + _ends(some[None, :length])
        for row, some, length in zip(rows, segment_ids, lengths, strict=True)
    ]


def _ends(segment_ids: Tensor) -> list[bool]:
    """Where segments end, the end of the row in the place of that of the last one."""
    ends = segment_ends(segment_ids)[0]
    ends[ends.nonzero()[-1]] = False
    return [*ends[:-1].tolist(), True]


def reading_at_ends(rows: Sequence[EncodedText], ends: SegmentEnds) -> ReadAt:
    """A reading at the ends of the segments of these rows, which are looked for once.

    Args:
        rows: all that will be asked about.
        ends: finds them.
    """
    known = {_key(row): found for row, found in zip(rows, ends(rows), strict=True)}
    return lambda row: known[_key(row)]


def _key(row: EncodedText) -> tuple[int, tuple[int, ...]]:
    return row.start, tuple(row.input_ids)
