"""A word-level tokenizer for the built-in task: token t is word t."""

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from tokencredit.toy.lexicon import SPECIAL_TOKENS
from tokencredit.toy.reviews import VOCABULARY


def toy_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word or mark of the grammar, `<unk>` for any other; `<bos>` in front.

    Decoded words begin with a space and marks do not, so that a decoded response can be joined to
    its decoded prompt, and what is decoded encodes to the same ids.

    >>> tokenizer = toy_tokenizer()
    >>> ids = tokenizer.encode("The plot is dull, but the lead works.")
    >>> tokenizer.convert_ids_to_tokens(ids)[:4]
    ['<bos>', 'the', 'plot', 'is']
    >>> tokenizer.decode(ids[1:])
    ' the plot is dull, but the lead works.'
    """
    words = (*SPECIAL_TOKENS, *VOCABULARY)
    ids = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", ids["<bos>"])]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(Regex("^(?=[a-z])"), " "), decoders.Fuse()]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        padding_side="left",
    )
