"""What the scorers need to know of a Hugging Face reward model."""

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from tokencredit.errors import DataError, ModelError
from tokencredit.models.hf_architecture import accepts, context_limit
from tokencredit.models.hf_attention import pretrained_model


def sequence_classifier(model: nn.Module) -> PreTrainedModel:
    """The Hugging Face model under any wrappers, with a head that gives one score.

    Raises:
        ModelError: there is none, it has no classification head or more than two outputs, or a
            PEFT adapter that adds virtual tokens.
    """
    pretrained = pretrained_model(model)
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        raise ModelError(
            "the reward model has a PEFT adapter that adds virtual tokens; expected an adapter of "
            "weights such as LoRA: merge it, or train one of that kind"
        )
    heads = {"score", "classifier", "classification_head"}
    if not heads & {name for name, _ in pretrained.named_children()}:
        raise ModelError(
            f"{type(pretrained).__name__} has no head that scores a sequence; expected a model "
            "for sequence classification, or a causal language model with `VocabScorer`"
        )
    if pretrained.config.num_labels not in (1, 2):
        raise ModelError(
            f"the reward model has {pretrained.config.num_labels} outputs; expected one score, or "
            "two classes of which the second is the better"
        )
    return pretrained


def scalar_scores(logits: Float[Tensor, "*batch labels"]) -> Float[Tensor, "*batch"]:
    """One score per entry, float32: of two outputs, the second less the first."""
    scores = logits.float()
    return scores[..., 0] if scores.shape[-1] == 1 else scores[..., 1] - scores[..., 0]


def scores_every_prefix(model: PreTrainedModel) -> bool:
    """Whether a head `score` stands on every position and no position sees later ones."""
    directions = {vars(module).get("is_causal") for module in model.modules()}
    directions.add(getattr(model.config, "is_causal", None))
    one_stack = not getattr(model.config, "is_encoder_decoder", False)
    return hasattr(model, "score") and one_stack and False not in directions


def require_context(
    model: PreTrainedModel,
    text_mask: Bool[Tensor, "batch time"],
    active: Bool[Tensor, "batch"],
    *,
    more: int = 1,
) -> None:
    """Reject texts that leave no place for what is to come.

    Args:
        model: that reads them.
        text_mask: True on real tokens.
        active: rows that count.
        more: tokens behind the text.

    Raises:
        DataError: text and tokens behind it are longer than the model can read.
    """
    limit = context_limit(model)
    longest = int((text_mask.sum(-1) * active).max()) + more if len(active) else 0
    if limit is not None and longest > limit and bool(active.any()):
        raise DataError(
            f"a text with what is to follow has {longest} tokens and {type(model).__name__} reads "
            f"at most {limit}; expected shorter prompts or fewer new tokens: lower max_new_tokens"
        )


def attention_windows(model: PreTrainedModel) -> dict[str, int | None] | None:
    """How far back each type of attention layer sees, None for all the way.

    None instead of the whole where the model sees in another way than a mask of our own can say:
    flash attention, recurrent layers, chunks, biases by distance.
    """
    config = model.config.get_text_config()
    if config._attn_implementation not in ("sdpa", "eager"):
        return None
    if not accepts(model.base_model, "position_ids"):
        return None
    other = ("alibi", "attention_chunk_size", "attention_layers", "attention_types")
    if any(getattr(config, name, None) for name in other):
        return None
    window = getattr(config, "sliding_window", None)
    layer_types = getattr(config, "layer_types", None)
    if layer_types is None:
        return {"sliding_attention": window}
    windows = {"full_attention": None, "sliding_attention": window}
    if not set(layer_types) <= set(windows):
        return None
    return {kind: windows[kind] for kind in windows if kind in layer_types}


def rescales_positions(model: PreTrainedModel) -> bool:
    """Whether keys depend on how long the text will be, so that no cache of them is exact."""
    parameters = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
    kinds = [parameters, *(value for value in parameters.values() if isinstance(value, dict))]
    types = [str(kind.get("rope_type")) for kind in kinds]
    return any("dynamic" in rope_type or rope_type == "longrope" for rope_type in types)


def shared_columns(
    ids: Int[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"],
    other_ids: Int[Tensor, "other_batch other"] | None,
    other_mask: Bool[Tensor, "other_batch other"] | None,
) -> int:
    """How many columns two batches of texts share at their left end, in all rows."""
    if other_ids is None or other_mask is None or len(ids) != len(other_ids):
        return 0
    width = min(ids.shape[1], other_ids.shape[1])
    same = (ids[:, :width] == other_ids[:, :width]) & (mask[:, :width] == other_mask[:, :width])
    return int(same.all(0).long().cumprod(0).sum()) if width else 0
