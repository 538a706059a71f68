"""Tokenizers of every family, trained on a few lines: no files, no downloads."""

from collections.abc import Sequence

from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizer, PreTrainedTokenizerFast

CORPUS = (
    "the film is good and the plot is bad",
    "a good film , a bad film , a very good plot",
    "one slow scene , then a good café scene in naïve 日本 🙂",
    "user assistant hello rate this film",
) * 4
SPECIAL = ["<pad>", "<bos>", "<eos>", "<unk>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}<bos>{{ message['role'] }}\n{{ message['content'] }}<eos>\n"
    "{% endfor %}{% if add_generation_prompt %}<bos>assistant\n{% endif %}"
)


def byte_level(
    *,
    bos: bool = False,
    pad_token: str | None = "<pad>",
    merges: int = 60,
    texts: Sequence[str] = CORPUS,
    chat_template: str | None = None,
) -> PreTrainedTokenizerFast:
    """Byte-level BPE, as GPT-2 and Llama 3 have it; few merges leave characters in pieces."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) + len(SPECIAL) + merges,
        special_tokens=SPECIAL,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    core.post_processor = (
        _first_token(core, "<bos>") if bos else processors.ByteLevel(trim_offsets=True)
    )
    return _wrapped(core, pad_token=pad_token, chat_template=chat_template)


def word_level(
    *,
    bos: bool = False,
    texts: Sequence[str] = CORPUS,
    pad_token: str | None = "<pad>",
    chat_template: str | None = None,
) -> PreTrainedTokenizerFast:
    """One token per word; spaces belong to no token."""
    core = Tokenizer(models.WordLevel(unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.train_from_iterator(
        texts, trainers.WordLevelTrainer(special_tokens=SPECIAL, show_progress=False)
    )
    if bos:
        core.post_processor = _first_token(core, "<bos>")
    return _wrapped(core, pad_token=pad_token, chat_template=chat_template)


def unigram(*, bos: bool = False, texts: Sequence[str] = CORPUS) -> PreTrainedTokenizerFast:
    """Unigram with visible spaces, as SentencePiece models have it."""
    core = Tokenizer(models.Unigram())
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=60, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
    )
    core.train_from_iterator(texts, trainer)
    if bos:
        core.post_processor = _first_token(core, "<bos>")
    return _wrapped(core, pad_token="<pad>")


def wordpiece(*, texts: Sequence[str] = CORPUS) -> PreTrainedTokenizerFast:
    """WordPiece between [CLS] and [SEP], lower-cased, as BERT has it."""
    core = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    core.normalizer = normalizers.BertNormalizer(lowercase=True)
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece(cleanup=False)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    trainer = trainers.WordPieceTrainer(vocab_size=90, special_tokens=special, show_progress=False)
    core.train_from_iterator(texts, trainer)
    ends = [(token, core.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    )


class SlowTokenizer(PreTrainedTokenizer):
    """One token per character, in Python: knows no offsets."""

    def __init__(self, **kwargs: object) -> None:
        self.characters = [*SPECIAL, *sorted(set("".join(CORPUS)))]
        super().__init__(pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", **kwargs)

    @property
    def vocab_size(self) -> int:
        return len(self.characters)

    def get_vocab(self) -> dict[str, int]:
        return {character: index for index, character in enumerate(self.characters)}

    def _tokenize(self, text: str) -> list[str]:
        return list(text)

    def _convert_token_to_id(self, token: str) -> int:
        return self.get_vocab().get(token, SPECIAL.index("<unk>"))

    def _convert_id_to_token(self, index: int) -> str:
        return self.characters[index]

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        return "".join(tokens)


def _first_token(core: Tokenizer, token: str) -> processors.TemplateProcessing:
    return processors.TemplateProcessing(
        single=f"{token} $A", special_tokens=[(token, core.token_to_id(token))]
    )


def _wrapped(
    core: Tokenizer, *, pad_token: str | None, chat_template: str | None = None
) -> PreTrainedTokenizerFast:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    )
    if pad_token is not None:
        tokenizer.pad_token = pad_token
    tokenizer.chat_template = chat_template
    return tokenizer
