"""A reward manager for verl that pays every token, loaded by verl's own configuration.

    reward.reward_manager.source=importlib
    reward.reward_manager.module.path=pkg://tokencredit.engines.verl_rewards
    reward.reward_manager.name=TokenCreditRewardManager

Its settings stand under `reward.reward_kwargs`. To load this file registers the estimators of
`verl_estimators.py` too: verl's trainer loads it where it makes the advantages.
"""

import asyncio
import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tokencredit.credit.redistribution import terminal_credit
from tokencredit.engines.hf_token_rewards import TokenRewards, reward_model_token_rewards
from tokencredit.engines.verl_estimators import VERL_ESTIMATORS
from tokencredit.engines.verl_responses import (
    PolicyResponse,
    ScoreWithTokens,
    joined_responses,
    placed_scores,
    policy_response,
)
from tokencredit.engines.verl_settings import (
    RewardSettings,
    require_token_path,
    reward_settings,
)
from tokencredit.engines.versions import require_version
from tokencredit.errors import NumericError
from tokencredit.evaluation.credit_shape import credit_entropy, last_token_share
from tokencredit.models.hf_loading import model_description
from tokencredit.scorers.source_settings import required_sources

require_version("verl", at_least="0.9.1", below="0.10", extra="verl")
from verl import DataProto  # noqa: E402
from verl.experimental.reward_loop.reward_manager.naive import NaiveRewardManager  # noqa: E402
from verl.utils.fs import copy_to_local  # noqa: E402

__all__ = ["VERL_ESTIMATORS", "TokenCreditRewardManager", "no_outcome"]


def no_outcome(**_: Any) -> float:
    """Nothing: a custom reward function for verl to name where it insists on one."""
    return 0.0


class TokenCreditRewardManager(NaiveRewardManager):  # type: ignore[misc]
    """Scores responses with a reward model in this process, and pays every token.

    What it returns for a response is a number, the sum of its token scores, that carries them: see
    `ScoreWithTokens`. Besides: `token_credit_sum`, `token_credit_last_share` (of the absolute
    scores, that of the last token) and `token_credit_entropy` of those shares, in nats.

    Args:
        config: verl's.
        tokenizer: the policy's.
        compute_score: verl's own score, for `outcome_weight`.
        reward_router_address: of verl's reward model server; it is not asked.
        reward_model_tokenizer: of that server; not used.

    Raises:
        ConfigError: a setting is unknown or contradicts another.
        ModelError: the reward model cannot be loaded, or the policy's configuration is not there.
    """

    def __init__(
        self,
        config: Any,
        tokenizer: Any,
        compute_score: Any,
        reward_router_address: str | None = None,
        reward_model_tokenizer: Any = None,
    ) -> None:
        super().__init__(
            config, tokenizer, compute_score, reward_router_address, reward_model_tokenizer
        )
        require_token_path(config)
        self.settings = reward_settings(config.reward.get("reward_kwargs") or {})
        policy = config.actor_rollout_ref.model
        described = model_description(
            copy_to_local(policy.path), trust_remote_code=policy.get("trust_remote_code", False)
        )
        self.token_rewards = _loaded(self.settings, tokenizer, described)
        self._waiting: list[tuple[PolicyResponse, asyncio.Future[Tensor]]] = []
        self._scoring: asyncio.Task[None] | None = None

    async def run_single(self, data: DataProto) -> dict[str, Any]:
        """Score one response; those that are asked for at once share a forward pass.

        Returns:
            `reward_score`, a `ScoreWithTokens`, and `reward_extra_info`.

        Raises:
            DataError: the response or its prompt cannot be scored.
            NumericError: a score is NaN or infinite.
        """
        response = policy_response(data)
        scores, extra = await self._scored_with_others(response), {}
        if self.settings.outcome_weight:
            self.loop = asyncio.get_running_loop()
            outcome = await super().run_single(data)
            extra = outcome["reward_extra_info"]
            paid = torch.tensor([self.settings.outcome_weight * outcome["reward_score"]])
            scores = scores + terminal_credit(paid, response.response_mask[None])[0]
        if not bool(scores.isfinite().all()):
            raise NumericError("a token score is NaN or infinite; expected finite numbers")
        score = ScoreWithTokens(scores.tolist())
        return {"reward_score": score, "reward_extra_info": {**extra, **_info(scores, response)}}

    @classmethod
    def assemble_rm_scores(cls, data: DataProto, scores: list[float]) -> Tensor:
        """Token scores in verl's columns, where verl scores whole batches."""
        return placed_scores(data, scores)

    async def _scored_with_others(self, response: PolicyResponse) -> Float[Tensor, "time"]:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Tensor] = loop.create_future()
        self._waiting.append((response, answer))
        if self._scoring is None or self._scoring.done():
            self._scoring = loop.create_task(self._score_waiting())
        return await answer

    async def _score_waiting(self) -> None:
        """Until nobody waits; what arrives during a forward pass shares the next one."""
        await asyncio.sleep(0)
        size = self.settings.micro_batch_size
        while self._waiting:
            taken, self._waiting = self._waiting[:size], self._waiting[size:]
            await self._answer(taken)

    async def _answer(self, taken: "list[tuple[PolicyResponse, asyncio.Future[Tensor]]]") -> None:
        """A response that cannot be scored fails alone: those beside it are scored one by one."""
        try:
            scores = await asyncio.to_thread(self._token_scores, [row for row, _ in taken])
        except Exception as error:
            for one in taken if len(taken) > 1 else ():
                await self._answer([one])
            if not taken[0][1].done():
                taken[0][1].set_exception(error)
            return
        for row, (response, answer) in zip(scores, taken, strict=True):
            if not answer.done():
                answer.set_result(row[: len(response.response_ids)])

    def _token_scores(self, responses: list[PolicyResponse]) -> Float[Tensor, "batch time"]:
        batch = joined_responses(responses).to(_device(self.settings.device))
        messages = [row.messages for row in responses if row.messages is not None]
        scores = self.token_rewards(
            batch.prompt_ids,
            batch.prompt_mask.long(),
            batch.response_ids,
            batch.response_mask.long(),
            prompts=messages if len(messages) == len(responses) else None,
        )
        return scores.float().cpu()


def _loaded(settings: RewardSettings, tokenizer: Any, policy: Any) -> TokenRewards:
    """The rewards as a callable, that knows all that ends a response of the policy."""
    sources = required_sources(settings.reward_model, settings.rewards, combine=settings.combine)
    return reward_model_token_rewards(
        sources,
        tokenizer,
        credit=settings.credit,
        segments=settings.segments,
        combine=settings.combine,
        reading=settings.reading,
        dtype=settings.dtype,
        policy=policy,
        turn_ends=settings.turn_ends,
    )


def _device(name: str) -> str:
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


def _info(scores: Float[Tensor, "time"], response: PolicyResponse) -> dict[str, float]:
    row, mask = scores[None], response.response_mask[None]
    return {
        "token_credit_sum": math.fsum(scores.tolist()),
        "token_credit_last_share": float(last_token_share(row, mask)),
        "token_credit_entropy": float(credit_entropy(row, mask)),
    }
