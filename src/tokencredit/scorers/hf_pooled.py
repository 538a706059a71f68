"""A reward model that vLLM serves, in the place of a local one.

vLLM says what the head says at every token, which are the scores of all prefixes. How texts are
read is known here, by the tokenizer and the configuration of the model; its weights are not.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from tokencredit.batch import Prompt, ResponseBatch, ResponseScores
from tokencredit.credit.evidence import Need
from tokencredit.credit.settings import CreditSettings
from tokencredit.errors import ModelError
from tokencredit.models.heads import objective_names, require_one_score, scalar_scores
from tokencredit.models.hf_architecture import is_causal
from tokencredit.models.hf_loading import load_config, load_tokenizer
from tokencredit.models.hf_vocabularies import shares_vocabulary
from tokencredit.reward_model.hf_loading import warn_of_order
from tokencredit.reward_model.hf_scores import require_prompts
from tokencredit.scorers.hf_policy_tokens import attended_tokens, ended_scores, projected_scores
from tokencredit.scorers.hf_prefix_texts import (
    PrefixReading,
    prefix_reading,
    read_ids,
    warn_of_served_prefixes,
)
from tokencredit.scorers.hf_trained_reading import (
    scores_as_trained,
    trained_segment_ends,
    trained_segments,
)
from tokencredit.scorers.reading_rows import (
    TextRows,
    rows_as_written,
    rows_of_text,
    scores_of_columns,
)
from tokencredit.server.vllm_scoring import ScoringServer, probed, token_outputs
from tokencredit.text.hf_known_readings import reading_of
from tokencredit.text.hf_reading import Reading
from tokencredit.text.reading_settings import ReadingSettings

_PROBED_TOKENS = 24


@dataclass(frozen=True)
class PooledRewardModel:
    """A reward model served by vLLM, as a policy sees it.

    Attributes:
        scoring: the server.
        model: the reward model without its weights, for what its configuration says.
        reading: how it reads texts.
        writer: how the model reads that wrote the responses; their ids are of its tokenizer.
        prefixes: how prefixes are scored where the model reads other tokens than the policy.
    """

    scoring: ScoringServer
    model: Any
    reading: Reading
    writer: Reading
    prefixes: PrefixReading = "one-pass"

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of the reward model."""
        return self.reading.tokenizer

    @property
    def gives(self) -> frozenset[Need]:
        """What methods can be made from."""
        return frozenset({"sequence_scores", "prefix_scores", "position_scores", "kept_tokens"})

    def __call__(
        self,
        batch: ResponseBatch,
        *,
        attention: bool = False,  # noqa: ARG002 - every scorer is asked in the same way
        conversations: Sequence[Prompt] | None = None,
        attention_mask: Bool[Tensor, "batch sequence"] | None = None,
        ended: Bool[Tensor, "batch"] | None = None,
    ) -> ResponseScores:
        """What a `LocalScorer` says of the same responses, with the model in vLLM.

        Args:
            batch: responses of the policy.
            attention: there is none.
            conversations: what was asked, which the reward model reads in its own way; None takes
                the prompt's ids, or their text.
            attention_mask: the tokens that the reward model reads, closing ones included; given
                where the batch was encoded for this very model.
            ended: True for responses that have ended; None for those whose last token says so.

        Raises:
            ServerError: no answer in time, so often; or it is not what was asked for.
            DataError: a text is longer than the server takes, or has no prompt.
            ModelError: the reward model's tokenizer lacks what is needed.
            NumericError: a score is NaN or infinite.
        """
        rows = rows_as_written(
            self.reading, self.writer, batch, conversations, attention_mask, ended=ended
        )
        if rows is None:
            scores = self._through_text(batch, conversations, ended)
        else:
            scores = self._scored(rows.batch, rows.attention_mask)
            scores = scores_of_columns(scores, attended_tokens(batch))
        return ended_scores(scores, batch.response_mask)

    def _through_text(
        self,
        batch: ResponseBatch,
        conversations: Sequence[Prompt] | None,
        ended: Bool[Tensor, "batch"] | None,
    ) -> ResponseScores:
        """Scores in the writer's tokens, made from those in the reward model's."""
        rows = rows_of_text(
            self.reading,
            self.writer,
            batch,
            conversations,
            max_length=self.scoring.max_length,
            ended=ended,
        )
        encoded = rows.encoded
        scores = projected_scores(
            self._scored(encoded.batch, encoded.attention_mask),
            encoded.batch.response_mask,
            encoded.response_spans,
            rows.decoded,
            batch.response_mask.shape[1],
        )
        if self.prefixes == "one-pass" or scores.position_scores is not None:
            return scores
        return self._with_own_prefixes(scores, rows)

    def _with_own_prefixes(self, scores: ResponseScores, rows: TextRows) -> ResponseScores:
        """The score of each prefix as a text of its own, as of `with_own_prefixes`."""
        assert scores.prefix_scores is not None
        ends = [sorted({0, *response.ends}) for response in rows.decoded]
        paths = []
        for row, (response, some) in enumerate(zip(rows.decoded, ends, strict=True)):
            texts = [response.response[:end] for end in some]
            paths += read_ids(rows.beginnings(row, texts))
        found = iter(_last_scores(token_outputs(self.scoring, paths)))
        prefix_scores = scores.prefix_scores.clone()
        for row, (response, some) in enumerate(zip(rows.decoded, ends, strict=True)):
            known = {end: next(found) for end in some}
            values = [known[end] for end in (0, *response.ends)]
            values += values[-1:] * (prefix_scores.shape[1] - len(values))
            prefix_scores[row] = torch.tensor(values).to(prefix_scores)
        return replace(scores, prefix_scores=prefix_scores)

    def _scored(self, batch: ResponseBatch, attention_mask: Tensor) -> ResponseScores:
        """Scores of rows in the reward model's own tokens, read as it was trained."""
        require_prompts(batch)
        real = attention_mask.bool().cpu()
        ids = zip(batch.input_ids.cpu(), real, strict=True)
        outputs = token_outputs(self.scoring, [row[mask].tolist() for row, mask in ids])
        positions = torch.zeros(real.shape)
        positions[real] = torch.cat([scalar_scores(torch.tensor(row)) for row in outputs])
        device, start = batch.input_ids.device, batch.prompt_ids.shape[1]
        scores = ResponseScores(
            torch.tensor(_last_scores(outputs)).to(device),
            positions[:, start - 1 :].to(device),
            None,
        )
        ends = trained_segment_ends(self.model, self.tokenizer)
        if ends is None:
            return scores
        at_positions = ended_scores(scores, batch.response_mask).prefix_scores
        read = scores_as_trained(scores, batch, ends, attention_mask=attention_mask)
        return replace(read, position_scores=at_positions)


