"""The models of `generate`, and its responses by the method that the settings name."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from tokencredit.batch import Prompt, ResponseBatch, padded_rows
from tokencredit.decoding.candidates.hf_candidate_texts import CandidateTexts
from tokencredit.decoding.candidates.hf_choice import candidate_scorer, text_scorer
from tokencredit.decoding.candidates.hf_reading_scorers import FramedScorer, ResponseCandidates
from tokencredit.decoding.candidates.hf_scorers import VocabScorer
from tokencredit.decoding.candidates.scores import CandidateScorer
from tokencredit.decoding.hf_generate import GuidedOutput, guided_generate
from tokencredit.decoding.hf_guide import RewardGuide
from tokencredit.decoding.rules import GuidanceMethod
from tokencredit.decoding.search.hf_methods import SearchTask
from tokencredit.decoding.search.hf_sampling import written_responses
from tokencredit.errors import ConfigError
from tokencredit.models.hf_loading import load_model, load_tokenizer, require_pad_token
from tokencredit.models.hf_logprobs import response_logprobs
from tokencredit.models.hf_sampling import (
    SampledDistribution,
    generation_settings,
    undrawable_ids,
    without_generation_defaults,
)
from tokencredit.models.hf_vocabularies import require_same_vocabulary, shares_vocabulary
from tokencredit.recipes.decoding.settings import GenerateConfig, GuidanceSettings, ImplicitSettings
from tokencredit.scorers.hf_local import LocalScorer
from tokencredit.scorers.hf_trained_reading import trained_segments
from tokencredit.scorers.hf_vocabulary import load_vocabulary_reward, vocabulary_sequence_scores
from tokencredit.scorers.texts import loaded_reward_model
from tokencredit.server.asking import RewardServer
from tokencredit.server.vllm_writing import (
    WritingServer,
    drawn_ids,
    probe_text,
    text_logprobs,
    writing_server,
)
from tokencredit.text.hf_known_readings import reading_of
from tokencredit.text.hf_reading import Reading
from tokencredit.text.hf_written_rows import prompts_of, written_rows

Judge = tuple[Any, Reading]
# Mean difference in nats of the log-probabilities of two ways to compute them, in half precision.
_CLOSE = 0.3


@dataclass(frozen=True)
class Models:
    """The models of `generate`: what writes, what guides and what judges.

    Attributes:
        policy: which writes.
        reading: how the policy reads prompts, and what ends its responses.
        reward_model: which guides and judges.
        reward_reading: how the reward model reads texts.
        held_out: another reward model with its reading, which only judges.
        implicit: what DPO trained, and its reference.
        undrawable: ids without a token, in the policy or in what DPO trained.
        server: draws whole responses in the policy's place; None where it draws them itself.
    """

    policy: PreTrainedModel
    reading: Reading
    reward_model: PreTrainedModel
    reward_reading: Reading
    held_out: Judge | None = None
    implicit: tuple[PreTrainedModel, PreTrainedModel] | None = None
    undrawable: tuple[int, ...] = ()
    server: WritingServer | None = None

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of the policy."""
        return self.reading.tokenizer

    @property
    def reward_tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of the reward model."""
        return self.reward_reading.tokenizer


class Found(NamedTuple):
    """One response per prompt, and what is known of them.

    Attributes:
        batch: the responses.
        guided: what the guide knew at every token, of methods that choose token by token.
        positions: tokens that the models read for each response, where it is known: `lm_positions`
            and `reward_positions`.
        kl: divergence of each response from the language model, in nats, where it is known.
    """

    batch: ResponseBatch
    guided: GuidedOutput | None
    positions: dict[str, Tensor]
    kl: Float[Tensor, "batch"] | None


def loaded_models(config: GenerateConfig) -> Models:
    """The models that the settings name, in evaluation mode.

    Raises:
        ModelError: one is missing, lacks a pad token or the head that the method needs, or reads
            other ids than the policy where it has to read the same.
    """
    loading: dict[str, Any] = {
        "dtype": config.loading.dtype,
        "attn_implementation": config.loading.attn_implementation,
        "trust_remote_code": config.loading.trust_remote_code,
        "device": config.device,
    }
    tokenizer = load_tokenizer(
        config.policy,
        trust_remote_code=config.loading.trust_remote_code,
        pad_token=config.loading.pad_token,
    )
    require_pad_token(tokenizer)
    policy = load_model(AutoModelForCausalLM, config.policy, **loading)
    reading = reading_of(policy, tokenizer, config.policy_reading)
    if over_vocabulary(config):
        model, own = load_vocabulary_reward(
            config.reward_model, tokenizer, method=config.method, **loading
        )
        judge: Judge = (model, reading_of(model, own, config.reading))
    else:
        judge = loaded_reward_model(config.reward_model, config.reading, **loading)
    held_out = None
    if config.held_out_reward_model is not None:
        held_out = loaded_reward_model(config.held_out_reward_model, config.reading, **loading)
    implicit = _implicit_models(config.implicit, policy, tokenizer, loading)
    ids = {id_ for model in (policy, *(implicit or ())) for id_ in undrawable_ids(tokenizer, model)}
    server = None
    if config.vllm_server is not None:
        server = _server_of(policy, tokenizer, config.vllm_server)
    undrawable = tuple(sorted(ids))
    return Models(policy, reading, *judge, held_out, implicit, undrawable, server)


@torch.no_grad()
def _server_of(
    policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, address: str
) -> WritingServer:
    """The server at an address, which must say of a text what the policy says."""
    server = writing_server(RewardServer(address, timeout=600.0, retries=3))
    text = probe_text(len(tokenizer), server.max_length)
    batch = ResponseBatch.of_rows([text[:1]], [text[1:]], pad_token_id=0, device=policy.device)
    own = response_logprobs(policy, batch)[0].cpu()
    difference = float((torch.tensor(text_logprobs(server, text)) - own).abs().mean())
    if not difference <= _CLOSE:
        raise ConfigError(
            f"the vLLM server at {address} has another model than `policy`: the log-probabilities "
            f"of a text of {len(text)} tokens are {difference:.3g} nats from the policy's on "
            f"average; expected at most {_CLOSE}: start it with the model of `policy`"
        )
    return server


def _served_sequences(
    config: GenerateConfig,
    models: Models,
    prompt_ids: Int[Tensor, "prompts prompt"],
    prompt_mask: Bool[Tensor, "prompts prompt"],
    copies: int,
) -> Int[Tensor, "rows sequence"]:
    """What `drawn_sequences` draws, by the server."""
    assert models.server is not None
    rows = [row[real].tolist() for row, real in zip(prompt_ids, prompt_mask, strict=True)]
    drawn = drawn_ids(
        models.server,
        [row for row in rows for _ in range(copies)],
        sampling=config.sampling.of_search(suppress_tokens=models.undrawable),
        ends=models.reading.turn_ends,
    )
    pad = models.tokenizer.pad_token_id
    responses, _ = padded_rows(drawn, fill=pad, side="right")
    prompts = prompt_ids.repeat_interleave(copies, 0)
    return torch.cat([prompts, responses.to(prompts.device)], dim=-1)


def _implicit_models(
    settings: ImplicitSettings,
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    loading: dict[str, Any],
) -> tuple[PreTrainedModel, PreTrainedModel] | None:
    """What DPO trained and its reference, by default the policy; None where none is named."""
    if settings.model is None:
        return None

    def loaded(setting: str, name: str) -> PreTrainedModel:
        other = load_tokenizer(name, trust_remote_code=loading["trust_remote_code"])
        require_same_vocabulary(tokenizer, other, argument=f"implicit.{setting} {name!r}")
        return load_model(AutoModelForCausalLM, name, **loading)

    model = loaded("model", settings.model)
    if settings.reference is None:
        return model, policy
    return model, loaded("reference", settings.reference)


def over_vocabulary(config: GenerateConfig) -> bool:
    """Whether the reward model scores the whole vocabulary in one pass."""
    return isinstance(config.row, GuidanceMethod) and config.row.needs == "vocabulary"


def method_responses(
    config: GenerateConfig,
    models: Models,
    rows: list[list[int]],
    asked: Sequence[Prompt] | None,
) -> Found:
    """One response per prompt by the method of the settings.

    What guides, selects and reports reads one text: the prompt in the reward model's own rendering,
    the response open while it goes on and closed once it has ended.

    Args:
        config: the settings of `generate`.
        models: that they name.
        rows: token ids of the prompts.
        asked: the prompts themselves; None where only their first tokens are kept.
    """
    prompts = padded_rows(rows, fill=models.tokenizer.pad_token_id, side="left")
    ids, mask = (tensor.to(models.policy.device) for tensor in prompts)
    row = config.row
    if isinstance(row, GuidanceMethod):
        return _guided_responses(config, row, models, ids, mask, asked)
    task = SearchTask(
        models.policy,
        ids,
        mask,
        partial(_numbered_scores, models, asked),
        config.sampling.of_search(suppress_tokens=models.undrawable),
        config.n,
        models.implicit,
        models.reading.turn_ends,
        models.tokenizer.pad_token_id,
        None if models.server is None else partial(_served_sequences, config, models),
    )
    found = row.function(task, config.settings_of(row))
    read = {"lm_positions": found.lm_positions, "reward_positions": found.scorer_positions}
    return Found(found.batch, None, read, found.kl)


def _guided_responses(
    config: GenerateConfig,
    method: GuidanceMethod,
    models: Models,
    prompt_ids: Int[Tensor, "prompts prompt"],
    prompt_mask: Bool[Tensor, "prompts prompt"],
    asked: Sequence[Prompt] | None,
) -> Found:
    """Responses whose tokens are chosen one by one."""
    chosen = {"guidance_beta": config.guidance.beta, "top_k": config.guidance.top_k}
    ends = models.reading.turn_ends
    guide = RewardGuide(
        _candidate_scorer(method, config.guidance, models, prompt_ids, prompt_mask, asked),
        **method.guide | {name: value for name, value in chosen.items() if value is not None},
        top_p=config.guidance.top_p,
        attention_mask=prompt_mask,
        eos_token_id=ends,
    )
    # What cannot be drawn is no candidate; temperature, top-k and top-p act on the sum.
    drawable = config.sampling.of_search(suppress_tokens=models.undrawable).without_shape
    settings = generation_settings(
        drawable, pad_token_id=models.tokenizer.pad_token_id, eos_token_id=ends
    )
    settings.update(**config.sampling.of_guide(method), return_dict_in_generate=True)
    with without_generation_defaults(models.policy):
        output: Any = models.policy.generate(
            prompt_ids,
            attention_mask=prompt_mask.long(),
            generation_config=settings,
            logits_processor=[SampledDistribution(drawable, ends, prompt_ids.shape[1]), guide],
            custom_generate=guided_generate,
        )
    batch = written_responses(prompt_ids, prompt_mask, output.sequences, ends)
    return Found(batch, output, {}, output.guidance_kl.sum(-1))


def _candidate_scorer(
    method: GuidanceMethod,
    settings: GuidanceSettings,
    models: Models,
    prompt_ids: Int[Tensor, "prompts prompt"],
    prompt_mask: Bool[Tensor, "prompts prompt"],
    asked: Sequence[Prompt] | None,
) -> CandidateScorer:
    """What scores candidates with the reward model that the method needs, as it reads responses."""
    model, reading, ends = models.reward_model, models.reward_reading, models.reading.turn_ends
    prompts = (prompt_ids, prompt_mask, asked)
    if method.needs == "vocabulary":
        whole = VocabScorer(model, scores=method.vocabulary_scores)
        return FramedScorer(whole, reading, *prompts)
    trained = trained_segments(model.config)
    in_pairs, at_segments = reading.template == "pair", trained is not None
    shared = shares_vocabulary(models.reward_tokenizer, models.tokenizer)
    if shared and not in_pairs and not at_segments:
        scorer = candidate_scorer(model, method=settings.scorer)
        return FramedScorer(scorer, reading, *prompts, turn_ends=ends)
    if settings.scorer != "auto":
        why = (
            "reads prompt and response as a pair"
            if in_pairs
            else "is read at the ends of segments"
            if at_segments
            else "has another tokenizer than the policy"
        )
        raise ConfigError(
            f"guidance.scorer is {settings.scorer!r} and the reward model {why}; expected 'auto', "
            "the one way there is"
        )
    if in_pairs or at_segments:
        return ResponseCandidates(partial(_numbered_scores, models, asked), prompt_ids.shape[1])
    if asked is None:
        nothing = torch.zeros(len(prompt_ids), 1, device=prompt_ids.device)
        alone = ResponseBatch(prompt_ids, prompt_mask, nothing.long(), nothing.bool())
        asked = prompts_of(reading, alone, models.tokenizer)
    texts = CandidateTexts(
        models.tokenizer,
        reading,
        prompts=asked,
        prompt_width=prompt_ids.shape[1],
        turn_ends=ends,
    )
    return text_scorer(model, texts)


def response_scores(
    config: GenerateConfig,
    models: Models,
    batch: ResponseBatch,
    asked: Sequence[Prompt] | None,
) -> dict[str, Float[Tensor, "batch"]]:
    """Scores of the responses by the guiding reward model, and by the other if there is one.

    A guide over the vocabulary gives its own value of the response, see
    `vocabulary_sequence_scores`.

    Args:
        config: the settings of `generate`.
        models: that they name.
        batch: one response per prompt.
        asked: as of `method_responses`.
    """
    found: dict[str, Tensor] = {}
    if over_vocabulary(config):
        none_ended = torch.zeros(len(batch), dtype=torch.bool, device=batch.response_ids.device)
        found["score"] = vocabulary_sequence_scores(
            models.reward_model,
            written_rows(models.reward_reading, batch, asked, none_ended).batch,
            method=config.method,
            reading=models.reward_reading,
        )
    else:
        judge = (models.reward_model, models.reward_reading)
        found["score"] = _scores_by(judge, models, batch, asked)
    if models.held_out is not None:
        found["held_out_score"] = _scores_by(models.held_out, models, batch, asked)
    return found


def _numbered_scores(
    models: Models,
    asked: Sequence[Prompt] | None,
    batch: ResponseBatch,
    prompts: Int[Tensor, "batch"],
) -> Float[Tensor, "batch"]:
    """Scores of responses, finished or not, to the prompts of these numbers."""
    own = None if asked is None else [asked[number] for number in prompts.tolist()]
    return _scores_by((models.reward_model, models.reward_reading), models, batch, own)


def _scores_by(
    judge: Judge, models: Models, batch: ResponseBatch, asked: Sequence[Prompt] | None
) -> Float[Tensor, "batch"]:
    scorer = LocalScorer(*judge, models.reading)
    return scorer(batch, conversations=asked).sequence_scores
