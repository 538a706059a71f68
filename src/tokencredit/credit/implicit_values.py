"""Values, action values and advantages that the logits of a DPO model imply: "from r to Q*"."""

from jaxtyping import Float
from torch import Tensor

from tokencredit.errors import ConfigError


def implicit_q_values(
    logits: Float[Tensor, "*batch vocab"], *, dpo_beta: float
) -> Float[Tensor, "*batch vocab"]:
    r"""Logits of an optimal policy read as the values of its actions.

    .. math:: Q^*(s, a) = \beta z(s, a)

    Q includes the reference: it is r(s, a) + beta log pi_ref(a | s) + V(s'). Logits may be shifted
    by any constant without changing the policy, so Q and `implicit_values` are known up to one
    constant per state, which cancels in `implicit_advantages` but not between states.

    Args:
        logits: of a policy that DPO trained, unscaled by temperature.
        dpo_beta: of that training, positive.

    Returns:
        In nats, float32.

    Raises:
        ConfigError: `dpo_beta` is not positive.

    Source: Rafailov et al. 2024, arXiv 2404.12358; Q, V and A by the identities of soft
    reinforcement learning, derived again in the tests.

    >>> import torch
    >>> implicit_q_values(torch.tensor([1.0, 3.0]), dpo_beta=0.5)
    tensor([0.5000, 1.5000])
    """
    _require_positive(dpo_beta)
    return dpo_beta * logits.float()


def implicit_values(
    logits: Float[Tensor, "*batch vocab"], *, dpo_beta: float
) -> Float[Tensor, "*batch"]:
    r"""Value of each state under the optimal policy with these logits, up to a constant per state.

    .. math:: V^*(s) = \beta \log \sum_a \exp(Q^*(s, a) / \beta)

    Args:
        logits: of a policy that DPO trained, unscaled by temperature. A constant that is added to
            the logits of a state is added to its value: differences between states mean something
            only as far as training fixed it.
        dpo_beta: of that training, positive.

    Returns:
        In nats, float32.

    Raises:
        ConfigError: `dpo_beta` is not positive.

    Source: as `implicit_q_values`.

    >>> import torch
    >>> implicit_values(torch.tensor([0.0, 0.0]), dpo_beta=0.5)
    tensor(0.3466)
    """
    _require_positive(dpo_beta)
    return dpo_beta * logits.float().logsumexp(-1)


def implicit_advantages(
    logits: Float[Tensor, "*batch vocab"], *, dpo_beta: float
) -> Float[Tensor, "*batch vocab"]:
    r"""Advantage of every action under the optimal policy with these logits; never positive.

    .. math:: A^*(s, a) = Q^*(s, a) - V^*(s) = \beta \log \pi(a \mid s)

    Args:
        logits: as in `implicit_q_values`, whose unknown constant cancels here.
        dpo_beta: of the DPO training, positive.

    Returns:
        In nats, float32. Less beta log pi_ref they are what `log_ratio_credit` gives, for every
        token of the vocabulary.

    Raises:
        ConfigError: `dpo_beta` is not positive.

    Source: as `implicit_q_values`.

    >>> import torch
    >>> implicit_advantages(torch.tensor([0.0, 0.0]), dpo_beta=0.5)
    tensor([-0.3466, -0.3466])
    """
    _require_positive(dpo_beta)
    return dpo_beta * logits.float().log_softmax(-1)


def _require_positive(dpo_beta: float) -> None:
    if not dpo_beta > 0:
        raise ConfigError(f"dpo_beta is {dpo_beta}; expected a positive number")
