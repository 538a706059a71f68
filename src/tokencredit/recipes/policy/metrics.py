"""What a training step reports: numbers, samples, a progress bar."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import torch
from accelerate import Accelerator
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from tokencredit.errors import NumericError
from tokencredit.evaluation.credit_shape import credit_entropy, last_token_share
from tokencredit.masking import masked_mean, masked_sum, masked_var
from tokencredit.policy.selection import score_reliability
from tokencredit.recipes.policy.experience import Experience
from tokencredit.text.hf_decoding import decoded_response


@contextmanager
def timed(seconds: dict[str, float], phase: str) -> Iterator[None]:
    """Add the wall time of a phase."""
    start = time.perf_counter()
    yield
    seconds[phase] = time.perf_counter() - start


def require_finite(what: str, value: Tensor) -> None:
    """Stop before a broken number reaches the weights.

    Raises:
        NumericError: the value is NaN or infinite.
    """
    if not bool(value.isfinite().all()):
        raise NumericError(
            f"{what} is {float(value.detach())}; expected a finite number. The last checkpoint is "
            "whole: lower the learning rate or look at the rewards, then run the same command again"
        )


def step_metrics(
    step: int,
    experience: Experience,
    update: dict[str, float],
    seconds: dict[str, float],
    *,
    kl_coef: float,
    reduce: Callable[[Tensor], Tensor],
    kept: Tensor | None = None,
) -> dict[str, Any]:
    """One row of metrics.jsonl; scores and KL in nats, lengths in tokens.

    Args:
        step: its number.
        experience: what was rolled out.
        update: mean losses of the update.
        seconds: wall time by phase.
        kl_coef: the coefficient that was in force.
        reduce: gathers a per-response tensor over processes.
        kept: numbers of the responses that were learnt from; None for all.
    """
    mask, old = experience.batch.response_mask, experience.old
    of_scores = {
        "score": experience.sequence_scores,
        "token_score_sum": masked_sum(experience.token_scores, mask),
        "last_token_share": last_token_share(experience.token_scores, mask),
        "credit_entropy": credit_entropy(experience.token_scores, mask),
    }
    if len(experience.source_scores) > 1:
        of_scores |= {f"score/{name}": one for name, one in experience.source_scores.items()}
    of_scores |= {f"score/{name}": one for name, one in experience.objective_scores.items()}
    per_response = {
        # Not a number where there is no score, and so left out of the means.
        **{k: v.float().masked_fill(experience.unscored, torch.nan) for k, v in of_scores.items()},
        "unscored_share": experience.unscored.float(),
        "kl": masked_sum(experience.kl, mask),
        "length": experience.batch.lengths.float(),
        "truncated_share": experience.truncated.float(),
    }
    if experience.passed is not None:
        per_response["passed_share"] = experience.passed.float()
    if experience.held_out_scores is not None:
        per_response["held_out_score"] = experience.held_out_scores.float()
    gathered = {name: _numbers(reduce(value)) for name, value in per_response.items()}
    row: dict[str, Any] = {"step": step}
    row |= {name: float(value.mean()) for name, value in gathered.items()}
    row["score_std"] = float(gathered["score"].std(correction=0))
    row["kl_std"] = float(gathered["kl"].std(correction=0))
    row |= _of_selection(experience, kept, reduce)
    if experience.returns is not None:
        errors = masked_var(experience.returns - old.values, mask)
        spread = masked_var(experience.returns, mask)
        row["explained_variance"] = float(1 - errors / spread.clamp(min=1e-12))
    row["entropy"] = float(masked_mean(experience.entropies, mask))
    row["kl_coef"] = kl_coef
    row |= update
    row |= {f"seconds_{phase}": round(spent, 4) for phase, spent in seconds.items()}
    row["tokens_per_second"] = float(gathered["length"].sum()) / max(sum(seconds.values()), 1e-9)
    return row


def _of_selection(
    experience: Experience, kept: Tensor | None, reduce: Callable[[Tensor], Tensor]
) -> dict[str, float]:
    """How reliable the scores are, by the judge that the policy never sees, and what was kept."""
    scores = experience.sequence_scores.float().masked_fill(experience.unscored, torch.nan)
    judged, row = experience.held_out_scores, {}
    for prefix, rows in (("", slice(None)), ("kept_", kept)):
        if rows is None:
            continue
        own = reduce(scores[rows])
        if prefix:
            row["kept_score"] = float(_numbers(own).mean())
        if judged is not None:
            other = reduce(judged.float()[rows])
            both = ~own.isnan() & ~other.isnan()
            row[f"{prefix}reliability"] = float(score_reliability(own[both], other[both]))
    return row


def _numbers(values: Tensor) -> Tensor:
    """Those that are numbers; a zero where none is."""
    numbers = values[~values.isnan()]
    return numbers if len(numbers) else values.new_zeros(1)


def sample_rows(
    step: int, experience: Experience, tokenizer: Any, *, count: int
) -> list[dict[str, Any]]:
    """The first responses of a batch with what each token earned; texts without special tokens."""
    batch, rows = experience.batch, []
    for index in range(min(count, len(batch))):
        mask = batch.response_mask[index]
        ids = batch.response_ids[index][mask].tolist()
        prompt_ids = batch.prompt_ids[index][batch.prompt_mask[index]].tolist()
        texts = decoded_response(tokenizer, prompt_ids, ids)
        rows.append(
            {
                "step": step,
                "prompt": texts.prompt,
                "response": texts.response,
                "score": _score(experience, index),
                **_source_scores(experience, index),
                "tokens": [tokenizer.decode([token]) for token in ids],
                "token_scores": _rounded(experience.token_scores[index][mask]),
                "token_rewards": _rounded(experience.token_rewards[index][mask]),
            }
        )
    return rows


def _score(experience: Experience, index: int) -> float | None:
    """The score of a response; None where it could not be scored."""
    return None if experience.unscored[index] else float(experience.sequence_scores[index])


def _source_scores(experience: Experience, index: int) -> dict[str, Any]:
    """Scores of the sources of reward, where there are several."""
    found = {name: float(scores[index]) for name, scores in experience.source_scores.items()}
    return {"scores": found} if len(found) > 1 else {}


def _rounded(values: Tensor) -> list[float]:
    return [round(value, 5) for value in values.tolist()]


class StepProgress:
    """A bar with score, KL and the time left, on the main process."""

    def __init__(self, steps: int, done: int, enabled: bool, accelerator: Accelerator) -> None:
        shown = enabled and accelerator.is_main_process
        self._progress = Progress(
            TextColumn("steps"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("score {task.fields[score]:.2f}  KL {task.fields[kl]:.2f}"),
            TimeRemainingColumn(),
            disable=not shown,
        )
        self._task = self._progress.add_task("", total=steps, completed=done, score=0.0, kl=0.0)

    def __enter__(self) -> "StepProgress":
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def show(self, row: dict[str, Any]) -> None:
        """Advance by one step."""
        self._progress.update(self._task, advance=1, score=row["score"], kl=row["kl"])
