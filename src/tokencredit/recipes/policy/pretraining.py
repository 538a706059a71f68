"""Texts that the policy learns beside its reward, so that it does not forget how to write them."""

from collections.abc import Sequence

import torch
from accelerate import Accelerator

from tokencredit.batch import ResponseBatch
from tokencredit.errors import DataError
from tokencredit.preference.hf_datasets import load_texts
from tokencredit.recipes.policy.metrics import require_finite
from tokencredit.recipes.policy.prompts import prompts_of_step
from tokencredit.recipes.policy.settings import TrainPolicyConfig
from tokencredit.recipes.policy.sharding import without_step
from tokencredit.recipes.policy.views import view_of
from tokencredit.text.hf_reading import Reading

PretrainingRows = Sequence[Sequence[int]]
"""Token ids of texts."""


def pretraining_rows(config: TrainPolicyConfig, reading: Reading) -> PretrainingRows:
    """The texts of the settings as the policy's tokenizer reads them, cut to their first tokens.

    Raises:
        DataError: there are no texts, or none has a token to predict.
    """
    settings = config.pretraining
    if settings.data is None:
        return []
    texts = load_texts(
        settings.data, split=settings.split, column=settings.column, dataset=config.dataset
    )
    ids = reading.tokenizer(texts, verbose=False)["input_ids"]
    rows = [row[: settings.tokens] for row in ids if len(row) > 1]
    if not rows:
        raise DataError(
            f"none of the {len(texts)} texts of pretraining.data {settings.data!r} has 2 tokens; "
            "expected texts with something to predict"
        )
    return rows


def rows_of_update(
    config: TrainPolicyConfig,
    accelerator: Accelerator,
    rows: PretrainingRows,
    step: int,
    updates: int,
) -> PretrainingRows:
    """The texts of one update that this process has; each comes once in a pass over all.

    Args:
        config: the settings.
        accelerator: of the processes.
        rows: all texts.
        step: number of the rollout.
        updates: of this rollout so far.
    """
    if not rows:
        return []
    algorithm, size = config.algorithm, config.pretraining.batch_size
    minibatch = algorithm.minibatch_size or config.batch_size
    of_step = algorithm.epochs * -(-config.batch_size // minibatch)
    chosen = prompts_of_step(len(rows), size, config.seed, step * of_step + updates)
    return [rows[i] for i in chosen[accelerator.process_index :: accelerator.num_processes]]


def learn_again(
    config: TrainPolicyConfig,
    accelerator: Accelerator,
    model: torch.nn.Module,
    rows: PretrainingRows,
    pad: int,
) -> float:
    """Add the gradient of the mean negative log-likelihood of texts; returns that mean, in nats.

    Args:
        config: the settings; `pretraining.coef` is the price.
        accelerator: of the processes, each of which has as many texts.
        model: what is trained.
        rows: the texts; none are no gradient.
        pad: fills shorter ones.

    Source: Ouyang et al. 2022, arXiv 2203.02155, PPO-ptx.
    """
    if not rows:
        return 0.0
    batch = ResponseBatch.of_rows(
        [row[:1] for row in rows],
        [row[1:] for row in rows],
        pad_token_id=pad,
        device=accelerator.device,
    )
    tokens = accelerator.reduce(batch.response_mask.sum(), reduction="sum")
    size = config.algorithm.micro_batch_size or len(batch)
    total = torch.zeros((), device=accelerator.device)
    for part in torch.split(torch.arange(len(batch), device=accelerator.device), size):
        with without_step(accelerator, model):
            loss = -view_of(model, batch[part], None, 1.0).logprobs.sum()
            require_finite("the loss of pretraining texts", loss)
            accelerator.backward(
                config.pretraining.coef * loss / tokens * accelerator.num_processes
            )
        total = total + loss.detach()
    return float(accelerator.reduce(total, reduction="sum") / tokens)
