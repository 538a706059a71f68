"""From texts to a tokenizer, and to the blocks of token ids that a language model learns."""

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Int
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from tokencredit.batch import padded_rows
from tokencredit.errors import DataError, ModelError

IGNORED = -100
SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>")


def byte_level_tokenizer(texts: Iterable[str], *, vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-pair encoding learnt from texts, which can spell any other text too.

    It puts `<bos>` in front of a text, and has `<pad>` and `<eos>`, all three of them different.

    Args:
        texts: to count pairs in.
        vocab_size: tokens at most, bytes and special tokens included; few texts give fewer.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", tokenizer.token_to_id("<bos>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        padding_side="left",
    )


def token_blocks(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, length: int
) -> list[Int[Tensor, "_"]]:
    """Texts joined, one beginning and one end of sequence around each, and cut.

    Args:
        tokenizer: with an end-of-sequence token; where it begins sequences with the same token, or
            with none, one stands between two texts.
        texts: in the order that they are joined in.
        length: tokens per block; the last may be shorter.

    Raises:
        ModelError: the tokenizer has no end of sequence.
        DataError: the texts have no tokens to predict.
    """
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    if eos is None:
        raise ModelError(
            f"the tokenizer {tokenizer.name_or_path!r} has no end-of-sequence token; expected one "
            "to part texts: set tokenizer.eos_token"
        )
    before = [] if bos is None or bos == eos else [bos]
    joined: list[int] = []
    for ids in tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]:
        joined += [*before, *ids, eos]
    blocks = [block for block in torch.split(torch.tensor(joined), length) if len(block) > 1]
    if not blocks:
        raise DataError(f"{len(texts)} texts give {len(joined)} tokens; expected at least 2")
    return blocks


def causal_example(ids: Int[Tensor, "time"], *, start: int = 1) -> dict[str, Tensor]:
    """A row of ids, and as labels those from `start` on; the first has nothing to predict it."""
    return {"input_ids": ids, "labels": ids.index_fill(0, torch.arange(max(start, 1)), IGNORED)}


def causal_batch(rows: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Rows padded on the right.

    No mask: a causal model does not look at what comes after, and padding has no label, so any id
    will do for it.
    """
    fills = {"input_ids": 0, "labels": IGNORED}
    return {
        name: padded_rows([row[name].tolist() for row in rows], fill=fill, side="right")[0]
        for name, fill in fills.items()
    }
