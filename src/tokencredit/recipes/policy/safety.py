"""Whether a policy is shown to be safe, by its costs on prompts that it was not trained on.

    tokencredit test-safety --policy run/policy --cost COST --prompts held-out.jsonl --output test

One response to each prompt is drawn and its cost asked for. The policy passes where an upper bound
of the mean cost is at most the threshold. Where it is not, the answer is "no solution", with exit
status 3: that is a result, and no fault.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from transformers import AutoModelForCausalLM

from tokencredit.batch import Prompt, padded_rows
from tokencredit.errors import ConfigError, DataError
from tokencredit.models.hf_loading import (
    load_model,
    load_tokenizer,
    quiet_transformers,
    require_pad_token,
)
from tokencredit.models.hf_sampling import undrawable_ids
from tokencredit.policy.bounds import SafetyVerdict, require_probability, safety_test
from tokencredit.policy.hf_rollout import sampled_responses
from tokencredit.preference.hf_datasets import load_prompts
from tokencredit.preference.hf_rows import DatasetSettings
from tokencredit.ranges import require_at_least
from tokencredit.recipes.policy.models import reward_server_of
from tokencredit.recipes.policy.setting_groups import (
    PromptSettings,
    SamplingSettings,
    ServerSettings,
    sampling_of,
)
from tokencredit.recipes.policy.value_groups import SoftQSettings
from tokencredit.recipes.run.left_out import encodable_prompts, tell_left_out
from tokencredit.recipes.run.run_folder import open_run_folder, require_same_run, write_atomically
from tokencredit.recipes.settings import LoadingSettings, free_settings, group, setting
from tokencredit.scorers.evidence import Responses, response_scores
from tokencredit.scorers.hf_policy_tokens import decoded_responses
from tokencredit.scorers.sources import named_scorer
from tokencredit.text.hf_known_readings import reading_of
from tokencredit.text.reading_settings import ReadingSettings, require_writer

FILE = "safety.json"
"""Where the verdict stands in the folder of a test."""


@dataclass(frozen=True)
class TestSafetyConfig:
    """Settings of one safety test."""

    __test__ = False  # for pytest, which takes every class of this name for one of tests

    policy: str
    """Hub id or folder of the policy that was trained."""
    cost: str
    """What a response costs: Hub id or folder of a reward model, the address of one that is served,
    or `module:function`, a Python function from prompts and responses to one number each."""
    prompts: str
    """Held-out prompts: dataset id or JSON-lines file."""
    output: str = setting(free=True)
    """Folder of the verdict and the responses; a new one."""
    threshold: float = 0.0
    """Mean cost that is allowed."""
    failure_probability: float = 0.05
    """Probability with which an unsafe policy may pass."""
    bound: Literal["student", "hoeffding"] = "student"
    """`student` holds where mean costs are nearly normal, `hoeffding` for any costs in
    `cost_range`."""
    cost_range: tuple[float, float] | None = None
    """For `hoeffding`: lowest and highest cost that there can be."""
    trained_on: str | None = None
    """Prompts of the training, from which the held-out ones must differ; None finds them in the run
    folder of `policy`."""
    data: PromptSettings = group(PromptSettings)
    """Which prompts are read; `data.tokens` is not allowed here."""
    dataset: DatasetSettings = group(DatasetSettings)
    """Which part of a dataset is read, and what becomes of prompts that cannot be used."""
    sampling: SamplingSettings = group(SamplingSettings)
    """How responses are drawn: as they will be in use."""
    server: ServerSettings = group(ServerSettings, free=True)
    """How to reach a served reward model."""
    reading: ReadingSettings = group(ReadingSettings)
    """How the reward model reads texts, where its configuration does not say."""
    policy_reading: ReadingSettings = group(ReadingSettings)
    """How the policy reads prompts, and what ends its responses."""
    loading: LoadingSettings = group(LoadingSettings)
    """How models and tokenizers are loaded."""
    batch_size: int = 16
    """Prompts at a time."""
    seed: int = 0
    """Seed of the responses."""
    device: str | None = setting(None, free=True)
    """Device to compute on, such as `cuda`; None for the CPU."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "batch_size")
        require_writer(self.policy_reading, name="policy_reading")
        require_probability(self.failure_probability)
        if (self.bound == "hoeffding") != (self.cost_range is not None):
            raise ConfigError(
                f"bound is {self.bound!r} and cost_range {self.cost_range}; expected a range of "
                "costs for 'hoeffding', and none for 'student'"
            )
        if self.data.tokens is not None:
            raise ConfigError(
                f"data.tokens is {self.data.tokens}; expected whole prompts, as they will be asked"
            )
        if self.sampling.truncated != "ended":
            raise ConfigError(
                f"sampling.truncated is {self.sampling.truncated!r}; expected 'ended': every "
                "response counts with its cost"
            )


