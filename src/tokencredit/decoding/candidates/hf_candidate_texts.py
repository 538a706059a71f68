"""Candidates of one tokenizer in the tokens of another.

The text with a candidate is decoded and tokenized anew, never the candidate alone: a token alone
loses its leading space, half a character becomes a replacement character, and its neighbours may
be cut in another way.
"""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from tokencredit.decoding.candidates.scores import CandidateBatch
from tokencredit.errors import ConfigError, DataError

_MISSING_BYTES = "\ufffd"


class CandidateTexts:
    """What a reward model with a tokenizer of its own reads for each candidate.

    A candidate that ends inside a character counts as the whole characters before it. The end of
    sequence is the reward model's own, or the tail where there is one; other special tokens add
    nothing to the text.

    Args:
        tokenizer: of the language model.
        reward_tokenizer: of the reward model; it adds its special tokens.
        prompts: what the reward model reads as the prompt of each row, in its own template; the
            decoded prompt by default.
        prompt_width: columns of the prompts in the ids; needed with `prompts`.
        tail: what follows every response, as the end of a chat turn.

    Raises:
        ConfigError: one of `prompts` and `prompt_width` is there without the other.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        reward_tokenizer: PreTrainedTokenizerBase,
        *,
        prompts: Sequence[str] | None = None,
        prompt_width: int | None = None,
        tail: str = "",
    ) -> None:
        if (prompts is None) != (prompt_width is None):
            raise ConfigError(
                "only one of prompts and prompt_width was given; expected both: the response is "
                "what stands after the columns of the prompts"
            )
        self.tokenizer = tokenizer
        self.reward_tokenizer = reward_tokenizer
        self.prompts = prompts
        self.prompt_width = prompt_width or 0
        self.tail = tail

    def reward_ids(self, batch: CandidateBatch) -> list[list[list[int]]]:
        """Ids of the text and of the text with each candidate, per row; [] where a row is finished.

        Where a candidate does not count, the ids are those of the text.

        Raises:
            DataError: there is not one prompt per row, or the reward tokenizer gives no token.
        """
        active = batch.active.tolist()
        if self.prompts is not None and len(self.prompts) != len(active):
            raise DataError(
                f"there are {len(self.prompts)} prompts for {len(active)} rows; expected one per "
                "row: repeat them where several responses are drawn for each"
            )
        texts: list[str] = []
        ends: list[bool] = []
        for row, writes in enumerate(active):
            for text, is_end in self._texts_of_row(row, batch) if writes else ():
                texts.append(text)
                ends.append(is_end)
        paths = iter(self._token_ids(texts, ends))
        number = 1 + batch.candidate_ids.shape[1]
        return [[next(paths) for _ in range(number)] if writes else [] for writes in active]

    def _texts_of_row(self, row: int, batch: CandidateBatch) -> list[tuple[str, bool]]:
        """The text alone and with each candidate, and whether it ends there."""
        ids, mask = batch.text_ids[row], batch.text_mask[row]
        real = ids[mask].tolist()
        prompt = ids[: self.prompt_width][mask[: self.prompt_width]].tolist()
        border = len(self._whole_texts([prompt])[0]) if self.prompts is not None else 0
        head = self.prompts[row] if self.prompts is not None else ""
        tokens = batch.candidate_ids[row].tolist()
        counts = batch.candidate_mask[row].tolist()
        decoded = self._whole_texts([real] + [[*real, token] for token in tokens])
        texts = [(head + text[border:] + self.tail, False) for text in decoded]
        ends = [token == self.tokenizer.eos_token_id and not self.tail for token in tokens]
        return [texts[0]] + [
            (text, is_end) if counted else texts[0]
            for (text, _), is_end, counted in zip(texts[1:], ends, counts, strict=True)
        ]

    def _whole_texts(self, rows: list[list[int]]) -> list[str]:
        """Whole characters of each row."""
        texts = self.tokenizer.batch_decode(
            rows, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return [text.rstrip(_MISSING_BYTES) for text in texts]

    def _token_ids(self, texts: list[str], ends: list[bool]) -> list[list[int]]:
        """Ids of the texts: one beginning of sequence, and the end of it where a text ends."""
        if not texts:
            return []
        bos, eos = self.reward_tokenizer.bos_token, self.reward_tokenizer.eos_token_id
        known: dict[str, list[int]] = {}
        for special in (True, False):  # a text that brings its own beginning gets no second one
            group = [text for text in texts if special != bool(bos and text.startswith(bos))]
            if group:
                ids = self.reward_tokenizer(group, add_special_tokens=special)["input_ids"]
                known |= dict(zip(group, ids, strict=True))
        rows = [known[text] for text in texts]
        if not all(rows):
            raise DataError(
                "the reward model's tokenizer gives no token for a text; expected at least one: "
                "give each row a prompt that is not empty"
            )
        return [
            [*row, eos] if is_end and eos is not None and row[-1] != eos else list(row)
            for row, is_end in zip(rows, ends, strict=True)
        ]
