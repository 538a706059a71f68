"""From a head's outputs to one score, and where in a sequence that score is read."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from tokencredit.errors import DataError, ModelError
from tokencredit.masking import last_true_index


def scalar_scores(logits: Float[Tensor, "*batch labels"]) -> Float[Tensor, "*batch"]:
    """One score per entry from a head with one or two outputs.

    Of two outputs the score is the second less the first: the log-odds of the second label, in
    nats like a score trained on pairs.

    Returns:
        Scores in nats, float32.

    Raises:
        ModelError: the head has none or more than two outputs.

    Source: for two outputs, Chan et al. 2024, arXiv 2402.00782, the sentiment model of their code.

    >>> scalar_scores(torch.tensor([[1.0, 3.0]]))
    tensor([2.])
    """
    require_one_score(logits.shape[-1])
    scores = logits.float()
    return scores[..., 0] if logits.shape[-1] == 1 else scores[..., 1] - scores[..., 0]


def float32_outputs(
    head: nn.Module, hidden: Float[Tensor, "*batch width"]
) -> Float[Tensor, "*batch labels"]:
    """What a head makes of the states of a trunk, computed in float32, under autocast too.

    In bfloat16 a score of 8 nats moves in steps of 0.03, more than most tokens do.

    Args:
        head: a module of any precision.
        hidden: of any precision.

    >>> head = nn.Linear(4, 1, bias=False).bfloat16()
    >>> float32_outputs(head, torch.ones(2, 4, dtype=torch.bfloat16)).dtype
    torch.float32
    """
    weights = dict(head.named_parameters())
    with torch.autocast(hidden.device.type, enabled=False):
        if all(weight.dtype == torch.float32 for weight in weights.values()):
            return head(hidden.float())
        cast = {name: weight.float() for name, weight in weights.items()}
        return torch.func.functional_call(head, cast, (hidden.float(),))


def objective_names(config: Any) -> tuple[str, ...]:
    """The names of the scores of a model that has several; none of a model that gives one.

    Two outputs are two classes, which give one score, unless the configuration says that they are
    a regression.

    Args:
        config: of a sequence-classification model.

    >>> from types import SimpleNamespace
    >>> labels = {0: "helpful", 1: "short"}
    >>> objective_names(SimpleNamespace(num_labels=2, id2label=labels, problem_type="regression"))
    ('helpful', 'short')
    """
    regression = getattr(config, "problem_type", None) == "regression"
    if config.num_labels < 2 or (config.num_labels == 2 and not regression):
        return ()
    return tuple(str(config.id2label[output]) for output in range(config.num_labels))


def debiased(
    scores: Float[Tensor, "*batch objectives"],
    penalties: Float[Tensor, "objectives"],
    *,
    against: int,
) -> Float[Tensor, "*batch objectives"]:
    """Scores less what each has of the objective that it shall not follow, of length for example.

        r'_k = r_k − p_k r_v

    Args:
        scores: by each objective.
        penalties: p; that of the objective itself is 1, so that nothing is left of it.
        against: v, its number.

    Source: Wang et al. 2024, arXiv 2406.12845, equation of the adjusted rewards.

    >>> debiased(torch.tensor([[3.0, 2.0]]), torch.tensor([0.5, 1.0]), against=1)
    tensor([[2., 0.]])
    """
    return scores - penalties * scores[..., against : against + 1]


def require_one_score(outputs: int, objectives: Sequence[str] = ()) -> None:
    """Raise unless a head with so many outputs gives one score.

    Args:
        outputs: how many there are.
        objectives: their names, where each is a score of its own.

    Raises:
        ModelError: it has none or more than two, or each is a score of its own.
    """
    if objectives:
        raise ModelError(
            f"the reward model has {outputs} outputs, a score for each of {', '.join(objectives)}; "
            f"expected one of them, as in 'folder#{objectives[0]}', or a weighted sum, as in "
            f"'folder#{objectives[0]}=0.7,{objectives[1]}=0.3'"
        )
    if outputs not in (1, 2):
        raise ModelError(
            f"the reward model has {outputs} outputs; expected one score, or two classes of which "
            "the second is the better: load one with num_labels=1 or 2"
        )


def last_positions(attention_mask: Bool[Tensor, "batch sequence"]) -> Int[Tensor, "batch"]:
    """Where the score of each row is read: its last real token, by mask, whatever its id.

    Raises:
        DataError: a row has no real token.

    >>> last_positions(torch.tensor([[False, True, True, False]]))
    tensor([2])
    """
    positions = last_true_index(attention_mask)
    if bool((positions < 0).any()):
        empty = (positions < 0).nonzero().flatten().tolist()
        raise DataError(
            f"rows {empty} have no real token; expected at least one: an attention mask holds "
            "True on real tokens"
        )
    return positions


def at_last_token(
    values: Shaped[Tensor, "batch sequence *rest"], attention_mask: Bool[Tensor, "batch sequence"]
) -> Shaped[Tensor, "batch *rest"]:
    """The value of each row at its last real token.

    Raises:
        DataError: a row has no real token.

    >>> at_last_token(torch.tensor([[5.0, 6.0, 7.0]]), torch.tensor([[True, True, False]]))
    tensor([6.])
    """
    rows = torch.arange(len(values), device=values.device)
    return values[rows, last_positions(attention_mask)]