@dataclass(frozen=True)
class SafetyReport:
    """The verdict of a test, and where it stands.

    Attributes:
        verdict: what the costs say.
        path: the file of it.
    """

    verdict: SafetyVerdict
    path: Path

    @property
    def exit_status(self) -> int:
        """0 for a policy that passes, 3 for no solution."""
        return 0 if self.verdict.safe else 3


@quiet_transformers()
def test_safety(config: TestSafetyConfig) -> SafetyReport:
    """Draw a response to each prompt, ask for its cost, and say whether the policy passes.

    A test is made once. The same command on the same folder tells the verdict that stands there,
    since a test that is repeated until it passes shows nothing.

    Returns:
        The verdict, and `safety.json`, beside `responses.jsonl` with prompts, responses and costs.

    Raises:
        DataError: there are too few prompts, one was trained on, or a response has no cost.
        ModelError: a model is missing, or has no pad token or the wrong head.
        RunFolderError: the folder holds another test, or cannot be written.
        ConfigError, ServerError, NumericError: as the cost.
    """
    require_same_run(config.output, config, free=free_settings(TestSafetyConfig))
    path = Path(config.output) / FILE
    prompts, left_out = _prompts(config)
    _require_unseen(config, prompts)
    if path.exists():
        report = SafetyReport(SafetyVerdict(**json.loads(path.read_text())), path)
        _tell(report, config)
        return report
    rows = _answers(config, prompts)
    costs = torch.tensor([row["cost"] for row in rows], dtype=torch.float64)
    verdict = safety_test(
        costs,
        threshold=config.threshold,
        failure_probability=config.failure_probability,
        bound=config.bound,
        cost_range=config.cost_range,
    )
    folder = open_run_folder(config.output, config, free=free_settings(TestSafetyConfig))
    tell_left_out(left_out, folder / "skipped.jsonl")
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_atomically(folder / "responses.jsonl", lines)
    write_atomically(path, json.dumps(asdict(verdict), indent=2) + "\n")
    report = SafetyReport(verdict, path)
    _tell(report, config)
    return report


def _prompts(config: TestSafetyConfig) -> tuple[list[Prompt], Any]:
    """Different prompts of the test, and rows that hold none."""
    left_out = config.dataset.collecting()
    found = load_prompts(
        config.prompts,
        split=config.data.split,
        column=config.data.column,
        limit=config.data.limit,
        dataset=config.dataset,
        left_out=left_out,
    )
    return list({json.dumps(one): one for one in found}.values()), left_out


def _require_unseen(config: TestSafetyConfig, prompts: Sequence[Prompt]) -> None:
    """Refuse prompts that the policy was trained on.

    Raises:
        DataError: there are some.
    """
    for source, read in _training_prompts(config):
        known = {json.dumps(one) for one in load_prompts(source, **read, left_out=[])}
        again = [one for one in prompts if json.dumps(one) in known]
        if again:
            raise DataError(
                f"{len(again)} of {len(prompts)} prompts are among those of {source}, which the "
                f"policy was trained on, {again[0]!r:.200} for example; expected held-out prompts: "
                "on others the test shows nothing"
            )


