"""How little the data say of a text: a lower bound of the score of a linear head."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tokencredit.errors import ConfigError, NumericError


def difference_covariance(
    chosen: Float[Tensor, "pairs width"], rejected: Float[Tensor, "pairs width"], *, ridge: float
) -> Float[Tensor, "width width"]:
    """What pairs say of each direction of the features: little where their answers are alike in it.

        Σ = 1/n Σ_i (φ_w − φ_l)(φ_w − φ_l)' + λ I

    Args:
        chosen: φ_w, the features of the preferred answers, which a linear head scores.
        rejected: φ_l, of the others.
        ridge: λ, above 0.

    Returns:
        Symmetric and positive, in float64.

    Raises:
        ConfigError: the ridge is not above 0.

    Source: Zhu et al. 2023, arXiv 2301.11270, the covariance of pessimistic MLE.

    >>> difference_covariance(torch.tensor([[2.0, 1.0]]), torch.tensor([[0.0, 1.0]]), ridge=0.5)
    tensor([[4.5000, 0.0000],
            [0.0000, 0.5000]], dtype=torch.float64)
    """
    if ridge <= 0:
        raise ConfigError(f"ridge is {ridge}; expected a number above 0")
    apart = chosen.double() - rejected.double()
    return apart.T @ apart / max(len(apart), 1) + ridge * torch.eye(
        apart.shape[1], dtype=torch.float64, device=apart.device
    )


def elliptical_norms(
    features: Float[Tensor, "*batch width"], covariance: Float[Tensor, "width width"]
) -> Float[Tensor, "*batch"]:
    """How far features lie in directions that the data say little of.

        √(φ' Σ⁻¹ φ)

    Args:
        features: φ, less a reference where one is taken.
        covariance: Σ, as of `difference_covariance`.

    Returns:
        At least 0, in the precision of the covariance; twice the features are twice as far.

    Raises:
        NumericError: the covariance is not positive.

    Source: Zhu et al. 2023, arXiv 2301.11270.

    >>> covariance = torch.tensor([[9.0, 0.0], [0.0, 0.25]])
    >>> elliptical_norms(torch.tensor([[3.0, 0.0], [0.0, 1.0]]), covariance)
    tensor([1., 2.])
    """
    return (features.to(covariance.dtype) @ whitening(covariance)).norm(dim=-1)


def whitening(covariance: Float[Tensor, "width width"]) -> Float[Tensor, "width width"]:
    """W with W W' = Σ⁻¹, so that the elliptical norm of φ is the length of φ W.

    Args:
        covariance: Σ, symmetric and positive.

    Raises:
        NumericError: it is not positive.

    >>> whitening(torch.tensor([[4.0, 0.0], [0.0, 1.0]]))
    tensor([[0.5000, 0.0000],
            [0.0000, 1.0000]])
    """
    factor, failed = torch.linalg.cholesky_ex(covariance)
    if bool(failed):
        raise NumericError(
            "the covariance of the features is not positive; expected one: raise the ridge"
        )
    identity = torch.eye(len(factor), dtype=factor.dtype, device=factor.device)
    return torch.linalg.solve_triangular(factor, identity, upper=False).T


class PessimisticScore(nn.Module):
    """A linear head less what the data do not say.

        r(φ) = R(φ) − β √((φ − ν)' Σ⁻¹ (φ − ν))

    It is a function of the state that the head reads, as R is: of a prefix it depends on nothing
    after it, and differences of prefix scores add up to it.

    Args:
        head: R.
        whitened: of `whitening`.
        reference: ν, features that cost nothing.
        coef: β, at least 0.

    Source: Zhu et al. 2023, arXiv 2301.11270, pessimistic MLE, response by response, where theirs
    is of the mean features of a policy.
    """

    whitened: Tensor
    reference: Tensor

    def __init__(
        self,
        head: nn.Linear,
        whitened: Float[Tensor, "width width"],
        reference: Float[Tensor, "width"],
        *,
        coef: float,
    ) -> None:
        super().__init__()
        self.head, self.coef = head, coef
        self.register_buffer("whitened", whitened)
        self.register_buffer("reference", reference)

    def forward(self, states: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch 1"]:
        """The score, in nats."""
        scores: Tensor = self.head(states)
        apart = (states - self.reference.to(states.dtype)) @ self.whitened.to(states.dtype)
        return scores - self.coef * apart.norm(dim=-1, keepdim=True)
