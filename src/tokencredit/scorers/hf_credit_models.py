"""Models that a credit method needs besides the reward model, and what was fitted for it."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from tokencredit.credit.evidence import NEEDS, Need
from tokencredit.credit.location import LocationNormaliser
from tokencredit.credit.methods import CreditMethod, credit_method
from tokencredit.credit.settings import CreditSettings
from tokencredit.errors import ConfigError, DataError, ModelError
from tokencredit.models.hf_loading import load_model, load_tokenizer
from tokencredit.models.hf_vocabularies import require_same_vocabulary
from tokencredit.reward_model.hf_token_classifier import load_token_classifier
from tokencredit.scorers.hf_implicit import loaded_reference, stored_reference


@dataclass(frozen=True)
class FittedCredit:
    """What scores are usual: of prefixes by their length, of segments by their location.

    Attributes:
        length_means: mean score of prefixes of 0, 1, 2, ... response tokens; None if not fitted.
        location: mean and deviation of segment scores by location; None if not fitted.
    """

    length_means: Float[Tensor, "lengths"] | None = None
    location: LocationNormaliser | None = None

    def written(self) -> str:
        """Both as the JSON that `read` takes."""
        means = None if self.length_means is None else self.length_means.tolist()
        location = None if self.location is None else asdict(self.location)
        return json.dumps({"length_means": means, "location": location}, indent=2) + "\n"

    @classmethod
    def read(cls, path: str | Path) -> "FittedCredit":
        """What `written` gave, from a file.

        Raises:
            DataError: there is no such file, or something else is in it.
        """
        try:
            stored = json.loads(Path(path).read_text(encoding="utf-8"))
            means, location = stored["length_means"], stored["location"]
            return cls(
                None if means is None else torch.tensor(means, dtype=torch.float32),
                None if location is None else LocationNormaliser(**location),
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path} holds no fitted means ({error}); expected a file that `tokencredit "
                "fit-credit` wrote"
            ) from error


@dataclass(frozen=True)
class CreditModels:
    """What speaks besides the reward model.

    Attributes:
        model: a policy trained by DPO, a token classifier, a rewriter, or a language model.
        tokenizer: of `model`.
        reference: of a policy trained by DPO.
        dpo_beta: price of its log-ratio.
        fitted: what scores are usual.
    """

    model: Any = None
    tokenizer: Any = None
    reference: Any = None
    dpo_beta: float = 1.0
    fitted: FittedCredit = field(default_factory=FittedCredit)


def loaded_credit_models(
    settings: CreditSettings,
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    has_policy: bool = False,
    loading: Mapping[str, Any] | None = None,
) -> CreditModels:
    """Load what the method of the settings needs besides the reward model.

    Args:
        settings: name the method and its model.
        tokenizer: of the responses that will be paid; None where they will be encoded for the
            model that is loaded.
        has_policy: whether a policy is there whose attention can be read.
        loading: as `load_model` takes it; a `pad_token` is left out.

    Raises:
        ConfigError: the method needs a model and none is named, one is named that it does not
            need, or no reference of the log-ratio is known.
        ModelError: the model is not there, has another vocabulary or another head.
        DataError: the file of fitted means cannot be read.
    """
    loading = {name: value for name, value in (loading or {}).items() if name != "pad_token"}
    method = credit_method(settings.method)
    fitted = FittedCredit() if settings.fitted is None else FittedCredit.read(settings.fitted)
    needed: tuple[tuple[Need, Any], ...] = (
        ("length_means", fitted.length_means),
        ("location", fitted.location),
    )
    for need, found in needed:
        if need in method.needs and found is None:
            raise ConfigError(
                f"credit method {settings.method!r} needs {NEEDS[need]}, and credit.fitted is "
                f"{settings.fitted!r}; expected a file that `tokencredit fit-credit` wrote, with "
                "segments if the method has them"
            )
    kind = method.model_kind
    if settings.model is not None and not kind:
        raise ConfigError(
            f"credit.model is {settings.model!r} with credit method {settings.method!r}; expected "
            "none: this method needs no second model"
        )
    if not kind or (settings.model is None and has_policy and _reads_policy(method)):
        return CreditModels(fitted=fitted)
    if settings.model is None:
        raise ConfigError(
            f"credit method {settings.method!r} has no model; expected {_EXPECTED[kind]}: name it "
            "with credit.model"
        )
    if kind == "classifier":
        model, own = load_token_classifier(settings.model, **loading)
        require_same_vocabulary(tokenizer or own, own, argument="credit.model")
        _require_classes(settings, model)
        return CreditModels(model.requires_grad_(False), own, fitted=fitted)
    trust = bool(loading.get("trust_remote_code", False))
    own = load_tokenizer(settings.model, trust_remote_code=trust)
    if kind != "rewriter":  # which reads text
        require_same_vocabulary(tokenizer or own, own, argument="credit.model")
    model = load_model(AutoModelForCausalLM, settings.model, **loading).requires_grad_(False)
    if kind != "implicit":
        return CreditModels(model, own, fitted=fitted)
    if "log_ratio" not in method.needs:  # values need no reference, but its price
        return CreditModels(model, own, dpo_beta=_dpo_beta(settings, model), fitted=fitted)
    name, dpo_beta = stored_reference(
        model.config, reference=settings.reference, dpo_beta=settings.dpo_beta
    )
    reference = loaded_reference(name, tokenizer or own, **loading).requires_grad_(False)
    return CreditModels(model, own, reference, dpo_beta, fitted)


_EXPECTED = {
    "implicit": "a policy trained by DPO",
    "classifier": "a token classifier",
    "rewriter": "a rewriter, as `train-rewriter` makes it",
    "language": "a causal language model",
}


def _reads_policy(method: CreditMethod) -> bool:
    return "policy_attention" in method.needs


def _dpo_beta(settings: CreditSettings, model: Any) -> float:
    found = settings.dpo_beta or getattr(model.config, "dpo_beta", None)
    if found is None:
        raise ConfigError(
            "dpo_beta not given, and the model's configuration does not say; expected what it was "
            "trained with by DPO: name it with credit.dpo_beta"
        )
    return float(found)


def _require_classes(settings: CreditSettings, model: Any) -> None:
    """Raise ModelError where a classifier has other classes than the method means."""
    classes = model.config.num_labels
    expected = len(settings.judge.severity_scores) if settings.method == "severity" else 2
    if classes != expected:
        raise ModelError(
            f"credit.model {settings.model!r} has {classes} classes; expected {expected} for "
            f"credit method {settings.method!r}"
            + (
                ", one for each of credit.judge.severity_scores"
                if settings.method == "severity"
                else ", worse and better: train it with `--labels edits` or `--labels steps`"
            )
        )
