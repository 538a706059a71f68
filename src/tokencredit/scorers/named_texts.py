"""Whole texts scored by whatever a name stands for: a model, a server, a Python function."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tokencredit.batch import Prompt
from tokencredit.credit.settings import CreditSettings
from tokencredit.scorers.feature_folders import has_feature_model
from tokencredit.scorers.features import feature_reward
from tokencredit.scorers.functions import named_function, names_function
from tokencredit.scorers.hf_responses import loaded_scorer, scored_responses
from tokencredit.scorers.python_rewards import function_scores
from tokencredit.scorers.source_settings import RewardSource
from tokencredit.scorers.text_rewards import loaded_text_rewards, paid_texts
from tokencredit.server.answers import require_verdicts
from tokencredit.server.client import RewardServer, about, scored
from tokencredit.server.exchange import is_address
from tokencredit.server.vllm_scoring import is_vllm_address
from tokencredit.text.hf_token_rows import Truncation
from tokencredit.text.reading_settings import ReadingSettings
from tokencredit.text.segments import SegmentSettings

TextScorer = Callable[[Sequence[Prompt], Sequence[str], Sequence[bool]], Float[Tensor, "texts"]]
"""From prompts, responses and whether each ended to the score of each response, in nats."""


def named_text_scorer(
    name: str,
    *,
    server: Callable[[str], RewardServer] = RewardServer,
    reading: ReadingSettings | None = None,
    batch_size: int = 16,
    max_length: int | None = None,
    truncation: Truncation = "prompt-start",
    **loading: Any,
) -> TextScorer:
    """What scores whole texts by the name that settings give it.

    Args:
        name: Hub id or folder of a reward model, also with `#objective`, or of a language model
            that was trained by DPO and names its reference; the address of a `tokencredit serve`,
            `vllm+http(s)://...` of a vLLM server; `module:function`; or a folder of
            `train-feature-model`.
        server: makes a client of an address.
        reading: how a local model reads texts; None leaves that to the model.
        batch_size: responses per forward pass of a local model.
        max_length: most tokens that a local model reads; None takes what it can read.
        truncation: what a longer text loses first; a server refuses one that is too long for it.
        **loading: of a local model, as `load_model` takes it; also `pad_token`.

    Raises:
        ConfigError: a function is not there.
        ModelError, ServerError: a model is not there, or a server does not answer.
    """
    by_features = has_feature_model(name)
    if by_features or (names_function(name) and not is_address(name)):
        function = feature_reward(name) if by_features else named_function(name)
        return lambda prompts, responses, _ended: function_scores(
            function, list(prompts), list(responses), name=f"the function {name}"
        )
    if is_vllm_address(name):
        rewards = loaded_text_rewards(
            [RewardSource(name)],
            CreditSettings("terminal"),
            SegmentSettings(),
            reading=reading,
            micro_batch_size=batch_size,
            loading=loading,
        )
        return lambda prompts, responses, ended: (
            paid_texts([rewards], prompts, responses, ended=ended).sequence_scores.float().cpu()
        )
    if is_address(name):
        client = server(name)
        said = about(client)

        def of_server(
            prompts: Sequence[Prompt], responses: Sequence[str], ended: Sequence[bool]
        ) -> Float[Tensor, "texts"]:
            texts = [
                {"prompt": prompt, "response": response, "ended": end}
                for prompt, response, end in zip(prompts, responses, ended, strict=True)
            ]
            rows = scored(client, texts, about=said)
            require_verdicts(rows, address=client.address)
            return torch.tensor([row.sequence_score for row in rows])

        return of_server
    scorer = loaded_scorer(name, reading, **loading)
    lengths = [length for length in (max_length, scorer.max_length) if length is not None]

    def scores(
        prompts: Sequence[Prompt], responses: Sequence[str], ended: Sequence[bool]
    ) -> Float[Tensor, "texts"]:
        rows = scorer.reading.rows(
            prompts,
            responses,
            ended=ended,
            max_length=min(lengths, default=None),
            truncation=truncation,
        )
        return torch.stack(list(scored_responses(scorer, rows, batch_size=batch_size)))[:, -1]

    return scores