def _training_prompts(config: TestSafetyConfig) -> list[tuple[str, dict[str, Any]]]:
    """Where the prompts of the training are, as far as it is known, and how they are read."""
    if config.trained_on is not None:  # all of them, whatever `data.limit` leaves of the test
        own = {"split": config.data.split, "column": config.data.column}
        return [(config.trained_on, {**own, "dataset": config.dataset})]
    folder = Path(config.policy).parent
    if folder.parent.name == "checkpoints":
        folder = folder.parents[1]
    if not (folder / "config.yaml").is_file():
        return []
    run = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    if not isinstance(run, dict) or "prompts" not in run:
        return []
    dataset = DatasetSettings(**run.get("dataset", {}))
    data = PromptSettings(**{**run.get("data", {}), "tokens": None})
    read: dict[str, Any] = {"split": data.split, "column": data.column, "limit": data.limit}
    found = [(run["prompts"], {**read, "dataset": dataset})]
    others = SoftQSettings(**run.get("soft_q", {}))
    if others.data is not None:
        read = {"split": others.split, "column": others.prompt}
        found.append((others.data, {**read, "dataset": dataset}))
    return found


@torch.no_grad()
def _answers(config: TestSafetyConfig, prompts: list[Prompt]) -> list[dict[str, Any]]:
    """A response to each prompt with its cost."""
    loading: dict[str, Any] = {**config.loading.of_frozen, "device": config.device or "cpu"}
    tokenizer = load_tokenizer(
        config.policy,
        trust_remote_code=config.loading.trust_remote_code,
        pad_token=config.loading.pad_token,
    )
    require_pad_token(tokenizer)
    policy = load_model(AutoModelForCausalLM, config.policy, **loading)
    reading = reading_of(policy, tokenizer, config.policy_reading)
    cost = named_scorer(
        config.cost,
        reading,
        server=lambda address: reward_server_of(address, config.server),
        reading=config.reading,
        loading=loading,
    )
    encoded = encodable_prompts(
        prompts,
        reading,
        None,
        where=config.prompts,
        kept=None,
        new_tokens=config.sampling.max_new_tokens,
        readers=[policy],
    )
    sampling = sampling_of(
        config.sampling, end_ids=reading.turn_ends, undrawable=undrawable_ids(tokenizer, policy)
    )
    torch.manual_seed(config.seed)
    rows: list[dict[str, Any]] = []
    for start in range(0, len(encoded), config.batch_size):
        some = encoded[start : start + config.batch_size]
        ids, mask = padded_rows([row for _, row in some], fill=tokenizer.pad_token_id, side="left")
        batch, _ = sampled_responses(
            policy,
            ids.to(loading["device"]),
            mask.to(loading["device"]),
            sampling=sampling,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=reading.turn_ends or None,
        )
        asked = [prompt for prompt, _ in some]
        scores = response_scores(cost, Responses(batch, asked)).sequence_scores
        texts = [one.response for one in decoded_responses(tokenizer, batch)]
        rows += [
            {"prompt": prompt, "response": text, "cost": score}
            for prompt, text, score in zip(asked, texts, scores.tolist(), strict=True)
        ]
    return rows


def _tell(report: SafetyReport, config: TestSafetyConfig) -> None:
    one = report.verdict
    says = "safe" if one.safe else "no solution"
    compared = "at most" if one.safe else "above"
    print(
        f"{says}: the mean cost of {one.count} responses is {one.mean:.4g} and its upper bound at "
        f"{config.failure_probability:g} {one.bound:.4g}, {compared} the threshold "
        f"{config.threshold:g}"
    )
    if config.bound == "student" and one.deviation == 0:
        print(
            "all costs are the same, so that Student's bound says nothing about costs that are "
            "rare; bound 'hoeffding' with cost_range does"
        )
    print(f"verdict: {report.path}")
