"""A reward model and the name of a credit as the callable that adapters take."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from tokencredit.aggregation.methods import CombinationSettings
from tokencredit.batch import Prompt, ResponseBatch
from tokencredit.credit.settings import CreditSettings
from tokencredit.scorers.hf_local import LocalScorer
from tokencredit.scorers.hf_pooled import PooledRewardModel
from tokencredit.scorers.rewards import Rewards
from tokencredit.scorers.source_settings import RewardSource, is_local, required_sources
from tokencredit.scorers.sources import loaded_rewards
from tokencredit.scorers.texts import loaded_reward_model
from tokencredit.text.hf_known_readings import reading_of, written_by
from tokencredit.text.reading_settings import ReadingSettings
from tokencredit.text.segments import SegmentSettings


@runtime_checkable
class TokenRewards(Protocol):
    """Anything that pays every token of generated completions.

    Ids of prompts are padded on the left, of completions on the right; masks are 1 where a token
    counts. A tool's tokens inside a completion do not count.
    """

    def __call__(
        self,
        prompt_ids: Int[Tensor, "batch prompt"],
        prompt_mask: Int[Tensor, "batch prompt"],
        completion_ids: Int[Tensor, "batch time"],
        completion_mask: Int[Tensor, "batch time"],
        prompts: Sequence[Prompt] | None = None,
    ) -> Float[Tensor, "batch time"]:
        """Return finite rewards in nats."""
        ...


def reward_model_token_rewards(
    reward_model: nn.Module | str | Sequence[RewardSource],
    policy_tokenizer: PreTrainedTokenizerBase,
    *,
    reward_tokenizer: PreTrainedTokenizerBase | None = None,
    credit: CreditSettings | str = "prefix-difference",
    segments: SegmentSettings | None = None,
    combine: CombinationSettings | None = None,
    micro_batch_size: int | None = None,
    reading: ReadingSettings | None = None,
    dtype: str = "float32",
    policy: Any = None,
    turn_ends: Sequence[str] = (),
) -> "ModelTokenRewards":
    """Token rewards from a reward model, by any credit method that does not read the policy.

    A reward model with another tokenizer than the policy's reads the text instead of the ids, and
    what it says is carried over to the policy's tokens by characters. Prompts that are messages
    are rendered for it by its own chat template.

    Args:
        reward_model: a sequence-classification model, its folder, Hub id or the address of a
            `tokencredit serve` or, with `vllm+` before it, of a vLLM server; or a list of sources
            of reward.
        policy_tokenizer: that of the generated ids.
        reward_tokenizer: of the reward model; None takes the one beside it, for a folder or id, or
            else the policy's.
        credit: a method of `CREDIT_METHODS` by its name, or with its options.
        segments: how completions are cut, for methods that need it or to pay at their ends.
        combine: how several sources become one reward.
        micro_batch_size: completions per forward pass at most; None sets no limit of its own.
        reading: how the reward model reads texts; None leaves that to the model.
        dtype: of the weights, for a folder or id.
        policy: that writes the completions, whose files name what ends them too: a model, its
            folder or Hub id; None asks its tokenizer alone.
        turn_ends: more tokens that end a completion, as texts. One that ended is read closed.

    Returns:
        The callable. It also takes the prompts, to render those that are messages.

    Raises:
        ConfigError: there is no such credit, or it needs a model and none is named.
        ModelError: a model cannot be loaded, or the reward model lacks what the credit needs.
    """
    settings = CreditSettings(credit) if isinstance(credit, str) else credit
    known: dict[str, Any] = {}
    if isinstance(reward_model, nn.Module):
        own = reward_tokenizer or policy_tokenizer
        model = reward_model.eval().requires_grad_(False)
        known = {"reward": (model, reading_of(model, own, reading))}
        reward_model = "reward"
    elif isinstance(reward_model, str) and is_local(reward_model):
        model, read = loaded_reward_model(reward_model, reading, dtype=dtype)
        if reward_tokenizer is not None:
            read = reading_of(model, reward_tokenizer, reading)
        known = {reward_model: (model.requires_grad_(False), read)}
    listed = () if isinstance(reward_model, str) else tuple(reward_model)
    rewards = loaded_rewards(
        required_sources(
            reward_model if isinstance(reward_model, str) else None, listed, combine=combine
        ),
        settings,
        segments or SegmentSettings(),
        combine or CombinationSettings(),
        written_by(policy_tokenizer, policy, extra=turn_ends),
        known=known,
        reading=reading,
        micro_batch_size=micro_batch_size,
        loading={"dtype": dtype},
    )
    return ModelTokenRewards(rewards)


@dataclass(frozen=True)
class ModelTokenRewards:
    """`TokenRewards` of loaded sources.

    Attributes:
        rewards: the sources with their credit.
    """

    rewards: Rewards

    @property
    def turn_ends(self) -> tuple[int, ...]:
        """The ids after which a completion is read as ended."""
        return self.rewards.credited.writer.turn_ends

    @torch.no_grad()
    def __call__(
        self,
        prompt_ids: Int[Tensor, "batch prompt"],
        prompt_mask: Int[Tensor, "batch prompt"],
        completion_ids: Int[Tensor, "batch time"],
        completion_mask: Int[Tensor, "batch time"],
        prompts: Sequence[Prompt] | None = None,
    ) -> Float[Tensor, "batch time"]:
        """Token rewards in nats."""
        batch = ResponseBatch(
            prompt_ids, prompt_mask.bool(), completion_ids, completion_mask.bool()
        )
        for module in self.rewards.modules:
            module.to(prompt_ids.device)
        # A model that joins texts is given the prompt's ids, as the policy's template wrote them.
        scorers = [one.scorer for one in self.rewards.sources]
        renders = all(
            scorer.reading.template != "plain"
            for scorer in scorers
            if isinstance(scorer, LocalScorer | PooledRewardModel)
        )
        chats = prompts if prompts and renders and not isinstance(prompts[0], str) else None
        return self.rewards(batch, chats)
