"""Responses steered token by token with a reward model, and what that cost and brought.

    tokencredit generate --policy LM --reward_model RM --prompts prompts.jsonl --output out

One rule for every method (`tokencredit.decoding.rules`): log-probabilities of the language model
plus `guidance_beta` times the score of the text with each candidate. Searches judge segments
instead (`tokencredit.recipes.decoding.methods`). Best-of-n, which only looks at whole responses,
and plain sampling stand beside both for comparison.
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
from transformers import AutoModelForCausalLM

from tokencredit.decoding.candidates.hf_candidate_texts import CandidateTexts
from tokencredit.decoding.candidates.hf_choice import candidate_scorer, text_scorer
from tokencredit.decoding.candidates.hf_scorers import VocabScorer
from tokencredit.errors import ConfigError
from tokencredit.models.hf_loading import (
    load_model,
    load_tokenizer,
    quiet_transformers,
    require_pad_token,
)
from tokencredit.models.hf_vocabularies import shares_vocabulary
from tokencredit.preference.hf_datasets import load_prompts
from tokencredit.recipes.decoding.methods import (
    SEARCH_METHODS,
    Models,
    judged,
    loaded_implicit,
    require_search_settings,
    responses,
)
from tokencredit.recipes.decoding.rows import response_metrics, response_rows
from tokencredit.recipes.run_folder import open_run_folder, write_atomically
from tokencredit.reward_model.hf_scores import load_reward_model
from tokencredit.scorers.vocabulary import (
    VOCABULARY_METHODS,
    guiding_scores,
    load_vocabulary_reward,
)
from tokencredit.text.hf_rendering import prompt_rows

Method = Literal[
    "unguided",
    "best-of-n",
    "args-greedy",
    "args-stochastic",
    "pargs",
    "pargs-greedy",
    "rad",
    "farma",
    "genarm",
    "cd",
    "cards",
    "chunk-beam",
    "tree-bon",
    "speculative-rejection",
    "implicit-beam",
]


@dataclass(frozen=True)
class GenerateConfig:
    """Settings of one batch of responses.

    Attributes:
        policy: Hub id or folder of the causal language model.
        reward_model: Hub id or folder of a sequence-classification model; for `farma`, `genarm` and
            `cd` of a causal language model with the vocabulary of the policy.
        prompts: dataset id or JSON-lines file.
        output: folder for `responses.jsonl` and `metrics.json`.
        method: how to steer. `unguided` and `best-of-n` sample from the language model; the others
            are settings of one rule, each as its paper has it: `args-greedy`, `args-stochastic`,
            `pargs` and `pargs-greedy` (for a reward model trained on prefixes), `rad`, and `farma`,
            `genarm` and `cd` (for one that scores the whole vocabulary). Searches over segments
            are `cards`, `chunk-beam`, `tree-bon`, `speculative-rejection` and `implicit-beam`.
        guidance_beta: units of log-probability per nat of score; None for the method's own.
        top_k: candidates per step; None for the method's own. Searches draw from this many.
        top_p: of the candidates, the fewest with this share of their probability; 1 for all.
        n: responses per prompt of `best-of-n`; beginnings of `tree-bon` and
            `speculative-rejection`; chunks that `chunk-beam` draws behind each beam.
        target_reward: what a response of `cards` should score, in units of the reward model.
        acceptance_beta: of `cards`: how far below its threshold a score may lie, in the same unit.
        threshold_start: of `cards`: where the threshold begins, from the score of the prompt, 0, to
            `target_reward`, 1.
        entropy_threshold: of `cards`: nats of the next token at which a segment ends.
        max_proposals: of `cards`: after so many rejections in one place the best is taken.
        chunk_tokens: of a chunk of `chunk-beam`; between two checks of `speculative-rejection`.
        rejection_share: of the beginnings, rejected at each check of `speculative-rejection`.
        beams: of `chunk-beam`, by default 1, and of `implicit-beam`, by default 5.
        layers: of `tree-bon`, each of which writes its share of the tokens.
        children: of `tree-bon`: continuations of each beginning that is kept, n / children of them.
        implicit_model: of `tree-bon` and `implicit-beam`: a language model that DPO trained.
        implicit_reference: what it was trained from; None for the policy.
        scorer: how candidates are scored; every way gives the same scores. `auto` takes the
            fastest that the reward model allows; a vocabulary has one way.
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
    target_reward: float | None = None
    acceptance_beta: float = 0.7
    threshold_start: float = 0.5
    entropy_threshold: float = 3.0
    max_proposals: int = 20
    chunk_tokens: int = 16
    rejection_share: float = 0.5
    beams: int | None = None
    layers: int = 4
    children: int = 2
    implicit_model: str | None = None
    implicit_reference: str | None = None
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
        require_search_settings(self)
        whole = ("unguided", "best-of-n", *SEARCH_METHODS)
        if self.method in whole and self.guidance_beta is not None:
            raise ConfigError(
                f"guidance_beta is {self.guidance_beta} and method {self.method!r}; expected a "
                "method that is guided token by token, or no guidance_beta"
            )
        if self.method in VOCABULARY_METHODS and self.scorer != "auto":
            raise ConfigError(
                f"scorer is {self.scorer!r} and method {self.method!r}, whose reward model scores "
                "the whole vocabulary in one pass; expected 'auto'"
            )


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
        batch, guided, positions = responses(config, models, part, scorer=_scorer)
        seconds += time.perf_counter() - began
        chats = None if isinstance(prompts[0], str) else prompts[start : start + len(part)]
        scores = judged(config, models, batch, chats)
        found += response_rows(models.tokenizer, batch, scores, guided, positions)
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
    if config.method in VOCABULARY_METHODS:
        reward_model, reward_tokenizer = load_vocabulary_reward(
            config.reward_model, tokenizer, method=config.method, **shared
        )
    else:
        reward_model, reward_tokenizer = load_reward_model(config.reward_model, **shared)
    held_out = None
    if config.held_out_reward_model is not None:
        held_out = load_reward_model(config.held_out_reward_model, **shared)
    implicit = loaded_implicit(config, policy, tokenizer, **shared)
    return Models(policy, tokenizer, reward_model.eval(), reward_tokenizer, held_out, implicit)


def _scorer(config: GenerateConfig, models: Models) -> Any:
    if config.method in VOCABULARY_METHODS:
        return VocabScorer(models.reward_model, scores=guiding_scores(config.method))
    if shares_vocabulary(models.reward_tokenizer, models.tokenizer):
        return candidate_scorer(models.reward_model, method=config.scorer)
    if config.scorer != "auto":
        raise ConfigError(
            f"scorer is {config.scorer!r} and the reward model has another tokenizer than the "
            "policy; expected 'auto', which scores a tree of its tokens"
        )
    texts = CandidateTexts(models.tokenizer, models.reward_tokenizer)
    return text_scorer(models.reward_model, texts)
