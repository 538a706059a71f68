"""Terms of the loss besides the clipped one, each under the coefficient of a setting.

All of them are sums: over the response tokens of a micro-batch, or over its responses, so that
micro-batches add up to exactly the minibatch.
"""

from accelerate import Accelerator
from torch import Tensor

from tokencredit.masking import masked_sum
from tokencredit.policy.losses.divergences import (
    chi_square_terms,
    chunked_entropies,
    chunked_forward_kls,
    chunked_log_normalisers,
    root_slope,
)
from tokencredit.policy.losses.path_consistency import path_consistency_losses
from tokencredit.recipes.policy.experience import Experience
from tokencredit.recipes.policy.models import PolicyModels
from tokencredit.recipes.policy.setting_groups import KLSettings
from tokencredit.recipes.policy.settings import TrainPolicyConfig
from tokencredit.recipes.policy.views import PolicyView, reference_logits
from tokencredit.shaping import kl_estimates

Losses = dict[str, Tensor]


def soft_q_losses(
    config: TrainPolicyConfig, part: Experience, view: PolicyView, logits: Tensor | None
) -> Tensor:
    """Losses of soft Q-learning, for each token of a micro-batch.

    Args:
        config: the settings.
        part: the responses, with what the policy is compared with.
        view: what the policy says of them now.
        logits: of the policy where each token is predicted, as they were sampled from.
    """
    soft = part.soft
    assert soft is not None
    assert logits is not None
    return path_consistency_losses(
        view.logprobs - soft.ref_logprobs,
        chunked_log_normalisers(logits) - soft.ref_normalisers,
        soft.log_ratios,
        soft.values,
        soft.rewards,
        part.loss_mask,
        consistency=config.soft_q.consistency,
        reversed_share=config.soft_q.reversed_share,
    )


def divergence_terms(
    config: TrainPolicyConfig,
    accelerator: Accelerator,
    models: PolicyModels,
    part: Experience,
    view: PolicyView,
    logits: Tensor | None,
) -> Losses:
    """Sums of what the settings price in the loss, for a micro-batch.

    Args:
        config: the settings.
        accelerator: of the processes.
        models: of the run, the reference among them.
        part: the responses.
        view: what the policy says of them now.
        logits: of the policy where each token is predicted, as they were sampled from; None where
            no price is one of a whole distribution.
    """
    kl, mask = config.kl, part.loss_mask
    found: Losses = {}
    if kl.has_chi_square_loss:
        ratios = masked_sum(view.logprobs - part.ref_logprobs, mask)
        found["chi_square"] = chi_square_terms(ratios).sum()
    elif kl.loss_coef:
        estimates = kl_estimates(view.logprobs, part.ref_logprobs, estimator=kl.estimator)
        found["kl_loss"] = masked_sum(estimates, mask).sum()
    if kl.entropy_coef:
        assert logits is not None
        found["entropy_loss"] = -masked_sum(chunked_entropies(logits), mask).sum()
    if kl.forward_coef:
        assert logits is not None
        with accelerator.autocast():
            ref_logits = models.of_reference(
                lambda model: reference_logits(models, model, part.batch)
            )
        temperature = config.sampling.temperature
        kls = chunked_forward_kls(logits, ref_logits, temperature=temperature, allowed=part.support)
        found["forward_kl"] = masked_sum(kls, mask).sum()
    return found


def weighed(losses: Losses, kl: KLSettings) -> Tensor | float:
    """The terms that are sums over tokens, at their prices, as one.

    Args:
        losses: as `divergence_terms` gives them.
        kl: the prices.
    """
    prices = {
        "kl_loss": kl.loss_coef,
        "entropy_loss": kl.entropy_coef,
        "forward_kl": kl.forward_coef,
    }
    return sum((prices[name] * losses[name] for name in prices if name in losses), 0.0)


def chi_square_slope(
    accelerator: Accelerator, total: Tensor, mask: Tensor, kl: KLSettings
) -> float:
    """What the sum of chi-square terms over a minibatch is multiplied by, for c √χ² in the loss.

    The gradient of the root of a mean is that of the sum, times this number.

    Args:
        accelerator: of the processes; every one of them must ask.
        total: sum of the terms over the responses of this process.
        mask: tokens of these that count.
        kl: the price of the root.
    """
    rows = accelerator.reduce(mask.any(-1).sum(), reduction="sum")
    everywhere = accelerator.reduce(total, reduction="sum")
    return kl.loss_coef * root_slope(float(everywhere / rows)) / float(rows)
