"""What credit methods are made from: the needs that a method names, and the numbers themselves."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

from jaxtyping import Bool, Float, Int
from torch import Tensor

from tokencredit.credit.gradients import ScoreOfEmbeddings
from tokencredit.credit.location import LocationNormaliser
from tokencredit.errors import ConfigError
from tokencredit.kept_tokens import ScoresOfKept

Need = Literal[
    "sequence_scores",
    "prefix_scores",
    "position_scores",
    "attention",
    "quoted_scores",
    "policy_attention",
    "log_ratio",
    "implicit_values",
    "two_prompts",
    "token_classes",
    "rewriter",
    "kept_tokens",
    "embeddings",
    "segments",
    "length_means",
    "location",
]

NEEDS: dict[Need, str] = {
    "sequence_scores": "the score of each response",
    "prefix_scores": "the score of every prefix, which a causal reward model gives",
    "position_scores": "the score that stands at every position, which a causal reward model gives",
    "attention": "the attention that the reward model's last token pays",
    "quoted_scores": "what a judge says by criteria, on the tokens that it quotes for each",
    "policy_attention": "the attention of the policy to its own tokens",
    "log_ratio": "log-probs of a policy that DPO trained and of its reference",
    "implicit_values": "logits of a policy that DPO trained",
    "two_prompts": "log-probs of a language model under a better and a worse prompt",
    "token_classes": "logits of a token classifier",
    "rewriter": "log-probs of a rewriter",
    "kept_tokens": "scores of the response without some of its tokens, many for each response",
    "embeddings": "gradients of the score, with respect to the embeddings of the response",
    "segments": "a way to cut responses into segments",
    "length_means": "mean scores of prefixes by their length, fitted before",
    "location": "mean and deviation of segment scores by their location, fitted before",
}
"""What methods are made from, in words for messages and tables."""

OF_SCORERS: tuple[Need, ...] = (
    "sequence_scores",
    "prefix_scores",
    "position_scores",
    "attention",
    "quoted_scores",
    "kept_tokens",
    "embeddings",
)
"""What a scorer of responses may give; everything else comes from other models and settings."""

LINEAR_IN: tuple[Need, ...] = (
    "sequence_scores",
    "prefix_scores",
    "position_scores",
    "attention",
    "quoted_scores",
    "policy_attention",
    "segments",
)
"""A method that needs no more is linear in scores: others are made of more than these."""

ModelKind = Literal["", "implicit", "classifier", "rewriter", "language"]

MODEL_KINDS: dict[Need, ModelKind] = {
    "log_ratio": "implicit",
    "implicit_values": "implicit",
    "token_classes": "classifier",
    "rewriter": "rewriter",
    "two_prompts": "language",
    "policy_attention": "language",
}
"""The kind of model that gives what a reward model does not."""


@dataclass(frozen=True)
class Evidence:
    """What is known of a batch of responses; None where nobody asked for it.

    Attributes:
        response_mask: True on response tokens that count.
        sequence_scores: of each response, in nats.
        prefix_scores: column 0 is the prompt alone; the last one that counts is the sequence score.
        position_scores: the number at each position: the prefix scores, unless the model was
            trained on the ends of segments.
        attention: that each response token receives from the token where the score is read.
        quoted_scores: of criteria, on the tokens that a judge quotes as evidence.
        policy_attention: of the policy's response tokens to each other.
        policy_logprobs: of each token under a policy that DPO trained, or under the better prompt.
        ref_logprobs: of each token under its reference, or under the worse prompt.
        dpo_beta: price of their difference.
        token_logits: of each class of a token classifier.
        rewriter_logprobs: of each token under a rewriter that has read the response.
        likeliest_logprobs: of the token that it likes best in the same place.
        token_values: Q of each token, V before it, and their difference, by name.
        kept: scores of the responses without some of their tokens.
        score_of_embeddings: score of the responses as a function of their embeddings.
        embeddings: of the response tokens.
        baseline: embeddings that say nothing.
        segment_ids: of each token.
        length_means: mean score of prefixes of each length.
        location: mean and deviation of segment rewards by their location.
    """

    response_mask: Bool[Tensor, "batch time"]
    # `| Any`, since a method that runs has all that it needs and no None to think of.
    sequence_scores: Float[Tensor, "batch"] | Any = None
    prefix_scores: Float[Tensor, "batch time_plus_1"] | Any = None
    position_scores: Float[Tensor, "batch time_plus_1"] | Any = None
    attention: Float[Tensor, "batch time"] | Any = None
    quoted_scores: Float[Tensor, "batch time"] | Any = None
    policy_attention: Float[Tensor, "batch time time"] | Any = None
    policy_logprobs: Float[Tensor, "batch time"] | Any = None
    ref_logprobs: Float[Tensor, "batch time"] | Any = None
    dpo_beta: float = 1.0
    token_logits: Float[Tensor, "batch time classes"] | Any = None
    rewriter_logprobs: Float[Tensor, "batch time"] | Any = None
    likeliest_logprobs: Float[Tensor, "batch time"] | Any = None
    token_values: dict[str, Float[Tensor, "batch time"]] | Any = None
    kept: ScoresOfKept | Any = None
    score_of_embeddings: ScoreOfEmbeddings | Any = None
    embeddings: Float[Tensor, "batch time width"] | Any = None
    baseline: Float[Tensor, "batch time width"] | Any = None
    segment_ids: Int[Tensor, "batch time"] | Any = None
    length_means: Float[Tensor, "lengths"] | Any = None
    location: LocationNormaliser | Any = None

    def require(self, needs: Collection[Need], method: str) -> None:
        """Raise ConfigError where something is missing.

        Args:
            needs: of a credit method.
            method: its name, for the message.
        """
        fields: dict[Need, str] = {
            "log_ratio": "policy_logprobs",
            "two_prompts": "policy_logprobs",
            "implicit_values": "token_values",
            "token_classes": "token_logits",
            "rewriter": "rewriter_logprobs",
            "kept_tokens": "kept",
            "segments": "segment_ids",
        }
        for need in needs:
            if getattr(self, fields.get(need, need)) is None:
                raise ConfigError(
                    f"credit method {method!r} lacks {NEEDS[need]}; expected evidence that "
                    "holds it, or another method"
                )
