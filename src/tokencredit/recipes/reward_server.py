"""A reward model that another machine serves, in the place of a local one.

The server says what the model says of its own tokens: sequence scores, prefix scores, attention.
From there on everything is as with a local model, so that every credit works alike.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from tokencredit.batch import ResponseBatch, TokenScorer
from tokencredit.errors import ConfigError
from tokencredit.preference.pairs import Prompt
from tokencredit.recipes.policy_tokens import (
    ScoreTransform,
    attended_tokens,
    decoded_responses,
    ended_scores,
    ending_tokens,
    projected_scores,
    transformed_scores,
)
from tokencredit.recipes.token_scorer import (
    credited,
    require_credit_name,
    vocabulary_fingerprint,
)
from tokencredit.reward_model.hf_backbone import ResponseScores, load_reward_model
from tokencredit.server.answers import About, ScoredResponse
from tokencredit.server.client import RewardServer, about, scored
from tokencredit.server.exchange import is_address

PREFIX_CREDITS = ("prefix-difference", "smoothed-prefix-difference", "segment")


@dataclass(frozen=True)
class ServedRewardModel:
    """A served reward model as a policy sees it.

    Attributes:
        server: where it is.
        about: what it says of itself.
        policy_tokenizer: of the responses that it will score.
        shares_vocabulary: whether it reads the policy's own token ids.
    """

    server: RewardServer
    about: About
    policy_tokenizer: PreTrainedTokenizerBase
    shares_vocabulary: bool


def served_reward_model(
    server: RewardServer,
    policy_tokenizer: PreTrainedTokenizerBase,
    *,
    credit: str,
    attention_layer: int | None = None,
) -> ServedRewardModel:
    """The reward model at an address, asked once whether it has what a credit needs.

    Args:
        server: where it is.
        policy_tokenizer: of the responses that it will score.
        credit: that will be made from its scores.
        attention_layer: that `attention` should read; None takes the server's.

    Raises:
        ServerError: it does not answer.
        ConfigError: it wants another token, does not offer what the credit needs, or reads another
            layer.
    """
    said = about(server)
    needed = {"prefix-scores"} if credit in PREFIX_CREDITS else set()
    needed |= {"attention"} if credit == "attention" else set()
    if not needed <= set(said.details):
        raise ConfigError(
            f"credit {credit!r} needs {needed.pop()}, and the reward server at {server.address} "
            f"offers {', '.join(said.details) or 'none'}; expected a server that offers it: start "
            "it with other credit_methods, with a causal model for prefix scores, or choose "
            "another credit"
        )
    if credit == "attention" and attention_layer not in (None, said.attention_layer):
        raise ConfigError(
            f"attention_layer is {attention_layer} and the reward server at {server.address} reads "
            f"layer {said.attention_layer}; expected the same: change one of the two settings"
        )
    same = said.vocabulary == vocabulary_fingerprint(policy_tokenizer)
    return ServedRewardModel(server, said, policy_tokenizer, same)


def served_token_scorer(
    server: RewardServer,
    policy_tokenizer: PreTrainedTokenizerBase,
    *,
    credit: str = "prefix-difference",
    credit_beta: float = 0.8,
) -> TokenScorer:
    """Token scores of a policy's responses from a served reward model, as a callable.

    Args:
        server: where it is.
        policy_tokenizer: of the responses.
        credit: one of `CREDIT_NAMES`.
        credit_beta: the share of a score that "attention" spreads.

    Returns:
        What `score_for_policy` gives for the same model in this process. It raises as
        `served_scores` does.

    Raises:
        ServerError, ConfigError: as `served_reward_model`, or there is no such credit method.
    """
    require_credit_name(credit)
    model = served_reward_model(server, policy_tokenizer, credit=credit)

    def token_scorer(batch: ResponseBatch) -> Float[Tensor, "batch time"]:
        scores = served_scores(model, batch, attention=credit == "attention")
        return credited(credit, scores, batch.response_mask, credit_beta=credit_beta)

    return token_scorer


def served_scores(
    model: ServedRewardModel,
    batch: ResponseBatch,
    *,
    attention: bool = False,
    conversations: Sequence[Prompt] | None = None,
    score_transform: ScoreTransform | None = None,
) -> ResponseScores:
    """What `policy_scores` says of the same responses, with the model in another process.

    Args:
        model: as `served_reward_model` returns it.
        batch: responses of the policy.
        attention: whether to ask for it.
        conversations: what was asked, for a reward model that renders it itself; None takes the
            text of the prompt's ids.
        score_transform: applied to the sequence scores first and then to the prefix scores.

    Raises:
        ServerError: no answer in time, so often; or it is not what was asked for.
        DataError: a text is longer than the reward model can read, or has no prompt.
        NumericError: a score is NaN or infinite.
    """
    details = [name for name in model.about.details if attention or name != "attention"]
    ids = model.about.template == "auto" and conversations is None and model.shares_vocabulary
    if ids:
        scores = _scores_of_ids(model, batch, details)
    else:
        scores = _scores_of_texts(model, batch, details, conversations)
    device = batch.response_ids.device
    scores = ResponseScores(
        scores.sequence_scores.to(device),
        None if scores.prefix_scores is None else scores.prefix_scores.to(device),
        None if scores.attention is None else scores.attention.to(device),
    )
    return ended_scores(transformed_scores(scores, score_transform), batch.response_mask)


def _scores_of_ids(
    model: ServedRewardModel, batch: ResponseBatch, details: list[str]
) -> ResponseScores:
    """Scores of the policy's own ids, without an end of sequence that the model never saw."""
    read = attended_tokens(batch)
    if model.about.reads_eos is False:
        read = read & ~ending_tokens(model.policy_tokenizer, batch)
    texts = [
        {"prompt_ids": prompt[mask].tolist(), "response_ids": response[real].tolist()}
        for prompt, mask, response, real in zip(
            batch.prompt_ids, batch.prompt_mask, batch.response_ids, read, strict=True
        )
    ]
    rows = scored(model.server, texts, details=details, about=model.about)
    scores = _as_tensors(rows, [real.nonzero()[:, 0].tolist() for real in read], read.shape[1])
    if scores.attention is not None:
        scores.attention.masked_fill_(~batch.response_mask.cpu(), 0.0)
    return scores


