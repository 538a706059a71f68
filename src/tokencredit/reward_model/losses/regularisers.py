"""What is asked of the hidden states of a reward model beside its scores."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid, normalize

from tokencredit.errors import ConfigError, ShapeError
from tokencredit.names import require_named

Form = Literal["sft", "likelihood", "dpo"]
"""How the language model's head judges the preferred answers, or both."""

FORMS: tuple[Form, ...] = ("sft", "likelihood", "dpo")


def hidden_state_regulariser(
    chosen_logprobs: Float[Tensor, "batch"],
    *,
    rejected_logprobs: Float[Tensor, "batch"] | None = None,
    form: Form = "sft",
    scale: float = 0.1,
    chosen_ref_logprobs: Float[Tensor, "batch"] | None = None,
    rejected_ref_logprobs: Float[Tensor, "batch"] | None = None,
) -> Float[Tensor, ""]:
    """How unlike the text of preferred answers the hidden states have become (GRM).

        sft: −log σ(β lp_w)    likelihood: −lp_w    dpo: −log σ(β [(lp_w − ref_w) − (lp_l − ref_l)])

    `regularised_loss` adds it to a loss of preferences. Where β lp_w is far below 0, as of any
    answer of some length, `sft` is β times `likelihood`.

    Args:
        chosen_logprobs: lp_w, of each preferred answer the sum of the log-probabilities of its
            tokens, in nats, as the language model's head says them of the hidden states.
        rejected_logprobs: lp_l, of the others; `dpo` alone reads them.
        form: which.
        scale: β, above 0; `likelihood` has none.
        chosen_ref_logprobs: ref_w, of a frozen reference, for `dpo`; None for 0.
        rejected_ref_logprobs: likewise ref_l.

    Returns:
        Nats per pair, in float32; of `likelihood` summed over tokens.

    Raises:
        ConfigError: no such form, a scale that is not above 0, or `dpo` without the
            log-probabilities of the others.

    Source: Yang et al. 2024, arXiv 2406.10216 (GRM), and its code, where w is 0.01 and β 0.1, and
    `likelihood` is called "without logsigmoid".

    >>> import torch
    >>> hidden_state_regulariser(torch.tensor([-20.0]))
    tensor(2.1269)
    >>> hidden_state_regulariser(torch.tensor([-20.0]), form="likelihood")
    tensor(20.)
    """
    require_named("form", form, FORMS)
    if scale <= 0 or (form == "dpo" and rejected_logprobs is None):
        raise ConfigError(
            f"form is {form!r}, scale {scale} and rejected_logprobs "
            f"{'none' if rejected_logprobs is None else 'there'}; expected a scale above 0, and "
            "log-probabilities of the other answers for 'dpo'"
        )
    chosen = chosen_logprobs.float()
    if form == "likelihood":
        return -chosen.mean()
    if form == "sft" or rejected_logprobs is None:
        return -logsigmoid(scale * chosen).mean()
    lead = chosen - rejected_logprobs.float()
    if chosen_ref_logprobs is not None and rejected_ref_logprobs is not None:
        lead = lead - (chosen_ref_logprobs.float() - rejected_ref_logprobs.float())
    return -logsigmoid(scale * lead).mean()


def regularised_loss(
    loss: Float[Tensor, ""], regulariser: Float[Tensor, ""], *, weight: float
) -> Float[Tensor, ""]:
    """A loss of preferences with what keeps the hidden states.

        (1 − w) L + w L_reg

    Args:
        loss: L.
        regulariser: L_reg, as of `hidden_state_regulariser`.
        weight: w, from 0, where the loss stays as it is, to 1, where preferences teach nothing.

    Raises:
        ConfigError: the weight is outside [0, 1].

    Source: as `hidden_state_regulariser`.

    >>> import torch
    >>> regularised_loss(torch.tensor(1.0), torch.tensor(3.0), weight=0.25)
    tensor(1.5000)
    """
    if not 0 <= weight <= 1:
        raise ConfigError(f"weight is {weight}; expected a share from 0 to 1")
    return loss if weight == 0 else (1 - weight) * loss + weight * regulariser


def contrastive_loss(
    first: Float[Tensor, "texts width"],
    second: Float[Tensor, "texts width"],
    *,
    temperature: float = 0.05,
) -> Float[Tensor, ""]:
    """How badly each text is recognised among all, from one reading to another (SimCSE).

        L = mean_i −log( exp(cos(u_i, v_i) / τ) / Σ_j exp(cos(u_i, v_j) / τ) )

    Args:
        first: u, features of texts by one draw of dropout.
        second: v, of the same texts by another.
        temperature: τ, above 0.

    Returns:
        Nats per text, in float32; 0 for a single text, log(texts) where all features are alike.

    Raises:
        ConfigError: the temperature is not above 0.
        ShapeError: the readings are of other texts.

    Source: Gao et al. 2021, arXiv 2104.08821, equation 4 (unsupervised SimCSE), as the loss beside
    that of a reward model in Wang et al. 2024, arXiv 2401.06080 (Secrets of RLHF II), with weight
    1 and no word on τ.

    >>> import torch
    >>> apart = torch.eye(2)
    >>> round(contrastive_loss(apart, apart, temperature=1.0).item(), 4)
    0.3133
    """
    if temperature <= 0:
        raise ConfigError(f"temperature is {temperature}; expected a number above 0")
    if first.shape != second.shape:
        raise ShapeError(
            f"features have shapes {tuple(first.shape)} and {tuple(second.shape)}; expected two "
            "readings of the same texts"
        )
    u, v = normalize(first.float(), dim=-1), normalize(second.float(), dim=-1)
    return cross_entropy(u @ v.T / temperature, torch.arange(len(u), device=u.device))
