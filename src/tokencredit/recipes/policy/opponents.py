"""Nash-MD: responses of an opponent between policy and reference, which the policy is to beat.

    tokencredit train-policy --config run.yaml --score.transform nash --algorithm.name reinforce

The opponent is the geometric mixture of both models at each token, as they are in the step. It is
asked for one response to each prompt, or several; how probably the policy's response beats them
takes the place of its score. Published as one number per response (Munos et al. 2024, arXiv
2312.00886); of prefix scores it is a potential, and its differences pay every token.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad
from transformers import LogitsProcessor

from tokencredit.aggregation.transforms import SCORE_TRANSFORMS, ReferenceScores
from tokencredit.decoding.candidates.hf_running_text import RunningText
from tokencredit.policy.hf_rollout import sampled_responses
from tokencredit.policy.mixtures import geometric_mixture_logits
from tokencredit.recipes.policy.models import PolicyModels
from tokencredit.recipes.policy.rollout import Rollout, repeated
from tokencredit.recipes.policy.run_state import PolicyRun
from tokencredit.recipes.policy.scoring import scores_where_possible
from tokencredit.recipes.policy.setting_groups import sampling_of
from tokencredit.recipes.policy.settings import TrainPolicyConfig
from tokencredit.recipes.policy.sharding import on_device
from tokencredit.scorers.evidence import Responses


class GeometricMixture(LogitsProcessor):  # type: ignore[misc]
    """Turns the logits of a policy into those of its mixture with the reference.

    Only logits of the next token are held, of one column at a time.

    Args:
        reference: runs behind the texts that are drawn.
        reference_share: of the reference in the exponent.
        prompt_mask: True on real tokens of the prompts.
        calls: entered around every call of the reference, to take adapters off, for example.
    """

    def __init__(
        self,
        reference: RunningText,
        reference_share: float,
        prompt_mask: Bool[Tensor, "batch prompt"],
        calls: Callable[[], Any],
    ) -> None:
        self.reference, self.reference_share = reference, reference_share
        self.prompt_mask, self.calls = prompt_mask, calls

    def __call__(
        self, input_ids: Int[Tensor, "batch sequence"], scores: Float[Tensor, "batch vocab"]
    ) -> Float[Tensor, "batch vocab"]:
        """Logits of the mixture for the next token of each text."""
        written = input_ids.shape[1] - self.prompt_mask.shape[1]
        mask = pad(self.prompt_mask, (0, written), value=True)
        with self.calls():
            logits = self.reference.outputs(input_ids, mask)[:, -1]
        return geometric_mixture_logits(scores, logits, reference_share=self.reference_share)


def opposed_sources(config: TrainPolicyConfig) -> list[str]:
    """The sources whose scores are compared with those of an opponent's responses."""
    return [
        one.label for one in config.sources if SCORE_TRANSFORMS[one.score.transform].against_mixture
    ]


@torch.no_grad()
def opponent_scores(run: PolicyRun, rollout: Rollout) -> dict[str, ReferenceScores]:
    """What each source says of the opponent's responses to the prompt of each response.

    Args:
        run: whose policy and reference are mixed.
        rollout: of the policy; the responses to one prompt meet the same responses.
    """
    config, models = run.config, run.models
    labels = [] if run.token_scorer is not None else opposed_sources(config)
    if not labels:
        return {}
    drawn = config.batch_size // run.accelerator.num_processes
    # Responses of others stand behind the drawn ones, in no group.
    samples = config.algorithm.samples_per_prompt if len(rollout.batch) == drawn else 1
    responses = _drawn(run, rollout, samples)
    each = config.opponent.per_prompt
    lengths = responses.batch.lengths.float().view(-1, each).repeat_interleave(samples, dim=0)
    with on_device(models.visits, *models.rewards.modules):
        found = {
            one.name: scores_where_possible(one.scorer, responses)[0]
            for one in models.rewards.sources
            if one.name in labels
        }
    return {
        name: ReferenceScores(scores.view(-1, each).repeat_interleave(samples, dim=0), lengths)
        for name, scores in found.items()
    }


def _drawn(run: PolicyRun, rollout: Rollout, samples: int) -> Responses:
    """Responses of the opponent, as many to each prompt as the settings say."""
    config, models, each = run.config, run.models, run.config.opponent.per_prompt
    first = rollout.batch[::samples]
    rows = torch.arange(len(first), device=first.prompt_ids.device).repeat_interleave(each)
    uniform = config.sampling.response_lengths == "uniform"
    draw = partial(
        sampled_responses,
        prompt_ids=first.prompt_ids[rows],
        prompt_mask=first.prompt_mask[rows],
        sampling=sampling_of(
            config.sampling, end_ids=models.reading.turn_ends, undrawable=models.undrawable
        ),
        pad_token_id=models.tokenizer.pad_token_id,
        eos_token_id=models.reading.turn_ends,
        response_lengths=first.lengths[rows] if uniform else None,
    )

    def against(reference: RunningText, calls: Callable[[], Any]) -> Any:
        mixture = GeometricMixture(
            reference, config.opponent.reference_share, first.prompt_mask[rows], calls
        )
        return models.of_policy(partial(draw, mixture=mixture))

    with run.accelerator.autocast(), _running_reference(models) as (reference, calls):
        batch, _ = against(reference, calls)
    asked = None if rollout.asked is None else repeated(rollout.asked[::samples], each)
    return Responses(batch, asked)


@contextmanager
def _running_reference(
    models: PolicyModels,
) -> Iterator[tuple[RunningText, Callable[[], Any]]]:
    """The reference on its device, and what is entered around every call of it."""
    if models.reference is None:
        policy = models.actor_critic.policy
        yield RunningText(policy.get_base_model()), policy.disable_adapter
        return
    with on_device(models.visits, models.reference):
        yield RunningText(models.reference), torch.no_grad
