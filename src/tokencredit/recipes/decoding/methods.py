"""The models of `generate`, and its responses by the method that the settings name."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from tokencredit.batch import Prompt, ResponseBatch, padded_rows
from tokencredit.decoding.candidates.hf_candidate_texts import CandidateTexts
from tokencredit.decoding.candidates.hf_choice import candidate_scorer, text_scorer
from tokencredit.decoding.candidates.hf_scorers import VocabScorer
from tokencredit.decoding.candidates.scores import CandidateScorer
from tokencredit.decoding.hf_generate import GuidedOutput, guided_generate
from tokencredit.decoding.hf_guide import RewardGuide
from tokencredit.decoding.rules import GuidanceMethod
from tokencredit.decoding.search.hf_methods import SearchTask
from tokencredit.decoding.search.hf_sampling import written_responses
from tokencredit.errors import ConfigError
from tokencredit.models.hf_loading import load_model, load_tokenizer, require_pad_token
from tokencredit.models.hf_sampling import (
    SampledDistribution,
    generation_settings,
    undrawable_ids,
    without_generation_defaults,
)
from tokencredit.models.hf_vocabularies import require_same_vocabulary, shares_vocabulary
from tokencredit.recipes.decoding.settings import GenerateConfig, GuidanceSettings, ImplicitSettings
from tokencredit.scorers.local import LocalScorer
from tokencredit.scorers.texts import loaded_reward_model
from tokencredit.scorers.vocabulary import load_vocabulary_reward, vocabulary_sequence_scores
from tokencredit.text.hf_reading import Reading, reading_of

Judge = tuple[Any, Reading]


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
        undrawable: ids that no token stands behind, in the policy or in what DPO trained.
    """

    policy: PreTrainedModel
    reading: Reading
    reward_model: PreTrainedModel
    reward_reading: Reading
    held_out: Judge | None = None
    implicit: tuple[PreTrainedModel, PreTrainedModel] | None = None
    undrawable: tuple[int, ...] = ()

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Of the policy."""
        return self.reading.tokenizer

    @property
    def reward_tokenizer(self) -> PreTrainedTokenizerBase:
        """Of the reward model."""
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
    return Models(policy, reading, *judge, held_out, implicit, undrawable=tuple(sorted(ids)))


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


def method_responses(config: GenerateConfig, models: Models, rows: list[list[int]]) -> Found:
    """One response per prompt by the method of the settings.

    Args:
        config: the settings of `generate`.
        models: that they name.
        rows: token ids of the prompts.
    """
    prompts = padded_rows(rows, fill=models.tokenizer.pad_token_id, side="left")
    ids, mask = (tensor.to(models.policy.device) for tensor in prompts)
    row = config.row
    if isinstance(row, GuidanceMethod):
        return _guided_responses(config, row, models, ids, mask)
    task = SearchTask(
        models.policy,
        ids,
        mask,
        lambda batch: _scores_by((models.reward_model, models.reward_reading), models, batch),
        config.sampling.of_search(suppress_tokens=models.undrawable),
        config.n,
        models.implicit,
        models.reading.turn_ends,
        models.tokenizer.pad_token_id,
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
) -> Found:
    """Responses whose tokens are chosen one by one."""
    chosen = {"guidance_beta": config.guidance.beta, "top_k": config.guidance.top_k}
    guide = RewardGuide(
        _candidate_scorer(method, config.guidance, models),
        **method.guide | {name: value for name, value in chosen.items() if value is not None},
        top_p=config.guidance.top_p,
        attention_mask=prompt_mask,
        eos_token_id=models.reading.turn_ends,
    )
    tokens = {
        "pad_token_id": models.tokenizer.pad_token_id,
        "eos_token_id": models.reading.turn_ends,
    }
    # What cannot be drawn is no candidate; temperature, top-k and top-p act on the sum.
    drawable = config.sampling.of_search(suppress_tokens=models.undrawable).without_shape
    settings = generation_settings(drawable, **tokens)
    settings.update(**config.sampling.of_guide(method), return_dict_in_generate=True)
    with without_generation_defaults(models.policy):
        output: Any = models.policy.generate(
            prompt_ids,
            attention_mask=prompt_mask.long(),
            generation_config=settings,
            logits_processor=[
                SampledDistribution(drawable, models.reading.turn_ends, prompt_ids.shape[1]),
                guide,
            ],
            custom_generate=guided_generate,
        )
    batch = written_responses(prompt_ids, prompt_mask, output.sequences, models.reading.turn_ends)
    return Found(batch, output, {}, output.guidance_kl.sum(-1))


def _candidate_scorer(
    method: GuidanceMethod, settings: GuidanceSettings, models: Models
) -> CandidateScorer:
    """What scores candidates with the reward model that the method needs."""
    if method.needs == "vocabulary":
        return VocabScorer(models.reward_model, scores=method.vocabulary_scores)
    if shares_vocabulary(models.reward_tokenizer, models.tokenizer):
        return candidate_scorer(models.reward_model, method=settings.scorer)
    if settings.scorer != "auto":
        raise ConfigError(
            f"guidance.scorer is {settings.scorer!r} and the reward model has another tokenizer "
            "than the policy; expected 'auto', which scores a tree of its tokens"
        )
    texts = CandidateTexts(models.tokenizer, models.reward_tokenizer)
    return text_scorer(models.reward_model, texts)


def response_scores(
    config: GenerateConfig,
    models: Models,
    batch: ResponseBatch,
    conversations: Sequence[Prompt] | None,
) -> dict[str, Float[Tensor, "batch"]]:
    """Scores of the responses by the guiding reward model, and by the other if there is one.

    A guide over the vocabulary gives its own value of the response, see
    `vocabulary_sequence_scores`.
    """
    found: dict[str, Tensor] = {}
    if over_vocabulary(config):
        found["score"] = vocabulary_sequence_scores(
            models.reward_model,
            batch,
            method=config.method,
            reading=models.reward_reading,
        )
    else:
        judge = (models.reward_model, models.reward_reading)
        found["score"] = _scores_by(judge, models, batch, conversations)
    if models.held_out is not None:
        found["held_out_score"] = _scores_by(models.held_out, models, batch, conversations)
    return found


def _scores_by(
    judge: Judge,
    models: Models,
    batch: ResponseBatch,
    conversations: Sequence[Prompt] | None = None,
) -> Float[Tensor, "batch"]:
    scorer = LocalScorer(*judge, models.reading)
    return scorer(batch, conversations=conversations).sequence_scores
