"""Losses where each preference is one head's or one user's, and nobody knows whose.

A pair costs each head something; how likely it is under a head is e to the minus of that. Where it
costs the mean over its prefixes, its likelihood is the geometric mean over them, so that a pair has
one head from its first token to its last.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokencredit.errors import ConfigError, ShapeError


def mixture_losses(
    losses: Float[Tensor, "pairs heads"], log_weights: Float[Tensor, "#pairs heads"]
) -> Float[Tensor, "pairs"]:
    """What each pair costs a mixture of heads: its negative log-likelihood.

        −log Σ_k w_k exp(−ℓ_k);   of Bradley-Terry −log Σ_k w_k σ(d_k)

    Args:
        losses: ℓ, what the pair costs each head alone, in nats, such as of
            `bradley_terry_losses`.
        log_weights: log w, whose exponentials add up to 1: of each pair, or the same for all.

    Returns:
        Nats, in float32, finite where the losses are; those of the head where there is one, bit for
        bit. A head's gradient is that of its own loss times its responsibility.

    Source: Liu et al. 2025, arXiv 2505.24846 (MiCRo), by logsumexp, where their code takes the
    logarithm of a sum of sigmoids, which underflows.

    >>> mixture_losses(torch.tensor([[0.5, 0.5]]), torch.tensor([[0.3, 0.7]]).log())
    tensor([0.5000])
    """
    return -torch.logsumexp(log_weights.float() - losses.float(), dim=-1)


def responsibilities(
    losses: Float[Tensor, "units heads"], log_weights: Float[Tensor, "#units heads"]
) -> Float[Tensor, "units heads"]:
    """How probably each pair, or each user by all of their pairs, is one of each head.

        w_k exp(−ℓ_k) / Σ_j w_j exp(−ℓ_j)

    Args:
        losses: ℓ, of each pair, or the sum over the pairs of each user, in nats.
        log_weights: log w, how probable each head is beforehand.

    Returns:
        Probabilities that add up to 1, in float32, without gradient.

    Source: the E-step of EM (Dempster et al. 1977), for preferences of unknown groups Chakraborty
    et al. 2024, arXiv 2402.08925 (MaxMin-RLHF).

    >>> responsibilities(torch.tensor([[0.0, 0.0]]), torch.tensor([[0.25, 0.75]]).log())
    tensor([[0.2500, 0.7500]])
    """
    return torch.softmax(log_weights.detach() - losses.detach(), dim=-1).float()


def memberships(
    losses: Float[Tensor, "pairs heads"],
    users: Int[Tensor, "pairs"],
    shares: Float[Tensor, "heads"],
    *,
    hard: bool,
) -> Float[Tensor, "users heads"]:
    """To which head each user belongs, from what their pairs cost each of them: the E-step.

    Args:
        losses: what each pair costs each head, in nats.
        users: the number of each pair's user, from 0.
        shares: of all users, how many each head has had so far; hard memberships do not read them.
        hard: whether a user belongs wholly to the head under which their pairs are likeliest.

    Returns:
        Probabilities that add up to 1 for each user, in float32.

    Raises:
        ConfigError: a share is not above 0.
        ShapeError: there is not one user for each pair.

    Source: Chakraborty et al. 2024, arXiv 2402.08925 (MaxMin-RLHF), hard in their code, where the
    likelihood is a quotient of exponentials that overflows: here logarithms are added up.

    >>> losses = torch.tensor([[0.1, 2.0], [0.9, 0.2], [0.1, 3.0]])
    >>> memberships(losses, torch.tensor([0, 1, 0]), torch.tensor([0.5, 0.5]), hard=True)
    tensor([[1., 0.],
            [0., 1.]])
    """
    if len(users) != len(losses):
        raise ShapeError(
            f"{len(users)} users for {len(losses)} pairs; expected the user of each pair"
        )
    if not bool((shares > 0).all()):
        raise ConfigError(f"the shares are {shares.tolist()}; expected numbers above 0")
    count = int(users.max()) + 1 if len(users) else 0
    sums = losses.new_zeros(count, losses.shape[1], dtype=torch.float64)
    sums.index_add_(0, users, losses.detach().double())
    if hard:
        return torch.nn.functional.one_hot(sums.argmin(-1), losses.shape[1]).float()
    return responsibilities(sums, shares.double().log()[None])


def weight_negentropy(log_weights: Float[Tensor, "pairs heads"]) -> Float[Tensor, ""]:
    """How far the weights of a mixture are from even ones: least where all are alike.

        mean over pairs of Σ_k w_k log w_k

    Args:
        log_weights: log w of each pair.

    Returns:
        Nats, from minus the logarithm of the number of heads to 0, in float32.

    Source: Liu et al. 2025, arXiv 2505.24846 (MiCRo), where it has the coefficient 0.5 and is
    described as a balance of load; what it evens is each row.

    >>> weight_negentropy(torch.tensor([[0.5, 0.5]]).log())
    tensor(-0.6931)
    """
    log_weights = log_weights.float()
    return (log_weights.exp() * log_weights).sum(-1).mean()


def kl_to_standard_normal(
    mean: Float[Tensor, "*users size"], log_var: Float[Tensor, "*users size"]
) -> Float[Tensor, "*users"]:
    """How far a normal distribution with independent parts is from the standard one.

        KL = −1/2 Σ_j (1 + log σ²_j − μ_j² − σ²_j)

    Args:
        mean: μ.
        log_var: log σ².

    Returns:
        Nats, in float32; at least 0, and 0 at the standard one.

    Source: Kingma and Welling 2013, arXiv 1312.6114, appendix B; for descriptions of users Poddar
    et al. 2024, arXiv 2408.10075.

    >>> kl_to_standard_normal(torch.tensor([1.0, 0.0]), torch.zeros(2))
    tensor(0.5000)
    """
    mean, log_var = mean.float(), log_var.float()
    return -0.5 * (1 + log_var - mean.square() - log_var.exp()).sum(-1)
