"""Candidates of one tokenizer in the tokens of another.

The text with a candidate is decoded and tokenized anew, never the candidate alone: a token alone
loses its leading space, half a character becomes a replacement character, and its neighbours may
be cut in another way.
"""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from tokencredit.batch import Prompt
from tokencredit.decoding.candidates.scores import CandidateBatch
from tokencredit.errors import DataError
from tokencredit.text.hf_reading import Reading

_MISSING_BYTES = "\ufffd"


class CandidateTexts:
    """What a reward model with a tokenizer of its own reads for each candidate.

    It reads what it would read of that response: the prompt in its own rendering, the response open
    while it goes on, and closed by a candidate that ends it. A candidate that ends inside a
    character counts as the whole characters before it; special tokens that end nothing add nothing.

    Args:
        tokenizer: of the language model.
        reading: of the reward model.
        prompts: what was asked, texts or conversations, one per row.
        prompt_width: columns of the prompts in the ids.
        turn_ends: ids of the language model that end a response.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        reading: Reading,
        *,
        prompts: Sequence[Prompt],
        prompt_width: int,
        turn_ends: Sequence[int] = (),
    ) -> None:
        self.tokenizer = tokenizer
        self.reading = reading
        self.prompts = prompts
        self.prompt_width = prompt_width
        self.turn_ends = frozenset(turn_ends)

    def reward_ids(self, batch: CandidateBatch) -> list[list[list[int]]]:
        """Ids of the text and of the text with each candidate, per row; [] where a row is finished.

        Where a candidate does not count, the ids are those of the text.

        Raises:
            DataError: there is not one prompt per row, or the reading refuses a prompt or text.
        """
        active = batch.active.tolist()
        if len(self.prompts) != len(active):
            raise DataError(
                f"there are {len(self.prompts)} prompts for {len(active)} rows; expected one per "
                "row: repeat them where several responses are drawn for each"
            )
        told = [
            (self.prompts[row], *text)
            for row, writes in enumerate(active)
            for text in (self._responses_of_row(row, batch) if writes else ())
        ]
        # Many candidates that do not count, and all inside one character, are the same text.
        different = list({(repr(one[0]), *one[1:]): one for one in told}.values())
        paths = self.reading.ids_of(*zip(*different, strict=True)) if different else []
        known = {(repr(p), *text): ids for (p, *text), ids in zip(different, paths, strict=True)}
        found = iter([known[repr(prompt), *text] for prompt, *text in told])
        number = 1 + batch.candidate_ids.shape[1]
        return [[next(found) for _ in range(number)] if writes else [] for writes in active]

    def _responses_of_row(self, row: int, batch: CandidateBatch) -> list[tuple[str, bool]]:
        """The response alone and with each candidate, and whether it ends there."""
        ids, mask = batch.text_ids[row], batch.text_mask[row]
        real = ids[mask].tolist()
        prompt = ids[: self.prompt_width][mask[: self.prompt_width]].tolist()
        tokens = batch.candidate_ids[row].tolist()
        texts = self._whole_texts([prompt, real] + [[*real, token] for token in tokens])
        alone, *responses = [text[len(texts[0]) :] for text in texts[1:]]
        counts = batch.candidate_mask[row].tolist()
        return [(alone, False)] + [
            (response, token in self.turn_ends) if counted else (alone, False)
            for response, token, counted in zip(responses, tokens, counts, strict=True)
        ]

    def _whole_texts(self, rows: list[list[int]]) -> list[str]:
        """Whole characters of each row."""
        texts = self.tokenizer.batch_decode(
            rows, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return [text.rstrip(_MISSING_BYTES) for text in texts]
