"""Reward models from a folder or the Hub, with the one score that is asked of them."""

import warnings
from pathlib import Path

from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from tokencredit.errors import TokenCreditWarning
from tokencredit.models.heads import objective_names, require_one_score
from tokencredit.models.hf_architecture import vocabulary_width
from tokencredit.models.hf_bounds import keep_pessimistic_score, pessimism_asked
from tokencredit.models.hf_gates import keep_gated_score
from tokencredit.models.hf_loading import load_model, load_tokenizer
from tokencredit.models.hf_objectives import (
    Join,
    join_scores,
    keep_one_score,
    mean_of_all,
    split_objectives,
)
from tokencredit.models.hf_users import keep_score_of_user
from tokencredit.models.hf_vocabularies import warn_of_tokens_without_rows


def load_reward_model(
    name_or_path: str | Path,
    *,
    dtype: str = "float32",
    attn_implementation: str | None = None,
    device: str | None = None,
    pad_token: str | None = None,
    trust_remote_code: bool = False,
    join: Join | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A sequence-classification model and its tokenizer, ready to score.

    Args:
        name_or_path: a folder or a Hub id; of a model of several objectives with one of them,
            `folder#helpful`, or a weighted sum, `folder#helpful=0.7,short=0.3`; of a model that
            knows users with one of them; `folder#pessimistic=0.5` where its covariance is kept. The
            score of an ensemble of heads is their mean where nothing is asked for.
        dtype: of the weights; scores are float32 in any case.
        attn_implementation: None for the model's default, which is the fast one.
        device: to put the model on.
        pad_token: a token of the vocabulary to pad with, for tokenizers that name none.
        trust_remote_code: let Python code that comes with the model run.
        join: makes one score of all outputs, in the place of what stands after `#`, which is then
            only its name.

    Raises:
        ModelError: nothing that can be loaded is there, the head's weights are missing (of a
            language model, for example), it has more than one score and none is asked for, or
            `pad_token` is not in the vocabulary.
        ConfigError: there is no such objective.
    """
    place, asked = split_objectives(name_or_path)
    model = load_model(
        AutoModelForSequenceClassification,
        place,
        dtype=dtype,
        attn_implementation=attn_implementation,
        device=device,
        trust_remote_code=trust_remote_code,
        expected="a model trained for sequence classification: train one with "
        "`tokencredit train-reward-model`",
    )
    pessimism = pessimism_asked(asked)
    if getattr(model.config, "score_users", None) is not None:
        keep_score_of_user(model, asked, name=place)
    elif pessimism is not None:
        keep_pessimistic_score(model, pessimism, name=place)
    elif join is not None:
        join_scores(model, join, asked, name=str(place))
    elif not asked and getattr(model.config, "score_gate", None) is not None:
        keep_gated_score(model, name=place)
    elif asked or getattr(model.config, "score_ensemble", False):
        keep_one_score(model, asked or mean_of_all(model.config), name=str(place))
    require_one_score(model.config.num_labels, objective_names(model.config))
    warn_of_order(model, str(name_or_path))
    tokenizer = load_tokenizer(place, pad_token=pad_token, trust_remote_code=trust_remote_code)
    warn_of_tokens_without_rows(tokenizer, vocabulary_width(model))
    return model, tokenizer


_GOOD = ("positive", "pos", "good", "better", "chosen", "safe", "helpful", "accept", "true", "yes")


def warn_of_order(model: PreTrainedModel, name: str) -> None:
    """Say where the first of two outputs, by its label, is the better one."""
    labels = getattr(model.config, "id2label", None) or {}
    first, second = (str(labels.get(i, "")).lower() for i in (0, 1))
    if model.config.num_labels == 2 and first in _GOOD and second not in _GOOD:
        warnings.warn(
            f"the outputs of {name!r} are labelled {labels[0]!r}, {labels[1]!r}, and the score is "
            "the second less the first; expected the better one second: with these labels every "
            "score has the wrong sign, unless the labels are wrong",
            TokenCreditWarning,
            stacklevel=3,
        )
