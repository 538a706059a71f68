"""Responses steered token by token with a reward model, and what that cost and brought.

    tokencredit generate --policy LM --reward_model RM --prompts prompts.jsonl --output out

One rule for every method (`tokencredit.decoding.rules`): log-probabilities of the language model
plus `guidance_beta` times the score of the text with each candidate. Best-of-n, which only looks at
whole responses, and plain sampling stand beside it for comparison.
"""

import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor
from transformers import AutoModelForCausalLM

from tokencredit.batch import ResponseBatch
from tokencredit.decoding.hf_candidate_texts import CandidateTexts
from tokencredit.decoding.hf_choice import candidate_scorer, text_scorer
from tokencredit.decoding.hf_generate import GuidedOutput, guided_generate
from tokencredit.decoding.hf_guide import RewardGuide
from tokencredit.decoding.rules import GUIDANCE_METHODS
from tokencredit.errors import ConfigError
from tokencredit.hf_loading import load_model, load_tokenizer, require_pad_token
from tokencredit.preference.hf_datasets import load_prompts
from tokencredit.recipes.generated_rows import response_metrics, response_rows
from tokencredit.recipes.policy_setup import left_padded, prompt_rows
from tokencredit.recipes.run_folder import open_run_folder, write_atomically
from tokencredit.recipes.supervised import quiet_transformers
from tokencredit.recipes.token_scorer import policy_scores, shares_vocabulary
from tokencredit.reward_model.hf_backbone import load_reward_model

Method = Literal[
    "unguided", "best-of-n", "args-greedy", "args-stochastic", "pargs", "pargs-greedy", "rad"
]


@dataclass(frozen=True)
class GenerateConfig:
    """Settings of one batch of responses.

    Attributes:
        policy: Hub id or folder of the causal language model.
        reward_model: Hub id or folder of a sequence-classification model.
        prompts: dataset id or JSON-lines file.
        output: folder for `responses.jsonl` and `metrics.json`.
        method: how to steer. `unguided` and `best-of-n` sample from the language model; the others
            are settings of one rule, each as its paper has it: `args-greedy`, `args-stochastic`,
            `pargs` and `pargs-greedy` (for a reward model trained on prefixes), `rad`.
        guidance_beta: units of log-probability per nat of score; None for the method's own.
        top_k: candidates per step; None for the method's own.
        top_p: of the candidates, the fewest with this share of their probability; 1 for all.
        n: responses per prompt of `best-of-n`.
        scorer: how candidates are scored; every way gives the same scores. `auto` takes the
            fastest that the reward model allows.
        held_out_reward_model: a second reward model, which only judges.
        prompt_column: column of the prompts, texts or lists of chat messages.
        max_prompts: use only the first prompts; None uses all.
        prompt_tokens: keep this many first tokens of each prompt; None keeps all.
        min_new_tokens: no end of sequence before this many tokens.
        max_new_tokens: responses are cut here.
        batch_size: prompts at a time.
        pad_token: padding of a policy whose tokenizer has none.
        dtype: of the weights.
        trust_remote_code: run code that comes with a model; off unless you trust its author.
        seed: of sampling.
        device: to run on; None for the CPU.
        progress: show a progress bar.
    """

    policy: str
    reward_model: str
    prompts: str
    output: str
    method: Method = "pargs"
    guidance_beta: float | None = None
    top_k: int | None = None
    top_p: float = 1.0
    n: int = 10
    scorer: Literal["auto", "packed", "rows", "full"] = "auto"
    held_out_reward_model: str | None = None
    prompt_column: str = "prompt"
    max_prompts: int | None = None
    prompt_tokens: int | None = None
    min_new_tokens: int = 0
    max_new_tokens: int = 64
    batch_size: int = 8
    pad_token: str | None = None
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = "float32"
    trust_remote_code: bool = False
    seed: int = 0
    device: str | None = None
    progress: bool = True

    def __post_init__(self) -> None:
        for name in ("batch_size", "max_new_tokens", "n"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected at least 1")
        if self.method in ("unguided", "best-of-n") and self.guidance_beta is not None:
            raise ConfigError(
                f"guidance_beta is {self.guidance_beta} and method {self.method!r}; expected a "
                "method that is guided token by token, or no guidance_beta"
            )


@dataclass(frozen=True)
class Models:
    """Everything that speaks."""

    policy: Any
    tokenizer: Any
    reward_model: Any
    reward_tokenizer: Any
    held_out: tuple[Any, Any] | None


@quiet_transformers()
def generate(config: GenerateConfig) -> Path:
    """Write the responses and print what they cost and brought.

    Returns:
        `responses.jsonl`: prompt, response, scores, KL, and per token the candidates with their
        log-probabilities and scores.

    Raises:
        DataError: there are no prompts, or one is too long for the language model.
        ModelError: a model is missing, or has no pad token or the wrong head.
        NumericError: the score of a candidate is NaN.
        RunFolderError: the folder holds something else, or cannot be written.
    """
    models = _loaded(config)
    prompts = load_prompts(config.prompts, column=config.prompt_column, limit=config.max_prompts)
    rows = prompt_rows(prompts, models.tokenizer, where=config.prompts)
    rows = [row[: config.prompt_tokens] for row in rows]
    folder = open_run_folder(config.output, config, free=("progress",))
    torch.manual_seed(config.seed)
    found: list[dict[str, Any]] = []
    seconds = 0.0
    starts = range(0, len(rows), config.batch_size)
    for start in track(starts, "generate", disable=not config.progress):
        part = rows[start : start + config.batch_size]
        began = time.perf_counter()
        batch, output = _responses(config, models, part)
        seconds += time.perf_counter() - began
        chats = None if isinstance(prompts[0], str) else prompts[start : start + len(part)]
        found += response_rows(models.tokenizer, batch, _judged(models, batch, chats), output)
    write_atomically(
        folder / "responses.jsonl",
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found),
    )
    metrics = response_metrics(found, seconds)
    if config.method == "unguided":
        metrics["kl"] = 0.0
    if config.method == "best-of-n":  # the KL of best-of-n is known by its bound alone
        metrics["kl_at_most"] = math.log(config.n) - (config.n - 1) / config.n
    write_atomically(folder / "metrics.json", json.dumps(metrics, indent=2) + "\n")
    table = Table("", config.method, title=f"{len(found)} responses")
    for name, value in metrics.items():
        table.add_row(name.replace("_", " "), f"{value:,.4g}")
    Console().print(table)
    print(f"responses: {folder / 'responses.jsonl'}")
    return folder / "responses.jsonl"


