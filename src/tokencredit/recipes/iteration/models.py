"""The models of a round: what draws, what judges, and what is compared with."""

from dataclasses import dataclass
from functools import cache
from typing import Any

from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from tokencredit.batch import RewardScorer
from tokencredit.models.hf_loading import load_model, load_tokenizer, require_pad_token
from tokencredit.models.hf_sampling import undrawable_ids
from tokencredit.recipes.iteration.settings import IteratePreferencesConfig
from tokencredit.recipes.policy.models import reward_server_of
from tokencredit.recipes.training.arguments import training_device
from tokencredit.scorers.functions import named_function
from tokencredit.scorers.hf_implicit import loaded_reference
from tokencredit.scorers.judge_settings import JudgingSettings
from tokencredit.scorers.python_rewards import FunctionScorer
from tokencredit.scorers.sources import named_scorer
from tokencredit.text.hf_known_readings import reading_of
from tokencredit.text.hf_reading import Reading


@dataclass(frozen=True)
class RoundModels:
    """All models that a round asks before it trains, frozen.

    Attributes:
        policy: which draws.
        reading: how it reads prompts, and what ends its responses.
        undrawable: ids without a token.
        first: the policy of the first round; `policy` itself there.
        scorer: of responses; None without a reward model.
        judges: say of each response whether it passes.
        held_out: a scorer that is only told.
        base: what the first policy was made of; None where nothing is known of it.
        earlier: the policy of the round before; None where there is none.
    """

    policy: PreTrainedModel
    reading: Reading
    undrawable: tuple[int, ...]
    first: PreTrainedModel
    scorer: RewardScorer | None = None
    judges: tuple[FunctionScorer, ...] = ()
    held_out: RewardScorer | None = None
    base: PreTrainedModel | None = None
    earlier: PreTrainedModel | None = None

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of the policy."""
        return self.reading.tokenizer

    @property
    def device(self) -> Any:
        """Where the policy is."""
        return self.policy.device


def models_of_round(config: IteratePreferencesConfig, number: int) -> RoundModels:
    """Load the models of a round; one that has several parts in it is loaded once.

    Args:
        config: the settings.
        number: of the round, from 0.

    Raises:
        ModelError: one is not there, lacks a pad token or the right head, or reads other ids.
        ConfigError, ServerError: a function is not there, or a server does not answer.
    """
    name, loading = config.policy_before(number), config.loading
    frozen: dict[str, Any] = {**loading.of_frozen, "device": training_device(config)}
    tokenizer = load_tokenizer(
        name, trust_remote_code=loading.trust_remote_code, pad_token=loading.pad_token
    )
    require_pad_token(tokenizer)
    policy = load_model(AutoModelForCausalLM, name, **frozen)
    reading = reading_of(policy, tokenizer, config.reading)

    @cache
    def other(which: str) -> PreTrainedModel:
        if which == name:
            return policy
        return loaded_reference(which, tokenizer, argument="model", **frozen)

    first, base, earlier = other(config.model), None, None
    if config.learns_from_own_ratio:
        if config.base is not None:
            base = other(config.base)
        elif number > 0:
            base = first
        earlier = other(config.policy_before(number - 1)) if number > 0 else base
    judges = tuple(
        FunctionScorer(named_function(judge), reading, f"the judge {judge}")
        for judge in config.judges
    )

    def scorer_of(called: str | None, judge: JudgingSettings | None = None) -> RewardScorer | None:
        if called is None:
            return None
        return named_scorer(
            called,
            reading,
            judge=judge,
            server=lambda address: reward_server_of(address, config.server),
            reading=config.reward_reading,
            loading=frozen,
        )

    return RoundModels(
        policy.eval(),
        reading,
        undrawable_ids(tokenizer, policy),
        first.eval(),
        scorer_of(config.reward_model, config.judged),
        judges,
        scorer_of(config.held_out_reward_model),
        base,
        earlier,
    )
