"""A causal language model with a critic: on its own trunk, or a model apart."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tokencredit.errors import ModelError
from tokencredit.models.heads import float32_outputs, scalar_scores
from tokencredit.models.hf_shared_beginnings import pass_arguments
from tokencredit.models.hf_short_attention import short_attention

Result = TypeVar("Result")


@dataclass(frozen=True)
class ActorCriticOutput:
    """What one forward pass gives for the last `time` tokens of each row.

    Attributes:
        logits: column t predicts response token t; the last column predicts what comes after.
        values: column t is V(s_t), before response token t; the last column is the state after
            the last token. In nats; None without a critic.
    """

    logits: Float[Tensor, "batch time_plus_1 vocab"]
    values: Float[Tensor, "batch time_plus_1"] | None


class ActorCritic(nn.Module):
    """A policy and its critic as one module, so that one optimiser and one wrapper serve both.

    Args:
        policy: a causal language model, or a PEFT model around one.
        critic: a sequence-classification model whose head, applied at every position, is the
            value; "shared" puts a linear value head on the policy's own last hidden states,
            starting at zero; None is no critic, and no values.
        reads_beginnings_once: whether what all rows of a batch begin with goes through the models
            once. False makes one forward pass for every call, which is what sharded weights need.

    Raises:
        ModelError: the policy has no output embeddings to read hidden states from.
    """

    def __init__(
        self,
        policy: Any,
        critic: Any | Literal["shared"] | None = "shared",
        *,
        reads_beginnings_once: bool = True,
    ) -> None:
        super().__init__()
        self.policy = policy
        self.reads_beginnings_once = reads_beginnings_once
        self.critic = None if critic == "shared" else critic
        head = policy.get_output_embeddings()
        if head is None:
            raise ModelError(
                f"{type(policy).__name__} has no output embeddings; expected a causal language "
                "model (AutoModelForCausalLM)"
            )
        if critic == "shared":
            self.value_head = nn.Linear(head.weight.shape[1], 1)
            nn.init.zeros_(self.value_head.weight)
            nn.init.zeros_(self.value_head.bias)
            self.value_head.to(head.weight.device)

    def forward(
        self,
        input_ids: Int[Tensor, "batch sequence"],
        attention_mask: Int[Tensor, "batch sequence"],
        num_response_tokens: int,
    ) -> ActorCriticOutput:
        """Logits and values where response tokens are predicted, nothing elsewhere."""
        columns, sequence = num_response_tokens + 1, input_ids.shape[1]

        def arguments(model: Any) -> dict[str, Any]:
            return pass_arguments(
                model, input_ids, attention_mask, columns=columns, once=self.reads_beginnings_once
            )

        with short_attention(self.policy, sequence):
            asked = arguments(self.policy)
            with _head_input(self.policy) as captured:
                logits = last_columns(self.policy(**asked, logits_to_keep=columns).logits, columns)
        if self.critic is not None:
            with short_attention(self.critic, sequence):
                values = _score_at_every_position(self.critic, arguments(self.critic))
            values = values[:, -columns:]
        elif self.has_value_head:
            values = float32_outputs(self.value_head, captured[-1][:, -columns:]).squeeze(-1)
        else:
            return ActorCriticOutput(logits, None)
        return ActorCriticOutput(logits, values.float())

    @property
    def has_value_head(self) -> bool:
        """Whether values are read off the policy's own hidden states."""
        return hasattr(self, "value_head")

    def policy_alone(self, call: Callable[[Any], Result]) -> Result:
        """What `call` returns for the policy; what shards this module gathers it around the call.

        Args:
            call: a function of the policy, which may run it as often as it likes.
        """
        return call(self.policy)

    def adapters_off(self, call: Callable[[Any], Result]) -> Result:
        """What `call` returns for a PEFT policy as it was before training, its own reference."""

        def called(policy: Any) -> Result:
            with policy.disable_adapter():
                return call(policy)

        return self.policy_alone(called)

    @property
    def _no_split_modules(self) -> list[str]:
        """Names of the layer classes of both models, by which Accelerate shards them."""
        models = (self.policy,) if self.critic is None else (self.policy, self.critic)
        return sorted({name for model in models for name in model._no_split_modules or ()})


def last_columns(
    logits: Float[Tensor, "batch sequence vocab"], count: int
) -> Float[Tensor, "batch count vocab"]:
    """The last columns of logits; the tensor itself where there are no others.

    A slice of everything would have a backward pass that fills and copies a tensor of that size.
    """
    return logits if logits.shape[1] == count else logits[:, -count:]


@contextmanager
def _head_input(policy: Any) -> Iterator[list[Tensor]]:
    """Hidden states that enter the output embeddings: the trunk's result, whatever its class."""
    captured: list[Tensor] = []
    handle = policy.get_output_embeddings().register_forward_pre_hook(
        lambda _module, inputs: captured.append(inputs[0])
    )
    try:
        yield captured
    finally:
        handle.remove()


def _score_at_every_position(
    critic: Any, arguments: dict[str, Any]
) -> Float[Tensor, "batch sequence"]:
    hidden = critic.base_model(**arguments).last_hidden_state
    return scalar_scores(float32_outputs(critic.score, hidden))


def save_actor_critic(actor_critic: ActorCritic, weights: dict[str, Tensor], folder: Path) -> None:
    """Write `policy/` in HF layout, and a critic as `critic/` or `value_head.safetensors`.

    Args:
        actor_critic: says what is written.
        weights: its `state_dict()`, with whole tensors.
        folder: an existing one.
    """
    actor_critic.policy.save_pretrained(folder / "policy", state_dict=_part(weights, "policy"))
    if actor_critic.critic is not None:
        actor_critic.critic.save_pretrained(folder / "critic", state_dict=_part(weights, "critic"))
    elif actor_critic.has_value_head:
        head = {name: value.contiguous() for name, value in _part(weights, "value_head").items()}
        save_file(head, folder / "value_head.safetensors")


def _part(weights: dict[str, Tensor], module: str) -> dict[str, Tensor]:
    prefix = f"{module}."
    return {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}


def load_value_head(actor_critic: ActorCritic, folder: Path) -> None:
    """Read a value head that `save_actor_critic` wrote."""
    actor_critic.value_head.load_state_dict(load_file(folder / "value_head.safetensors"))
