"""TRL's GRPOTrainer with an advantage on every token.

TRL's loss takes advantages of shape (batch, time) from subclasses. This one overrides three methods
that make them, and none that makes the loss: every type of loss, LoRA, vLLM, tools and distributed
training are TRL's own.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import pad

from tokencredit.batch import ResponseBatch
from tokencredit.credit.redistribution import terminal_credit
from tokencredit.engines.versions import require_version
from tokencredit.errors import ConfigError, NumericError, ShapeError
from tokencredit.evaluation.credit_shape import credit_entropy, last_token_share
from tokencredit.masking import masked_mean, masked_row_mean, masked_var
from tokencredit.models.hf_ends import turn_end_ids
from tokencredit.policy.methods import named_advantages, require_estimator

require_version("trl", at_least="1.16", below="1.17", extra="trl")
from trl import GRPOConfig, GRPOTrainer  # noqa: E402


class TokenCreditGRPOTrainer(GRPOTrainer):  # type: ignore[misc]
    """GRPO on token rewards.

        r_{i,t} = w_0 c_{i,t} + 1[t = T_i] Σ_{k ≥ 1} w_k R_k(x, y_i)

    Here c are the token rewards, R_k the rewards of TRL's own reward functions, which are paid on
    the last token of the policy, and w TRL's `reward_weights`. From r an estimator of
    `tokencredit.policy` makes advantages with the statistics of the whole group, over all
    processes, and TRL's loss takes them token by token.

    Args:
        model: as TRL takes it.
        token_rewards: a callable from `prompt_ids`, `prompt_mask`, `completion_ids` and
            `completion_mask` to rewards of the shape of `completion_ids`, see `TokenRewards`; one
            that has a parameter `prompts` gets the prompts, as texts or messages, too.
        estimator: one of `ESTIMATOR_NAMES`. "grpo" follows TRL's `scale_rewards`, which no other
            does.
        gamma: discount of rewards to go.
        reward_funcs: further rewards, one per completion, as TRL takes them.
        args: TRL's settings. The first of its `reward_weights` is that of the token rewards.
        reward_processing_classes: one for each of `reward_funcs`.
        **kwargs: everything else that GRPOTrainer takes.

    Raises:
        ConfigError: no estimator has this name, a setting acts on TRL's advantages alone, or the
            token rewards do not know all tokens that end a completion of the policy.

    What is logged besides: `token_credit/reward_mean` and `/reward_std` over tokens,
    `/last_token_share` (of the absolute rewards of a completion) and `/entropy` of those shares.
    The rewards of a completion sum to its column `token_reward_sums`; TRL's column `advantage` is
    TRL's own, of these sums, which the loss does not see.
    """

    _tag_names = ["trl", "grpo", "tokencredit"]  # noqa: RUF012

    def __init__(
        self,
        model: Any,
        *,
        token_rewards: Callable[..., Tensor],
        estimator: str = "leave-one-out-to-go",
        gamma: float = 1.0,
        reward_funcs: Any = None,
        args: GRPOConfig | None = None,
        reward_processing_classes: Any = None,
        **kwargs: Any,
    ) -> None:
        require_estimator(estimator, gamma=gamma)
        aggregation = getattr(args, "multi_objective_aggregation", "sum_then_normalize")
        if aggregation != "sum_then_normalize":
            raise ConfigError(
                f"multi_objective_aggregation is {aggregation!r}, which acts on TRL's advantages "
                "alone; expected 'sum_then_normalize'"
            )
        self.token_rewards, self.estimator, self.gamma = token_rewards, estimator, gamma
        parameters = inspect.signature(token_rewards).parameters
        self._takes_prompts = "prompts" in parameters
        processing = _listed(reward_processing_classes)
        super().__init__(
            model,
            reward_funcs=[self.token_reward_sums, *_listed(reward_funcs)],
            args=args,
            reward_processing_classes=[None, *processing] if processing else None,
            **kwargs,
        )
        self._require_known_ends()

    def _require_known_ends(self) -> None:
        """Raise ConfigError where completions that ended would be read as cut off."""
        known = getattr(self.token_rewards, "turn_ends", None)
        if known is None:  # it reads no text, or is not ours
            return
        model = self.accelerator.unwrap_model(self.model)
        unknown = [id_ for id_ in turn_end_ids(self._tokenizer, model) if id_ not in known]
        if unknown:
            raise ConfigError(
                "the policy also ends its completions with "
                f"{self._tokenizer.convert_ids_to_tokens(unknown)}, which token_rewards would read "
                "as cut off; expected token rewards that know it: "
                "reward_model_token_rewards(..., policy=...) with the policy's name"
            )

    def _generate(self, prompts: list[Any]) -> Any:
        generated = super()._generate(prompts)
        self._prompt_ids_list, self._tool_mask_list = generated[0], generated[2]
        return generated

    def token_reward_sums(
        self,
        *,
        prompts: list[Any],
        completion_ids: list[list[int]],
        log_metric: Callable[[str, float], None],
        log_extra: Callable[[str, list[Any]], None],
        **_: Any,
    ) -> list[float]:
        """What TRL takes for the reward function: the sum over each completion.

        Raises:
            ShapeError: there is not one reward per token.
            NumericError: a reward is NaN or infinite.
        """
        tools = self._tool_mask_list
        batch = ResponseBatch.of_rows(
            self._prompt_ids_list,
            completion_ids,
            masks=[[bool(chosen) for chosen in row] for row in tools] if tools else None,
            pad_token_id=self._tokenizer.pad_token_id,
            device=self.accelerator.device,
        )
        mask = batch.response_mask
        extra = {"prompts": prompts} if self._takes_prompts else {}
        rewards = self.token_rewards(
            batch.prompt_ids, batch.prompt_mask.long(), batch.response_ids, mask.long(), **extra
        )
        self._token_rewards = _checked(rewards, mask)
        for name, value in _statistics(self._token_rewards, mask).items():
            log_metric(f"token_credit/{name}", value)
        if self.log_completions:
            rows = zip(self._token_rewards, mask, strict=True)
            log_extra("token_rewards", [[round(r, 4) for r in row[m].tolist()] for row, m in rows])
        sums: list[float] = self._token_rewards.sum(-1).tolist()
        return sums

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Tensor:
        self._rewards_per_func: Tensor = super()._calculate_rewards(*args, **kwargs)
        return self._rewards_per_func

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        mask = output["completion_mask"].bool()
        if "tool_mask" in output:
            mask = mask & output["tool_mask"].bool()
        output["advantages"] = self._token_advantages(mask)
        return output

    def _token_advantages(self, mask: Bool[Tensor, "batch time"]) -> Float[Tensor, "batch time"]:
        """Advantages of this process, with the statistics of all processes."""
        rank, size, time = self.accelerator.process_index, len(mask), mask.shape[1]
        own = slice(rank * size, (rank + 1) * size)
        weights = self.reward_weights.to(mask.device)
        others = (self._rewards_per_func[own, 1:] * weights[1:]).nansum(-1)
        rewards = pad(weights[0] * self._token_rewards, (0, time - self._token_rewards.shape[1]))
        rewards = rewards.masked_fill(~mask, 0.0) + terminal_credit(others, mask)
        all_rewards, all_masks = self._gathered(rewards), self._gathered(mask.int()).bool()
        group_size = self.num_generations if self.model.training else self.num_generations_eval
        advantages = named_advantages(
            self.estimator,
            all_rewards,
            all_masks,
            torch.arange(len(all_rewards), device=mask.device) // group_size,
            gamma=self.gamma,
            scale=self.scale_rewards,
        )
        return advantages[own, :time]

    def _gathered(self, values: Tensor) -> Tensor:
        """Values of all processes, as wide as the widest of them."""
        gathered: Tensor = self.accelerator.gather(
            self.accelerator.pad_across_processes(values, dim=1)
        )
        return gathered


def _listed(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def _checked(rewards: Tensor, mask: Bool[Tensor, "batch time"]) -> Float[Tensor, "batch time"]:
    """Rewards in float32, zero on what the policy did not choose.

    Raises:
        ShapeError: there is not one reward per token.
        NumericError: one that counts is NaN or infinite.
    """
    if rewards.shape != mask.shape:
        raise ShapeError(
            f"token_rewards answered with shape {tuple(rewards.shape)} for completions of shape "
            f"{tuple(mask.shape)}; expected one reward per token"
        )
    rewards = rewards.detach().to(mask.device, torch.float32).masked_fill(~mask, 0.0)
    if not bool(rewards.isfinite().all()):
        raise NumericError("token_rewards answered with NaN or infinity; expected finite numbers")
    return rewards


def _statistics(
    rewards: Float[Tensor, "batch time"], mask: Bool[Tensor, "batch time"]
) -> dict[str, float]:
    speaks = mask.any(-1)
    values = {
        "reward_mean": masked_mean(rewards, mask),
        "reward_std": masked_var(rewards, mask).sqrt(),
        "last_token_share": masked_row_mean(last_token_share(rewards, mask), speaks),
        "entropy": masked_row_mean(credit_entropy(rewards, mask), speaks),
    }
    return dict(zip(values, torch.stack(list(values.values())).tolist(), strict=True))
