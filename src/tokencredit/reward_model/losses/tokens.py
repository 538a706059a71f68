"""What token classifiers are trained to lower: a label on every token, or on the end of each step.

Logits are those that the classifier gives at the labelled token itself, not one position earlier.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tokencredit.errors import ShapeError
from tokencredit.masking import masked_mean, masked_row_mean
from tokencredit.text.segments import segment_ends


def token_classification_loss(
    token_logits: Float[Tensor, "batch time classes"],
    token_labels: Int[Tensor, "batch time"] | Float[Tensor, "batch time classes"],
    mask: Bool[Tensor, "batch time"],
    *,
    class_weights: Float[Tensor, "classes"] | None = None,
) -> Float[Tensor, ""]:
    """Cross-entropy of every token, averaged over the tokens of a response, then over responses.

        −1/T · Σ_t Σ_c w_c · q_t(c) · log softmax(z_t)_c

    A token that says nothing for either side of two classes has the label (0.5, 0.5).

    Args:
        token_logits: of each class, in nats.
        token_labels: the class of each token, or a probability of each class.
        mask: True on tokens that count. What lies outside it is not read, and a response without
            any token counts nowhere.
        class_weights: w, for classes of unlike frequency; None for 1. The mean is over tokens, not
            over weights.

    Returns:
        Nats per token, in float32; log of the number of classes where all logits are equal.

    Raises:
        ShapeError: there is not one label per token, or not one weight per class.

    Source: Yoon et al. 2024, arXiv 2407.16574 (TLCR): labels of an edit, neutral tokens (0.5, 0.5),
    mean over tokens and then over the batch. There the rejected and the edited response are two
    means that are added; here they are two rows, so that the loss is half of theirs. Class weights
    are ours.

    >>> logits = torch.tensor([[[0.0, 0.0], [0.0, 9.0]]])
    >>> mask = torch.tensor([[True, False]])
    >>> token_classification_loss(logits, torch.tensor([[1, -100]]), mask)
    tensor(0.6931)
    """
    classes = token_logits.shape[-1]
    soft = token_labels.is_floating_point()
    one_each = token_labels.shape == (token_logits.shape if soft else mask.shape)
    if token_logits.shape[:2] != mask.shape or not one_each:
        raise ShapeError(
            f"token_logits have shape {tuple(token_logits.shape)}, token_labels "
            f"{tuple(token_labels.shape)} and mask {tuple(mask.shape)}; expected one label per "
            "token, or one probability per token and class"
        )
    probabilities = _as_probabilities(token_labels, mask, classes)
    if class_weights is not None:
        if class_weights.shape != (classes,):
            raise ShapeError(
                f"{len(class_weights)} class_weights for {classes} classes; expected one each"
            )
        probabilities = probabilities * class_weights.float()
    logits = token_logits.float().masked_fill(~mask[:, :, None], 0.0)
    losses = -(probabilities * logits.log_softmax(-1)).sum(-1)
    return masked_mean(masked_row_mean(losses, mask), mask.any(-1))


def step_classification_loss(
    token_logits: Float[Tensor, "batch time classes"],
    step_labels: Int[Tensor, "batch steps"],
    segment_ids: Int[Tensor, "batch time"],
    *,
    class_weights: Float[Tensor, "classes"] | None = None,
) -> Float[Tensor, ""]:
    """Cross-entropy at the last token of each step, averaged over steps, then over responses.

        −1/K · Σ_k w_{q_k} · log softmax(z_{e_k})_{q_k}

    with K steps, and e the last token of step k.

    Args:
        token_logits: of each class, in nats.
        step_labels: the class of each step; what lies after the last step of a response is not
            read.
        segment_ids: the step of each token, -1 on tokens that are in none.
        class_weights: w, for classes of unlike frequency; None for 1.

    Returns:
        Nats per step, in float32; `token_classification_loss` where every token is a step.

    Raises:
        ShapeError: a response has more steps than labels, or there is not one weight per class.

    Source: Lightman et al. 2023, arXiv 2305.20050: the correctness of a step is predicted at its
    last token. There the classes are tokens of the vocabulary; here they are outputs of a head.

    >>> logits = torch.tensor([[[9.0, 0.0], [0.0, 0.0], [0.0, 0.0]]])
    >>> step_classification_loss(logits, torch.tensor([[1, 0]]), torch.tensor([[0, 0, 1]]))
    tensor(0.6931)
    """
    steps = step_labels.shape[-1]
    if segment_ids.numel() and int(segment_ids.max()) >= steps:
        raise ShapeError(
            f"segment_ids name {int(segment_ids.max()) + 1} steps and step_labels have {steps} "
            "columns; expected one label per step"
        )
    ends = segment_ends(segment_ids)
    labels = step_labels.gather(-1, segment_ids.clamp(min=0).long())
    return token_classification_loss(token_logits, labels, ends, class_weights=class_weights)


def _as_probabilities(
    token_labels: Int[Tensor, "batch time"] | Float[Tensor, "batch time classes"],
    mask: Bool[Tensor, "batch time"],
    classes: int,
) -> Float[Tensor, "batch time classes"]:
    """One probability per class, zeros off the mask, where a label may be anything."""
    if token_labels.is_floating_point():
        return token_labels.float().masked_fill(~mask[:, :, None], 0.0)
    labels = token_labels.masked_fill(~mask, 0).long()
    return torch.nn.functional.one_hot(labels, classes).float()
