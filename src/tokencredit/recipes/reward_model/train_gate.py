"""Train the gate of a reward model of several objectives: what each weighs, read off the prompt.

    tokencredit train-gate --data pairs.jsonl --reward_model my/objectives --output gated

Follows stage 2 of ArmoRM (Wang et al. 2024, arXiv 2406.12845): trunk and heads stay as they are,
and a small network over the state at the end of the prompt learns weights of the objectives from
pairs, by Bradley-Terry. Departures from their code: (1) where one objective is taken out of
the others (`debias.against`), it is so in training and evaluation too, where theirs computes that
and trains without it; (2) the gate reads the last token before the response, found by the mask and
not by ids of one template; (3) the penalties of debiasing are measured on the responses of the
training pairs; (4) heads are those of `multi-objective-regression`, not ridge regressions.

States and scores of all pairs are computed once, and the gate is trained on them. The run folder is
a reward model: `load_reward_model` gives its gated score, and with an objective after `#` that.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel, set_seed

from tokencredit.errors import ConfigError, DataError, ModelError
from tokencredit.evaluation.agreement import spearman_correlation
from tokencredit.models.heads import debiased, objective_names
from tokencredit.models.hf_architecture import is_causal, padding_id
from tokencredit.models.hf_gates import PromptGate, write_gate
from tokencredit.models.hf_objectives import JoinedScores
from tokencredit.models.hf_passes import evaluating
from tokencredit.recipes.reward_model.gate_settings import TrainGateConfig
from tokencredit.recipes.reward_model.pair_data import different_pairs, read_pairs, training_pairs
from tokencredit.recipes.run.left_out import tell_left_out
from tokencredit.recipes.training.arguments import training_arguments, training_device
from tokencredit.recipes.training.models import classifier_to_train
from tokencredit.recipes.training.progress import TrainingRun
from tokencredit.recipes.training.supervised import (
    encoded_sides,
    finished_run,
    supervised_run,
    write_results,
)
from tokencredit.recipes.training.trainer import LossTrainer, ModelFunction, train
from tokencredit.reward_model.debiasing import objective_penalties
from tokencredit.reward_model.hf_scores import reward_model_output
from tokencredit.reward_model.losses.pairs import bradley_terry_loss
from tokencredit.text.hf_known_readings import reading_of
from tokencredit.text.hf_token_rows import EncodedText, right_padded

__all__ = ["TrainGateConfig", "train_gate"]

Pair = tuple[EncodedText, EncodedText]


@dataclass(frozen=True)
class GateData:
    """What the gate learns from: states of prompts, and scores of the answers to them.

    Attributes:
        states: of the trunk at the end of each prompt.
        chosen: scores of the preferred answers by each objective, debiased.
        rejected: of the others.
    """

    states: Float[Tensor, "pairs width"]
    chosen: Float[Tensor, "pairs objectives"]
    rejected: Float[Tensor, "pairs objectives"]

    def changed(self, change: Callable[[Tensor], Tensor]) -> "GateData":
        """The data with other scores."""
        return GateData(self.states, change(self.chosen), change(self.rejected))


def train_gate(config: TrainGateConfig) -> Path:
    """Train one gate; a run that is done already is left as it is.

    Args:
        config: the settings.

    Returns:
        The run folder: the model, `gate.safetensors`, `metrics.json`, `metrics.jsonl`,
        `config.yaml`.

    Raises:
        DataError: the data are not there, are empty, or a row does not fit.
        ModelError: the model is not there, is not causal, or has no several objectives.
        ConfigError: `debias.against` is none of them.
        NumericError: the loss is NaN or infinite; no model is written.
        RunFolderError: the folder holds another run, or cannot be written.
    """
    done = finished_run(config)
    if done is not None:
        return done
    data, eval_data, left_out = training_pairs(config)
    set_seed(config.seed)
    model, tokenizer, names = _model_with_objectives(config)
    reading = reading_of(model, tokenizer, config.reading)

    def encode(pairs: Sequence[Any]) -> list[Pair]:
        return read_pairs(
            reading, pairs, max_length=config.max_length, truncation=config.truncation
        )

    encoded, held_out = encoded_sides(config, encode, data, eval_data, left_out)
    rows = different_pairs(encoded, tuple)
    eval_rows = different_pairs(held_out, tuple, held_out=True)
    model.to(training_device(config))
    found = gate_data(model, rows, batch_size=config.training.batch_size)
    of_eval = gate_data(model, eval_rows, batch_size=config.training.batch_size)
    penalties, against = torch.zeros(len(names)), config.debias.against
    if against is not None:
        at = names.index(against)
        penalties = objective_penalties(
            torch.cat([found.chosen, found.rejected]),
            against=at,
            most=config.debias.correlation,
            correlation=_rank_correlation,
        )

        def change(scores: Tensor) -> Tensor:
            return debiased(scores, penalties, against=at)

        found, of_eval = found.changed(change), of_eval.changed(change)
    gate = PromptGate(found.states.shape[1], len(names), **vars(config.gate))
    with supervised_run(config) as folder:
        tell_left_out(left_out, folder / "skipped.jsonl")

        def evaluate() -> dict[str, float]:
            return {"held_out_accuracy": gated_accuracy(gate, of_eval)}

        run = TrainingRun.of(config, folder, evaluate if eval_rows else None)
        metrics = train(gate_trainer(config, gate, found, run), tokens=_tokens(rows))
        gate.eval().cpu()
        metrics |= evaluate() if eval_rows else {}
        means = gate(found.states).mean(0).tolist()
        metrics |= {f"weight/{name}": mean for name, mean in zip(names, means, strict=True)}
        if against is not None:
            pairs = zip(names, penalties.tolist(), strict=True)
            metrics |= {f"penalty/{name}": penalty for name, penalty in pairs}
        write_gate(gate, penalties, model, folder, against=against)
        write_results(model, tokenizer, metrics, folder, name="gated reward model")
    return folder


def _model_with_objectives(
    config: TrainGateConfig,
) -> tuple[PreTrainedModel, Any, tuple[str, ...]]:
    """The frozen model with its tokenizer, and the names of its objectives."""
    model, tokenizer = classifier_to_train(
        AutoModelForSequenceClassification,
        config.reward_model,
        config.loading,
        max_length=config.max_length,
    )
    names = objective_names(model.config)
    linear = isinstance(getattr(model, "score", None), nn.Linear)
    if not names or not linear or not is_causal(model):
        raise ModelError(
            f"{config.reward_model!r} is a {type(model).__name__} with {model.config.num_labels} "
            "output(s); expected a causal reward model of several objectives with a linear head: "
            "train one with --objective multi-objective-regression"
        )
    against = config.debias.against
    if against is not None and against not in names:
        raise ConfigError(
            f"debias.against is {against!r}; expected one of {', '.join(names)}, the objectives "
            f"of {config.reward_model!r}"
        )
    return model.requires_grad_(False), tokenizer, names


def gate_data(model: PreTrainedModel, pairs: Sequence[Pair], *, batch_size: int) -> GateData:
    """States at the ends of prompts and scores of both answers, of a frozen model.

    Args:
        model: of several objectives; its head is as it was afterwards.
        pairs: chosen and rejected.
        batch_size: pairs per forward pass.

    Raises:
        DataError: a pair has no prompt, so that there is nothing to read.
    """
    head, names = model.get_submodule("score"), objective_names(model.config)
    # With a gate that changes nothing the head gives the states of the trunk beside the scores.
    model.set_submodule("score", JoinedScores(head, names, gate=nn.Identity()))
    states, scores = [], []
    try:
        with torch.no_grad(), evaluating(model):
            for start in range(0, len(pairs), batch_size):
                some = pairs[start : start + batch_size]
                both = [side for sides in zip(*some, strict=True) for side in sides]
                found = _outputs(model, both)
                scores.append(found[1][..., : len(names)])
                states.append(found[0][: len(some), len(names) :])
    finally:
        model.set_submodule("score", head)
    if not pairs:
        width = head.in_features
        return GateData(torch.zeros(0, width), *torch.zeros(2, 0, len(names)))
    sides = [one.chunk(2) for one in scores]
    return GateData(
        torch.cat(states), torch.cat([a for a, _ in sides]), torch.cat([b for _, b in sides])
    )


def _outputs(
    model: PreTrainedModel, rows: Sequence[EncodedText]
) -> tuple[Float[Tensor, "rows outputs"], Float[Tensor, "rows outputs"]]:
    """Every output at the end of each prompt, and at the end of each text, on the CPU."""
    starts = torch.tensor([row.start for row in rows])
    if bool((starts == 0).any()):
        raise DataError(
            "an answer has no prompt, and a gate reads the end of one; expected prompts, or a "
            "tokenizer that begins a sequence with a token"
        )
    ids, real, _ = right_padded(rows, pad_id=padding_id(model))
    found = reward_model_output(
        model, ids.to(model.device), real.to(model.device), every_output=True
    )
    assert found.position_scores is not None
    at_prompts = found.position_scores[torch.arange(len(rows)), starts - 1]
    return at_prompts.cpu(), found.sequence_scores.cpu()


def gate_trainer(
    config: TrainGateConfig, gate: PromptGate, data: GateData, run: TrainingRun
) -> LossTrainer:
    """The Trainer of a gate.

    Args:
        config: the settings.
        gate: to train.
        data: to learn from.
        run: what it belongs to.
    """
    count = len(data.states)

    def batch(examples: Sequence[dict[str, int]]) -> dict[str, Tensor]:
        rows = torch.tensor([example["row"] for example in examples])
        return {name: tensor[rows] for name, tensor in vars(data).items()}

    def weights(gate: PromptGate, states: Tensor) -> Tensor:
        return gate(states)

    def loss(weights: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        chosen, rejected = ((weights * inputs[side]).sum(-1) for side in ("chosen", "rejected"))
        return bradley_terry_loss(chosen, rejected)

    columns = {"row": list(range(count)), "length": [1] * count}
    return LossTrainer(
        model=ModelFunction(gate, weights),
        args=training_arguments(config, run.folder, examples=count),
        train_dataset=Dataset.from_dict(columns),
        data_collator=batch,
        loss=loss,
        unread=("chosen", "rejected"),
        run=run,
    )


def gated_accuracy(gate: PromptGate, data: GateData) -> float:
    """Share of pairs whose preferred answer has the higher gated score; ties count half.

    Args:
        gate: any.
        data: of at least one pair.
    """
    device = gate.scale.device
    training = gate.training
    with torch.no_grad():
        weights = gate.eval()(data.states.to(device)).cpu()
    gate.train(training)
    leads = (weights * (data.chosen - data.rejected)).sum(-1)
    return float(((leads > 0).float() + 0.5 * (leads == 0).float()).mean())


def _rank_correlation(scores: Float[Tensor, "rows"], others: Float[Tensor, "rows"]) -> float:
    mask = torch.ones(1, len(scores), dtype=torch.bool)
    return float(spearman_correlation(scores[None], others[None], mask))


def _tokens(rows: Sequence[Pair]) -> int:
    return sum(len(side) for sides in rows for side in sides)
