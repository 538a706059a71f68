"""A reward model that another machine serves, in the place of a local one.

The server says what the model says of its own tokens: sequence scores, prefix scores, attention.
From there on everything is as with a local model, so that every credit works alike.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from tokencredit.batch import Prompt, ResponseBatch, ResponseScores
from tokencredit.credit.evidence import OF_SCORERS, Need
from tokencredit.credit.methods import credit_method
from tokencredit.credit.settings import CreditSettings
from tokencredit.errors import ConfigError, DataError
from tokencredit.models.hf_vocabularies import vocabulary_fingerprint
from tokencredit.scorers.hf_policy_tokens import (
    attended_tokens,
    decoded_responses,
    ended_scores,
    projected_scores,
)
from tokencredit.scorers.hf_prefix_texts import warn_of_served_prefixes
from tokencredit.scorers.reading_rows import with_end_token
from tokencredit.server.answers import About, ScoredResponse, require_verdicts
from tokencredit.server.client import RewardServer, about, scored
from tokencredit.text.hf_reading import Reading
from tokencredit.text.hf_written_rows import prompts_of


@dataclass(frozen=True)
class ServedRewardModel:
    """A served reward model as a policy sees it.

    Attributes:
        server: where it is.
        about: what it says of itself.
        writer: how the model reads that writes the responses which it will score.
        shares_vocabulary: whether it reads the policy's own token ids.
    """

    server: RewardServer
    about: About
    writer: Reading
    shares_vocabulary: bool
    # What was said the last time, if a judge had no verdict on some of it: commands that may leave
    # responses out then ask for each of them alone.
    _last: dict[str, ScoredResponse] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @property
    def gives(self) -> frozenset[Need]:
        """What methods can be made from."""
        found: set[Need] = {"sequence_scores", "kept_tokens"}
        if "prefix-scores" in self.about.details:
            found.add("prefix_scores")
            if not self.about.reads_segments or "position-scores" in self.about.details:
                found.add("position_scores")
        if "attention" in self.about.details:
            found.add("attention")
        return frozenset(found)

    def __call__(
        self,
        batch: ResponseBatch,
        *,
        attention: bool = False,
        conversations: Sequence[Prompt] | None = None,
        ended: Bool[Tensor, "batch"] | None = None,
    ) -> ResponseScores:
        """What a `LocalScorer` says of the same responses, with the model in another process.

        Args:
            batch: responses of the policy.
            attention: whether to ask for it.
            conversations: what was asked, for a reward model that renders it itself; None takes
                the text of the prompt's ids.
            ended: True for responses that have ended; None for those whose last token says so.

        Raises:
            ServerError: no answer in time, so often; or it is not what was asked for.
            DataError: a text is longer than the reward model can read, has no prompt, or has tokens
                inside it that do not count where the model is read at the ends of segments.
            NumericError: a score is NaN or infinite.
            VerdictError: the verdict of a judge that is served cannot be read.
        """
        if self.about.reads_segments and bool(
            (attended_tokens(batch) & ~batch.response_mask).any()
        ):
            raise DataError(
                "responses have tokens inside them that do not count, and the reward model at "
                f"{self.server.address} is read at the ends of segments of tokens that do, which a "
                "request does not say; expected responses without such tokens: load the reward "
                "model in this process"
            )
        details = [name for name in self.about.details if attention or name != "attention"]
        if self.shares_vocabulary and self.about.template != "pair":
            scores = _scores_of_ids(self, batch, details, conversations, ended)
        else:
            scores = _scores_of_texts(self, batch, details, conversations, ended)
        device = batch.response_ids.device
        scores = ResponseScores(
            scores.sequence_scores.to(device),
            None if scores.prefix_scores is None else scores.prefix_scores.to(device),
            None if scores.attention is None else scores.attention.to(device),
            None if scores.position_scores is None else scores.position_scores.to(device),
        )
        return ended_scores(scores, batch.response_mask)

    def said(
        self, texts: Sequence[Mapping[str, Any]], details: Sequence[str]
    ) -> list[ScoredResponse]:
        """What the server says of texts, each with a score.

        Args:
            texts: as `scored` takes them.
            details: likewise.

        Raises:
            VerdictError: the verdict of a judge on one cannot be read.
            ServerError, DataError, NumericError: as `scored`.
        """
        keys = [json.dumps([text, *details]) for text in texts]
        if all(key in self._last for key in keys):
            rows = [self._last[key] for key in keys]
        else:
            rows = scored(self.server, texts, details=details, about=self.about)
            self._last.clear()
            if any(row.unreadable for row in rows):
                self._last.update(zip(keys, rows, strict=True))
        require_verdicts(rows, address=self.server.address)
        return rows


def served_reward_model(
    server: RewardServer,
    writer: Reading,
    *,
    credit: CreditSettings | None = None,
) -> ServedRewardModel:
    """The reward model at an address, asked once whether it has what a credit needs.

    Args:
        server: where it is.
        writer: how the model reads that writes the responses which it will score.
        credit: that will be made from its scores; None where only scores are asked for.

    Raises:
        ServerError: it does not answer.
        ConfigError: it wants another token, does not offer what the credit needs, or reads another
            layer.
    """
    said = about(server)
    same = said.vocabulary == vocabulary_fingerprint(writer.tokenizer)
    model = ServedRewardModel(server, said, writer, same)
    if credit is not None:
        _require_offer(model, credit)
        warn_of_served_prefixes(credit, server.address, reads_ids=same and said.template != "pair")
    return model


def _require_offer(model: ServedRewardModel, credit: CreditSettings) -> None:
    """Raise ConfigError where the server does not offer what a credit method is made from."""
    method, said, address = credit_method(credit.method), model.about, model.server.address
    lacking = [need for need in method.needs if need in OF_SCORERS and need not in model.gives]
    if lacking:
        raise ConfigError(
            f"credit {credit.method!r} needs {lacking[0].replace('_', '-')}, and the reward server "
            f"at {address} offers {', '.join(said.details) or 'none'}; expected a server that "
            "offers it: start it with other methods, with a causal model for prefix "
            "scores, or choose another credit"
        )
    if "attention" in method.needs and credit.layer != said.attention_layer:
        raise ConfigError(
            f"credit.layer is {credit.layer} and the reward server at {address} reads layer "
            f"{said.attention_layer}; expected the same: change one of the two settings"
        )


def _scores_of_ids(
    model: ServedRewardModel,
    batch: ResponseBatch,
    details: list[str],
    conversations: Sequence[Prompt] | None,
    ended: Bool[Tensor, "batch"] | None,
) -> ResponseScores:
    """Scores of the ids that the policy drew, between the prompt and closing of the server."""
    reads = attended_tokens(batch)
    ends = with_end_token(model.writer, batch).tolist()
    closed = ends if ended is None else ended.tolist()
    texts = []
    for row, (read, end) in enumerate(zip(reads, ends, strict=True)):
        ids = batch.response_ids[row][read].tolist()
        text: dict[str, Any] = {"response_ids": ids[: len(ids) - end], "ended": closed[row]}
        if conversations is None:
            text["prompt_ids"] = batch.prompt_ids[row][batch.prompt_mask[row]].tolist()
        else:
            text["prompt"] = _asked(conversations[row])
        texts.append(text)
    rows = model.said(texts, details)
    columns = [
        read.nonzero()[: len(row.token_ids), 0].tolist()
        for read, row in zip(reads, rows, strict=True)
    ]
    scores = _as_tensors(rows, columns, reads.shape[1])
    if scores.attention is not None:
        scores.attention.masked_fill_(~batch.response_mask.cpu(), 0.0)
    if scores.position_scores is not None:
        for row, (places, end) in enumerate(zip(columns, ends, strict=True)):
            if end and len(places) < int(reads[row].sum()):  # an end that the model does not read
                last = len(places)
                scores.position_scores[row, last + 1] = scores.position_scores[row, last]
    return scores


def _scores_of_texts(
    model: ServedRewardModel,
    batch: ResponseBatch,
    details: list[str],
    conversations: Sequence[Prompt] | None,
    ended: Bool[Tensor, "batch"] | None,
) -> ResponseScores:
    """Scores in the policy's tokens, made from those in the reward model's."""
    decoded = decoded_responses(model.writer.tokenizer, batch)
    prompts = conversations
    if prompts is None:
        prompts = prompts_of(model.writer, batch, model.writer.tokenizer)
    closed = (with_end_token(model.writer, batch) if ended is None else ended).tolist()
    texts = [
        {"prompt": _asked(prompt), "response": row.response, "ended": end}
        for prompt, row, end in zip(prompts, decoded, closed, strict=True)
    ]
    rows = model.said(texts, details)
    lengths = [len(row.token_ids) for row in rows]
    time = max(1, *lengths)
    scores = _as_tensors(rows, [list(range(length)) for length in lengths], time)
    mask = torch.arange(time) < torch.tensor(lengths)[:, None]
    spans = [row.spans for row in rows]
    return projected_scores(scores, mask, spans, decoded, batch.response_mask.shape[1])


def _asked(prompt: Prompt) -> Any:
    """A prompt as the server takes it."""
    return prompt if isinstance(prompt, str) else [dict(message) for message in prompt]


def _as_tensors(
    rows: Sequence[ScoredResponse], columns: Sequence[Sequence[int]], time: int
) -> ResponseScores:
    """The rows of an answer as tensors, each number in the column of its token."""

    def placed(said: Sequence[list[float] | None], first: int) -> Tensor | None:
        """Numbers of tokens, after as many that stand before the first of them."""
        numbers = torch.zeros(len(rows), first + time)
        for index, (row, places) in enumerate(zip(said, columns, strict=True)):
            if row is None:
                return None
            at = torch.tensor([*range(first), *(place + first for place in places)])
            numbers[index, at.long()] = torch.tensor(row)
        return numbers

    return ResponseScores(
        torch.tensor([row.sequence_score for row in rows]),
        placed([row.prefix_scores for row in rows], 1),
        placed([row.attention for row in rows], 0),
        placed([row.position_scores for row in rows], 1),
    )