def unweighted_reward_model(
    scoring: ScoringServer,
    name_or_path: str | None = None,
    settings: ReadingSettings | None = None,
    *,
    trust_remote_code: bool = False,
    pad_token: str | None = None,
) -> tuple[PreTrainedModel, Reading]:
    """The model of a vLLM server without its weights, and how it reads texts.

    Args:
        scoring: the server.
        name_or_path: folder or Hub id of the model, for its tokenizer and configuration; None
            takes the name that the server loaded it by.
        settings: how it reads; None leaves that to the model.
        trust_remote_code: let Python code that comes with the model run.
        pad_token: as of `load_tokenizer`.

    Raises:
        ModelError: tokenizer or configuration are not there, or the model reads in both
            directions or has more than two outputs.
    """
    name, address = name_or_path or scoring.origin, scoring.server.address
    try:
        config = load_config(name, trust_remote_code=trust_remote_code)
        tokenizer = load_tokenizer(name, trust_remote_code=trust_remote_code, pad_token=pad_token)
    except ModelError as error:
        raise ModelError(
            f"the tokenizer of the model that vLLM serves at {address} is not here: {error}; "
            "expected it here too: name it after the address, as in "
            "'vllm+http://localhost:8000#my/reward'"
        ) from error
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(
            config, trust_remote_code=trust_remote_code
        )
    if not is_causal(model):
        raise ModelError(
            f"the {type(model).__name__} that vLLM serves at {address} reads in both directions, "
            "so that its outputs are no scores of prefixes; expected a causal reward model: serve "
            "this one with `tokencredit serve`"
        )
    require_one_score(config.num_labels, objective_names(config))
    warn_of_order(model, name)
    return model, reading_of(model, tokenizer, settings)


def pooled_reward_model(
    scoring: ScoringServer,
    model: Any,
    reading: Reading,
    writer: Reading,
    *,
    credit: CreditSettings | None = None,
) -> PooledRewardModel:
    """The reward model of a vLLM server, which must say what its head says of every token.

    Args:
        scoring: the server.
        model: of `unweighted_reward_model`.
        reading: likewise.
        writer: how the model reads that writes the responses.
        credit: that will be made from its scores; None where only scores are asked for.

    Raises:
        ServerError: it does not answer, or not with a score for every token.
        ConfigError: its scores are probabilities or rounded to half precision.
    """
    tokenizer = reading.tokenizer
    prefixes: PrefixReading = "one-pass" if credit is None else prefix_reading(credit)
    if credit is not None and trained_segments(model.config) is not None:
        shared = shares_vocabulary(tokenizer, writer.tokenizer)
        warn_of_served_prefixes(credit, scoring.server.address, reads_ids=shared)
        prefixes = "one-pass"
    probe = _probe(len(tokenizer), scoring.max_length)
    scoring = probed(scoring, probe, outputs=model.config.num_labels)
    return PooledRewardModel(scoring, model, reading, writer, prefixes)


def _last_scores(outputs: Sequence[Sequence[Sequence[float]]]) -> list[float]:
    return [float(scalar_scores(torch.tensor(row[-1]))) for row in outputs]


def _probe(vocabulary: int, max_length: int) -> list[int]:
    """Ids from all over a vocabulary."""
    most = min(_PROBED_TOKENS, vocabulary, max_length)
    return [number * vocabulary // most for number in range(most)]