def _scores_of_texts(
    model: ServedRewardModel,
    batch: ResponseBatch,
    details: list[str],
    conversations: Sequence[Prompt] | None,
) -> ResponseScores:
    """Scores in the policy's tokens, made from those in the reward model's."""
    decoded = decoded_responses(model.policy_tokenizer, batch)
    prompts = [row.prompt for row in decoded] if conversations is None else conversations
    ended = ending_tokens(model.policy_tokenizer, batch).any(-1).tolist()
    texts = [
        {"prompt": _asked(prompt, model.about), "response": row.response, "ended": end}
        for prompt, row, end in zip(prompts, decoded, ended, strict=True)
    ]
    rows = scored(model.server, texts, details=details, about=model.about)
    lengths = [len(row.token_ids) for row in rows]
    time = max(1, *lengths)
    scores = _as_tensors(rows, [list(range(length)) for length in lengths], time)
    mask = torch.arange(time) < torch.tensor(lengths)[:, None]
    spans = [row.spans for row in rows]
    return projected_scores(scores, mask, spans, decoded, batch.response_mask.shape[1])


def _asked(prompt: Prompt, about: About) -> Any:
    """A prompt as the server takes it; an empty one is a message where there are messages."""
    if isinstance(prompt, str):
        return prompt or ([{"role": "user", "content": ""}] if about.renders_chats else "")
    return [dict(message) for message in prompt]


def _as_tensors(
    rows: Sequence[ScoredResponse], columns: Sequence[Sequence[int]], time: int
) -> ResponseScores:
    """The rows of an answer as tensors, each number in the column of its token."""
    prefix_scores, attention = torch.zeros(len(rows), time + 1), torch.zeros(len(rows), time)
    for index, (row, places) in enumerate(zip(rows, columns, strict=True)):
        at = torch.tensor(places, dtype=torch.long)
        if row.prefix_scores is not None:
            prefix_scores[index, 0] = row.prefix_scores[0]
            prefix_scores[index, at + 1] = torch.tensor(row.prefix_scores[1:])
        if row.attention is not None:
            attention[index, at] = torch.tensor(row.attention)
    return ResponseScores(
        torch.tensor([row.sequence_score for row in rows]),
        None if any(row.prefix_scores is None for row in rows) else prefix_scores,
        None if any(row.attention is None for row in rows) else attention,
    )


def reward_model_of(
    config: Any, policy_tokenizer: PreTrainedTokenizerBase, **loading: Any
) -> tuple[Any, Any]:
    """The reward model of a `TrainPolicyConfig`, and its tokenizer if it is here.

    Args:
        config: the settings.
        policy_tokenizer: of the policy.
        **loading: as `load_reward_model` takes it.

    Raises:
        ModelError: as `load_reward_model`.
        ServerError, ConfigError: as `served_reward_model`.
    """
    if not is_address(config.reward_model):
        reward_model, tokenizer = load_reward_model(config.reward_model, **loading)
        return reward_model.requires_grad_(False), tokenizer
    server = reward_server_of(config)
    layer = config.attention_layer
    model = served_reward_model(
        server, policy_tokenizer, credit=config.credit, attention_layer=layer
    )
    return model, None


def reward_server_of(config: Any) -> RewardServer:
    """The reward server that settings name, with its token.

    Raises:
        ConfigError: the variable of the token is not set, or as `RewardServer`.
    """
    token = None
    if config.reward_token_variable is not None:
        token = os.environ.get(config.reward_token_variable, "").strip()
        if not token:
            raise ConfigError(
                f"reward_token_variable names {config.reward_token_variable!r}, which is not set "
                "or empty; expected the name of an environment variable that holds the token, not "
                "the token itself"
            )
    return RewardServer(
        config.reward_model,
        token,
        timeout=config.reward_server_timeout,
        retries=config.reward_server_retries,
    )


def require_settings_that_fit_a_server(config: Any) -> None:
    """Settings of a `TrainPolicyConfig` that a served reward model does not allow.

    Raises:
        ConfigError: a critic that starts from its weights, a held-out one that is served, a token
            without a server, or an address that is none.
    """
    held_out = config.held_out_reward_model
    if held_out is not None and is_address(held_out):
        raise ConfigError(
            "held_out_reward_model is an address; expected a Hub id or folder: only reward_model "
            "may be served"
        )
    if not is_address(config.reward_model):
        if config.reward_token_variable is not None:
            raise ConfigError(
                f"reward_token_variable is {config.reward_token_variable!r} and reward_model "
                f"{config.reward_model!r}, which is no address; expected http://host:port or "
                "https://host:port, or no token"
            )
        return
    if config.critic == "reward-model":
        raise ConfigError(
            "critic is 'reward-model' and reward_model an address, whose weights stay where they "
            "are; expected critic 'shared' or 'separate', or a Hub id or folder"
        )
    RewardServer(
        config.reward_model,
        timeout=config.reward_server_timeout,
        retries=config.reward_server_retries,
    )
