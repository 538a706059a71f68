"""What describes a user by the pairs of answers that were chosen between, and scores by it."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention


class PairSetEncoder(nn.Module):
    """From pairs of a user, in any order and number, to a normal distribution of descriptions.

        c_i = MLP([e_w,i ; e_l,i]),   s = mean_i attention(c)_i,   μ = W_m s,   log σ² = W_v s

    Args:
        features: numbers that describe a text.
        width: units of the hidden layer and of what describes a pair.
        size: numbers that describe a user.

    Source: Poddar et al. 2024, arXiv 2408.10075 (VPL), with one attention head and no positions, as
    in their code. Departures: features are standardised; means and log-variances are kept between
    −1 and 1 by tanh, where their clamp leaves no gradient to what is outside.
    """

    center: Tensor
    scale: Tensor

    def __init__(self, features: int, *, width: int, size: int) -> None:
        super().__init__()
        self.features = features
        self.register_buffer("center", torch.zeros(features))
        self.register_buffer("scale", torch.ones(features))
        layers = nn.Linear(2 * features, width), nn.ReLU(), nn.Linear(width, width)
        self.pair = nn.Sequential(*layers)
        self.attention = nn.Linear(width, 3 * width)
        self.mean, self.log_var = nn.Linear(width, size), nn.Linear(width, size)

    def standardise(self, features: Float[Tensor, "*texts features"]) -> None:
        """Take these features for usual ones: their mean is 0 from now on, their deviation 1.

        Args:
            features: of texts to learn from.
        """
        flat = features.flatten(0, -2)
        self.center.copy_(flat.mean(0))
        self.scale.copy_(flat.std(0, correction=0).clamp(min=1e-6))

    def forward(
        self,
        pairs: Float[Tensor, "users pairs 2 features"],
        there: Bool[Tensor, "users pairs"],
    ) -> tuple[Float[Tensor, "users size"], Float[Tensor, "users size"]]:
        """Mean and log-variance of each user's description, both between -1 and 1.

        Args:
            pairs: features of the answer that the user chose and of the other one.
            there: True on pairs; under False anything may stand.

        Returns:
            Zeros for a user without pairs: those of the prior.
        """
        standard = (pairs - self.center) / self.scale
        counted = standard.masked_fill(~there[..., None, None], 0.0)
        queries, keys, values = self.attention(self.pair(counted.flatten(2))).chunk(3, dim=-1)
        known = there.any(-1)
        seen = (there | ~known[:, None])[:, None]  # nobody to look at would be NaN
        mixed = scaled_dot_product_attention(queries, keys, values, attn_mask=seen)
        counts = there.sum(-1, keepdim=True).clamp(min=1)
        summed = mixed.masked_fill(~there[..., None], 0.0).sum(1) / counts
        mean, log_var = (
            layer(summed).tanh().masked_fill(~known[:, None], 0.0)
            for layer in (self.mean, self.log_var)
        )
        return mean, log_var


MOST_PAIRS = 256
"""Pairs that a user is described by at most, the first ones."""


@torch.no_grad()
def mean_description(
    encoder: PairSetEncoder, pairs: Float[Tensor, "pairs 2 features"]
) -> Float[Tensor, "size"]:
    """The mean of the distribution that some pairs of a user say, on the CPU.

    Args:
        encoder: as it was trained.
        pairs: features of the answer that the user chose and of the other one; none gives the mean
            of the prior, which is 0.

    Source: Poddar et al. 2024, arXiv 2408.10075, where a user is the mean in use.

    >>> mean_description(PairSetEncoder(4, width=8, size=2), torch.zeros(0, 2, 4))
    tensor([0., 0.])
    """
    shown = pairs[:MOST_PAIRS][None].to(encoder.mean.weight.device)
    there = torch.ones(shown.shape[:2], dtype=torch.bool, device=shown.device)
    mean: Tensor = encoder(shown, there)[0][0]
    return mean.cpu()


def description_on_sphere(
    description: Float[Tensor, "*users size"],
) -> Float[Tensor, "*users size"]:
    """A description of a user at the length that normal ones have, √size.

    Args:
        description: of a user; zeros stay zeros.

    Source: Poddar et al. 2024, arXiv 2408.10075: in their code in training alone, here in use too.

    >>> description_on_sphere(torch.tensor([3.0, 4.0, 0.0, 0.0]))
    tensor([1.2000, 1.6000, 0.0000, 0.0000])
    """
    length = description.norm(dim=-1, keepdim=True).clamp(min=1e-6)
    return description * description.shape[-1] ** 0.5 / length


class UserDecoder(nn.Module):
    """A score of what describes a text and of what describes a user.

        R = v · relu(A e + B z + b) + c

    Args:
        features: numbers that describe a text.
        width: units of the hidden layer.
        size: numbers that describe a user.

    Source: Poddar et al. 2024, arXiv 2408.10075 (VPL).
    """

    def __init__(self, features: int, *, width: int, size: int) -> None:
        super().__init__()
        self.text = nn.Linear(features, width)
        self.user = nn.Linear(size, width, bias=False)
        self.score = nn.Linear(width, 1)

    def forward(
        self, text: Float[Tensor, "*batch features"], user: Float[Tensor, "*#batch size"]
    ) -> Float[Tensor, "*batch"]:
        """The score, in nats."""
        score: Tensor = self.score((self.text(text) + self.user(user)).relu())[..., 0]
        return score

    def of_user(self, user: Float[Tensor, "size"]) -> nn.Sequential:
        """The layers that score texts as one user would, with an output axis of length 1."""
        text = nn.Linear(self.text.in_features, self.text.out_features)
        with torch.no_grad():
            text.weight.copy_(self.text.weight)
            text.bias.copy_(self.text.bias + self.user(user))
        return nn.Sequential(text, nn.ReLU(), self.score)
