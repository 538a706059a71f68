"""Weights between those of a model before a training and after it.

A policy that was trained on a reward forgets some of what it could do. Weights on the way back to
where it began have most of the reward and less of that tax. All functions here go over named
weights, each of which has one share: 0 for the model before, 1 for the trained one.
"""

import re
from collections.abc import Iterable, Mapping

from jaxtyping import Float
from torch import Tensor

from tokencredit.errors import ConfigError, ModelError

Weights = Mapping[str, Tensor]


def merged_weights(
    base: Weights, tuned: Weights, shares: Mapping[str, float | Tensor]
) -> dict[str, Tensor]:
    """Weights between those of two models.

        θ = θ_base + a (θ_tuned − θ_base)

    Args:
        base: of the model before its training.
        tuned: of the trained one, the same names and shapes; a tied weight once.
        shares: a of each weight, a number or a tensor that asks for a gradient.

    Returns:
        Weights by name; those of a share of 0 and of 1 are those of the models, bit for bit.

    Raises:
        ModelError: the models differ in the names or the shapes of their weights, as they do where
            one ties weights that the other does not.

    >>> import torch
    >>> base, tuned = {"w": torch.tensor([0.0, 2.0])}, {"w": torch.tensor([1.0, 4.0])}
    >>> merged_weights(base, tuned, {"w": 0.5})["w"]
    tensor([0.5000, 3.0000])
    """
    require_same_shapes(base, tuned)
    merged = {}
    for name, before in base.items():
        share, after = shares[name], tuned[name]
        if isinstance(share, float) and share in (0.0, 1.0):
            merged[name] = after if share else before
        else:
            merged[name] = before + share * (after - before)
    return merged


def require_same_shapes(base: Weights, tuned: Weights) -> None:
    """Raise ModelError unless two models have weights of the same names and shapes."""
    alone = sorted(base.keys() ^ tuned.keys())
    if alone:
        where = "the base" if alone[0] in base else "the trained model"
        raise ModelError(
            f"{len(alone)} weights are in one of the models alone, such as {alone[0]!r} in "
            f"{where}; expected one architecture, with the same weights tied: a head that one of "
            "them shares with its embeddings is no weight of its own there"
        )
    for name, before in base.items():
        if before.shape != tuned[name].shape:
            raise ModelError(
                f"{name!r} has shape {tuple(before.shape)} in the base and "
                f"{tuple(tuned[name].shape)} in the trained model; expected one architecture and "
                "one vocabulary"
            )


def weight_depths(names: Iterable[str]) -> tuple[dict[str, int | None], int]:
    """The number of the block that each weight stands in, None outside blocks; and their count.

    Blocks are the longest numbered list of modules in the names.

    Raises:
        ModelError: there are no numbered blocks.

    >>> weight_depths(["embed.weight", "layers.0.w", "layers.1.w", "layers.1.experts.7.w"])
    ({'embed.weight': None, 'layers.0.w': 0, 'layers.1.w': 1, 'layers.1.experts.7.w': 1}, 2)
    """
    names = list(names)
    found = {name: re.match(r"(.*?)\.(\d+)\.", name) for name in names}
    lists: dict[str, set[int]] = {}
    for match in found.values():
        if match:
            lists.setdefault(match[1], set()).add(int(match[2]))
    if not lists:
        raise ModelError(
            f"none of {len(names)} weights stands in a numbered block; expected a model of layers"
        )
    longest = max(lists, key=lambda one: len(lists[one]))
    depths = {
        name: int(match[2]) if match and match[1] == longest else None
        for name, match in found.items()
    }
    return depths, len(lists[longest])


def lines_shares(names: Iterable[str], *, alpha: float, beta: float) -> dict[str, float]:
    """Shares that rise with the depth of a block (LiNeS).

        a_l = α + β l / (L − 1),   α outside blocks

    The first blocks, which carry what is general, stay near the model before; the last ones take
    most of what was learnt.

    Args:
        names: of the weights.
        alpha: share of the first block and of everything outside blocks.
        beta: what the last block has more.

    Raises:
        ModelError: there are fewer than 2 numbered blocks.
        ConfigError: `alpha` or `beta` is NaN or infinite.

    Source: Wang et al. 2024, arXiv 2410.17146. What stands outside blocks has α, as in the code
    that was read, which is not theirs.

    >>> lines_shares(["embed", "layers.0.w", "layers.1.w", "layers.2.w"], alpha=0.5, beta=0.5)
    {'embed': 0.5, 'layers.0.w': 0.5, 'layers.1.w': 0.75, 'layers.2.w': 1.0}
    """
    if not (abs(alpha) < float("inf") and abs(beta) < float("inf")):
        raise ConfigError(f"alpha is {alpha} and beta {beta}; expected finite numbers")
    depths, count = weight_depths(names)
    if count < 2:
        raise ModelError(f"the model has {count} block; expected at least 2, for shares that rise")
    return {
        name: alpha if depth is None else alpha + beta * depth / (count - 1)
        for name, depth in depths.items()
    }


def depth_groups(names: Iterable[str], count: int) -> dict[str, int | None]:
    """Blocks in groups of the same number of neighbours, as nearly as can be; None outside blocks.

    Raises:
        ModelError: there are fewer blocks than groups.

    >>> list(depth_groups([f"layers.{block}.w" for block in range(5)], 2).values())
    [0, 0, 0, 1, 1]
    """
    depths, blocks = weight_depths(names)
    if blocks < count:
        raise ModelError(f"the model has {blocks} blocks; expected at least {count}, one per group")
    return {
        name: None if depth is None else depth * count // blocks for name, depth in depths.items()
    }


def adaptive_base_shares(
    logits: Float[Tensor, "groups"], *, mean: float = 0.2, floor: float = 0.2
) -> Float[Tensor, "groups"]:
    """Shares of the model before in each group of blocks, whose mean never changes (AMA).

        b_i = m (σ(z_i) + e) / mean_j(σ(z_j) + e)

    Args:
        logits: z, learnt; all 0 is plain averaging.
        mean: m, the share of the model before on average.
        floor: e, which keeps every group at some of it.

    Returns:
        Shares b; those of the trained model are 1 − b.

    Raises:
        ConfigError: `mean` lies outside [0, 1] or `floor` is not positive.

    Source: Lin et al. 2023, arXiv 2309.06256, with their 0.2 and 0.2.

    >>> import torch
    >>> adaptive_base_shares(torch.zeros(3))
    tensor([0.2000, 0.2000, 0.2000])
    """
    if not (0 <= mean <= 1 and 0 < floor < float("inf")):
        raise ConfigError(
            f"mean is {mean} and floor {floor}; expected a mean from 0 to 1 and a positive floor"
        )
    raised = logits.sigmoid() + floor
    return mean * raised / raised.mean()
