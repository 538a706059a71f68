"""A reward model as the server uses it: texts to rows of token ids, rows to scores and credit.

A client that has the prefix scores or the attention of a text makes every credit from them itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from tokencredit.batch import Prompt, ResponseBatch, ResponseScores
from tokencredit.errors import DataError, ModelError, NumericError
from tokencredit.models.hf_architecture import is_causal
from tokencredit.models.hf_loading import context_length, pad_token_id
from tokencredit.models.hf_vocabularies import vocabulary_fingerprint
from tokencredit.reward_model.hf_scores import score_responses
from tokencredit.scorers.token_scores import CREDIT_NAMES, credited
from tokencredit.server.messages import PromptAndResponse, PromptAndResponseIds, Served
from tokencredit.server.rows import RowScores, TokenRow
from tokencredit.text.hf_decoding import decoded_response
from tokencredit.text.hf_encoding import EncodedResponses
from tokencredit.text.hf_rendering import Template, encoded_prompts, reads_eos, token_texts


def offered_credit(model: nn.Module, asked: Sequence[str] | None) -> tuple[str, ...]:
    """The credit methods that a model is served with.

    Args:
        model: a sequence-classification model.
        asked: names of them; None for all that the model allows.

    Raises:
        ModelError: "prefix-difference" of a model that scores no prefixes.
    """
    causal = is_causal(model)
    if asked is None:
        return tuple(name for name in CREDIT_NAMES if causal or name != "prefix-difference")
    if "prefix-difference" in asked and not causal:
        raise ModelError(
            "credit 'prefix-difference' of a reward model that reads in both directions; expected "
            "a causal one, which scores prefixes: leave it out of credit_methods"
        )
    return tuple(asked)


@dataclass(frozen=True)
class ServedModel:
    """A reward model behind the server.

    Attributes:
        model: a sequence-classification model.
        tokenizer: its tokenizer.
        credit_methods: on offer.
        credit_beta: share of the score that `attention` spreads.
        attention_layer: layer that `attention` reads.
        template: as in `encoded_prompts`; a text without a prompt stands alone.
        max_tokens: of one row, if that is less than the model can read.
    """

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    credit_methods: tuple[str, ...]
    credit_beta: float = 0.8
    attention_layer: int = -1
    template: Template = "auto"
    max_tokens: int = 16384

    @cached_property
    def row_tokens(self) -> int:
        """Tokens that a row may have."""
        context = context_length(self.model, self.tokenizer)
        return self.max_tokens if context is None else min(context, self.max_tokens)

    @cached_property
    def vocabulary(self) -> int:
        """Ids that the model knows."""
        config: Any = self.model.config
        return config.get_text_config().vocab_size

    @cached_property
    def about(self) -> Served:
        """What a client needs to know about the model."""
        chats = self.template == "chat" or (
            self.template == "auto" and self.tokenizer.chat_template is not None
        )
        return Served(
            credit=list(self.credit_methods),
            details=list(offered_details(self.credit_methods)),
            attention_layer=self.attention_layer,
            template=self.template,
            renders_chats=chats,
            reads_eos=reads_eos(self.model),
            vocabulary=vocabulary_fingerprint(self.tokenizer),
            max_tokens=self.row_tokens,
        )

    def text_rows(
        self,
        texts: Sequence[PromptAndResponse],
        credit: tuple[str, ...],
        details: tuple[str, ...] = (),
    ) -> list[TokenRow]:
        """Texts as the reward model reads them.

        Raises:
            DataError: a text is too long, has no prompt where one is needed, or its messages are
                refused by the chat template.
            ModelError: messages, and there is no chat template; or it rewrites the response.
        """
        rows: dict[int, TokenRow] = {}
        for alone in (True, False):
            numbers = [n for n, text in enumerate(texts) if (not text.prompt) == alone]
            if numbers:
                encoded = self._encoded(
                    [texts[n] for n in numbers], credit, details, numbers, alone
                )
                rows |= dict(zip(numbers, encoded, strict=True))
        return [rows[number] for number in range(len(texts))]

    def id_rows(
        self,
        texts: Sequence[PromptAndResponseIds],
        credit: tuple[str, ...],
        details: tuple[str, ...] = (),
    ) -> list[TokenRow]:
        """Token ids of the reward model's own vocabulary, as they are.

        Raises:
            DataError: an id is not in the vocabulary, the prompt has none, or a row is too long.
        """
        for number, text in enumerate(texts):
            ids = [*text.prompt_ids, *text.response_ids]
            self._require_length(number, len(ids))
            outside = [id_ for id_ in ids if not 0 <= id_ < self.vocabulary]
            if outside:
                raise DataError(
                    f"text {number} has the id {outside[0]}; expected ids from 0 to "
                    f"{self.vocabulary - 1}, those of the reward model's own tokenizer"
                )
            if not text.prompt_ids:
                raise DataError(
                    f"text {number} has no prompt_ids; expected at least one, such as the token "
                    "that begins a sequence: the score of the prompt alone is read there"
                )
        return [self._id_row(text.prompt_ids, text.response_ids, credit, details) for text in texts]

    def verbatim_rows(self, texts: Sequence[str]) -> list[TokenRow]:
        """Whole texts, special tokens written out in them, without any credit.

        Nothing is added but the end of sequence, where the model learnt with it and it is missing.

        Raises:
            DataError: a text is empty or too long.
        """
        ends = bool(reads_eos(self.model))
        rows = []
        for number, ids in enumerate(
            self.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        ):
            if not ids:
                raise DataError(f"text {number} is empty; expected a prompt and its response")
            if ends and ids[-1] != self.tokenizer.eos_token_id:
                ids = [*ids, self.tokenizer.eos_token_id]
            self._require_length(number, len(ids))
            rows.append(TokenRow(ids[:1], ids[1:], [], [], [], ()))
        return rows

    def scores(self, rows: Sequence[TokenRow]) -> list[RowScores]:
        """Scores of all rows in one forward pass.

        Raises:
            NumericError: a score is NaN or infinite.
            ModelError: the model lacks what a credit method needs.
        """
        batch, attention_mask = self._padded(rows)
        asked = {name for row in rows for name in row.credit}
        attends = "attention" in asked or any("attention" in row.details for row in rows)
        scores = score_responses(
            self.model,
            batch,
            attention_mask=attention_mask,
            attention_layer=self.attention_layer if attends else None,
        )
        paid = {
            name: credited(name, scores, batch.response_mask, credit_beta=self.credit_beta)
            for name in asked
        }
        for name, token_scores in paid.items():
            if not bool(token_scores.isfinite().all()):
                raise NumericError(
                    f"{name} pays a token NaN or an infinite score; expected finite ones: look for "
                    "NaN weights, or serve it in float32 or bfloat16 rather than float16"
                )
        numbers = {name: token_scores.tolist() for name, token_scores in paid.items()}
        return [
            RowScores(
                score,
                {name: numbers[name][i][: len(row.response_ids)] for name in row.credit},
                **details,
            )
            for i, (row, score, details) in enumerate(
                zip(rows, scores.sequence_scores.tolist(), row_details(rows, scores), strict=True)
            )
        ]

    def _encoded(
        self,
        texts: Sequence[PromptAndResponse],
        credit: tuple[str, ...],
        details: tuple[str, ...],
        numbers: Sequence[int],
        alone: bool,
    ) -> list[TokenRow]:
        """Rows of texts; one by one where that fails, to name the text that is to blame."""
        responses = [text.response for text in texts]
        try:
            encoded = encoded_prompts(
                self.tokenizer,
                [_prompt(text) for text in texts],
                responses,
                template="plain" if alone else self.template,
                append_eos=[bool(reads_eos(self.model)) and text.ended for text in texts],
                max_length=self.row_tokens,
                empty="keep",
            )
        except DataError as error:
            if len(texts) == 1:
                raise DataError(f"text {numbers[0]}: {error}") from error
            for text, number in zip(texts, numbers, strict=True):
                self._encoded([text], credit, details, [number], alone)
            raise
        names = token_texts(self.tokenizer, encoded, responses)
        return _token_rows(encoded, names, credit, details)

    def _id_row(
        self,
        prompt_ids: list[int],
        response_ids: list[int],
        credit: tuple[str, ...],
        details: tuple[str, ...],
    ) -> TokenRow:
        if not credit:
            return TokenRow(prompt_ids, response_ids, [], [], [], (), details)
        decoded = decoded_response(self.tokenizer, prompt_ids, response_ids)
        names = self.tokenizer.convert_ids_to_tokens(response_ids)
        tokens = [
            decoded.response[a:b] if b > a else str(name)
            for (a, b), name in zip(decoded.spans, names, strict=True)
        ]
        return TokenRow(prompt_ids, response_ids, [], tokens, decoded.spans, credit, details)

    def _require_length(self, number: int, length: int) -> None:
        if length > self.row_tokens:
            raise DataError(
                f"text {number} has {length} tokens; expected at most {self.row_tokens}, what the "
                "model reads and a batch holds: shorten or drop it"
            )

    def _padded(
        self, rows: Sequence[TokenRow]
    ) -> tuple[ResponseBatch, Bool[Tensor, "batch sequence"]]:
        """Rows as tensors, and which of their tokens are real."""
        pad, device = pad_token_id(self.tokenizer), next(self.model.parameters()).device
        prompts = [row.prompt_ids for row in rows]
        behind = [row.response_ids + row.closing_ids for row in rows]
        width = max(len(ids) for ids in prompts)
        # One column at least, so that a batch of empty responses has a last token to look for.
        time = max(1, *(len(ids) for ids in behind))
        prompt_mask = _first([len(ids) for ids in prompts], width).flip(-1)
        response_mask = _first([len(row.response_ids) for row in rows], time)
        batch = ResponseBatch(
            torch.tensor([[pad] * (width - len(ids)) + ids for ids in prompts]),
            prompt_mask,
            torch.tensor([ids + [pad] * (time - len(ids)) for ids in behind]),
            response_mask,
        )
        real = torch.cat([prompt_mask, _first([len(ids) for ids in behind], time)], dim=-1)
        return batch.to(device), real.to(device)


def _prompt(text: PromptAndResponse) -> Prompt:
    if isinstance(text.prompt, str):
        return text.prompt
    return [message.model_dump() for message in text.prompt]


def _token_rows(
    encoded: EncodedResponses,
    names: list[list[str]],
    credit: tuple[str, ...],
    details: tuple[str, ...],
) -> list[TokenRow]:
    """The rows of a padded batch without its padding; tokens where something asks for them."""
    batch = encoded.batch
    behind = encoded.attention_mask[:, batch.prompt_ids.shape[1] :].bool() & ~batch.response_mask
    return [
        TokenRow(
            batch.prompt_ids[i][batch.prompt_mask[i]].tolist(),
            batch.response_ids[i][batch.response_mask[i]].tolist(),
            batch.response_ids[i][behind[i]].tolist(),
            names[i] if credit or details else [],
            spans if credit or details else [],
            credit,
            details,
        )
        for i, spans in enumerate(encoded.response_spans)
    ]


def _first(lengths: Sequence[int], width: int) -> Bool[Tensor, "batch {width}"]:
    """True in the first so many columns of each row."""
    return torch.arange(width) < torch.tensor(lengths)[:, None]


# The credit method that is made from each; where it is on offer, the detail is.
DETAILS = {"prefix-scores": "prefix-difference", "attention": "attention"}


def offered_details(credit_methods: Sequence[str]) -> tuple[str, ...]:
    """Names of what is told besides token scores.

    >>> offered_details(("terminal", "attention"))
    ('attention',)
    """
    return tuple(name for name, credit in DETAILS.items() if credit in credit_methods)


def row_details(rows: Sequence[TokenRow], scores: ResponseScores) -> list[dict[str, list[float]]]:
    """What each row asks for besides token scores, under the names of `RowScores`.

    Args:
        rows: of one batch.
        scores: what the model says about it.

    Raises:
        NumericError: an attention that is asked for is NaN.
    """
    return [
        {name.replace("-", "_"): _numbers(row, index, scores, name) for name in row.details}
        for index, row in enumerate(rows)
    ]


def _numbers(row: TokenRow, index: int, scores: ResponseScores, name: str) -> list[float]:
    length = len(row.response_ids)
    if name == "prefix-scores":
        assert scores.prefix_scores is not None
        return scores.prefix_scores[index, : length + 1].tolist()
    assert scores.attention is not None
    attention = scores.attention[index, :length]
    if not bool(attention.isfinite().all()):
        raise NumericError(
            "the attention to a token is NaN; expected finite numbers: look for NaN weights, or "
            "serve the model in float32 or bfloat16 rather than float16"
        )
    return attention.tolist()