def _loaded(config: GenerateConfig) -> Models:
    shared: dict[str, Any] = {
        "dtype": config.dtype,
        "device": config.device,
        "trust_remote_code": config.trust_remote_code,
    }
    tokenizer = load_tokenizer(
        config.policy, trust_remote_code=config.trust_remote_code, pad_token=config.pad_token
    )
    require_pad_token(tokenizer)
    policy = load_model(AutoModelForCausalLM, config.policy, **shared).eval()
    reward_model, reward_tokenizer = load_reward_model(config.reward_model, **shared)
    held_out = None
    if config.held_out_reward_model is not None:
        held_out = load_reward_model(config.held_out_reward_model, **shared)
    return Models(policy, tokenizer, reward_model.eval(), reward_tokenizer, held_out)


def _responses(
    config: GenerateConfig, models: Models, rows: list[list[int]]
) -> tuple[ResponseBatch, GuidedOutput | None]:
    """One response per prompt, and what the guide knew of it."""
    prompt_ids, prompt_mask = left_padded(rows, models.tokenizer.pad_token_id)
    device = models.policy.device
    prompt_ids, prompt_mask = prompt_ids.to(device), prompt_mask.to(device)
    limits: dict[str, Any] = {
        "attention_mask": prompt_mask.long(),
        "max_new_tokens": config.max_new_tokens,
        "min_new_tokens": config.min_new_tokens or None,
        "pad_token_id": models.tokenizer.pad_token_id,
        "eos_token_id": models.tokenizer.eos_token_id,
    }
    if config.method in ("unguided", "best-of-n"):
        copies = config.n if config.method == "best-of-n" else 1
        sequences = models.policy.generate(
            prompt_ids, **limits, do_sample=True, top_k=0, num_return_sequences=copies
        )
        batch = _batch(models, prompt_ids, prompt_mask, sequences)
        return (batch if copies == 1 else _best(models, batch, copies)), None
    settings = GUIDANCE_METHODS[config.method]
    chosen = {"guidance_beta": config.guidance_beta, "top_k": config.top_k}
    guide = RewardGuide(
        _scorer(config, models),
        **settings.guide | {k: v for k, v in chosen.items() if v is not None},
        top_p=config.top_p,
        attention_mask=prompt_mask,
        eos_token_id=models.tokenizer.eos_token_id,
    )
    output = models.policy.generate(
        prompt_ids,
        **limits,
        **settings.sampling,
        logits_processor=[guide],
        custom_generate=guided_generate,
        return_dict_in_generate=True,
    )
    batch = _batch(models, prompt_ids, prompt_mask, output.sequences)
    return batch, output


def _scorer(config: GenerateConfig, models: Models) -> Any:
    if shares_vocabulary(models.reward_tokenizer, models.tokenizer):
        return candidate_scorer(models.reward_model, method=config.scorer)
    if config.scorer != "auto":
        raise ConfigError(
            f"scorer is {config.scorer!r} and the reward model has another tokenizer than the "
            "policy; expected 'auto', which scores a tree of its tokens"
        )
    texts = CandidateTexts(models.tokenizer, models.reward_tokenizer)
    return text_scorer(models.reward_model, texts)


def _batch(
    models: Models, prompt_ids: Tensor, prompt_mask: Tensor, sequences: Tensor
) -> ResponseBatch:
    """Prompts and what follows them, up to and with the first end of sequence."""
    copies = len(sequences) // len(prompt_ids)
    response = sequences[:, prompt_ids.shape[1] :]
    eos = models.tokenizer.eos_token_id
    ends = response == (-1 if eos is None else eos)
    ended_before = ends.cumsum(-1) - ends.long() > 0
    return ResponseBatch(
        prompt_ids.repeat_interleave(copies, 0),
        prompt_mask.repeat_interleave(copies, 0),
        response,
        ~ended_before,
    )


def _best(models: Models, batch: ResponseBatch, copies: int) -> ResponseBatch:
    """The best of every `copies` responses by the guiding reward model."""
    scores = policy_scores(
        models.reward_model, models.reward_tokenizer, models.tokenizer, batch
    ).sequence_scores
    best = scores.view(-1, copies).argmax(-1)
    return batch[torch.arange(len(best), device=best.device) * copies + best]


def _judged(models: Models, batch: ResponseBatch, chats: Any) -> dict[str, Tensor]:
    """Scores of the responses by the guiding reward model, and by the other if there is one."""
    judges = {"score": (models.reward_model, models.reward_tokenizer)}
    if models.held_out is not None:
        judges["held_out_score"] = models.held_out
    return {
        name: policy_scores(*judge, models.tokenizer, batch, conversations=chats).sequence_scores
        for name, judge in judges.items()
    }
