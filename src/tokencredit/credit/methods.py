"""Every credit method by its name: what it needs, what it conserves, whether it is causal.

`CREDIT_METHODS` is the one list. Whoever offers methods by name (commands, the server, adapters)
reads it, gathers what a method `needs` into an `Evidence`, and calls it. A new method is its
function, one row here, and what `docs/tutorials/add-a-method.md` names besides.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from tokencredit.credit.evidence import LINEAR_IN, MODEL_KINDS, Evidence, ModelKind, Need
from tokencredit.credit.from_evidence import (
    by_attention,
    by_differences,
    by_likelihood,
    by_log_ratio,
    by_quotes,
    by_rto,
    by_segment,
    by_shapley,
    by_spans,
    by_steps,
    by_utterance,
)
from tokencredit.credit.gradients import (
    gradient_times_input_credit,
    integrated_gradients_credit,
)
from tokencredit.credit.implicit import contrastive_prompt_credit, shaped_log_ratio_credit
from tokencredit.credit.perturbation import (
    exact_shapley_credit,
    leave_one_out_credit,
    window_credit,
)
from tokencredit.credit.prefixes import (
    length_centred_prefix_scores,
    segment_held_prefix_scores,
    smoothed_prefix_scores,
)
from tokencredit.credit.redistribution import (
    last_attention_received,
    mean_attention_received,
    terminal_credit,
    uniform_credit,
)
from tokencredit.credit.token_judges import discriminator_credit, severity_credit
from tokencredit.names import named

if TYPE_CHECKING:  # they check the name of a method against the table
    from tokencredit.credit.settings import CreditSettings


@dataclass(frozen=True)
class CreditMethod:
    """One credit method.

    Attributes:
        credit: from evidence and settings to token scores, (batch, time).
        text: what it pays for, in one line.
        needs: what `credit` reads of the evidence.
        conserves: what a row sums to; "no" where that is nothing in particular.
        causal: whether the score of a token depends on no later token.
        passes: forward passes of the reward model per response, in words where it is not one.
    """

    credit: Callable[[Evidence, "CreditSettings"], Float[Tensor, "batch time"]]
    text: str
    needs: tuple[Need, ...]
    conserves: str
    causal: bool
    passes: str = "1"

    @property
    def one_pass(self) -> bool:
        """Whether it asks the reward model no more than plain scoring does."""
        return self.passes in ("0", "1")

    @property
    def adds_up(self) -> bool:
        """Whether it is linear in the scores, so that credit of a weighted sum is the same sum."""
        return bool(self.needs) and set(self.needs) <= set(LINEAR_IN)

    @property
    def pays_increases(self) -> bool:
        """Whether tokens are paid for what they add to the score, which is known before the end."""
        return self.conserves == _ABOVE_PROMPT

    @property
    def model_kind(self) -> ModelKind:
        """The kind of model that it needs besides the reward model; empty for none."""
        return next((MODEL_KINDS[need] for need in self.needs if need in MODEL_KINDS), "")


_SCORE, _ABOVE_PROMPT = "the score", "the score above that of the prompt"

CREDIT_METHODS: dict[str, CreditMethod] = {
    "terminal": CreditMethod(
        lambda e, _: terminal_credit(e.sequence_scores, e.response_mask),
        "the whole score on the last token",
        needs=("sequence_scores",),
        conserves=_SCORE,
        causal=True,
    ),
    "uniform": CreditMethod(
        lambda e, _: uniform_credit(e.sequence_scores, e.response_mask),
        "the score in equal parts",
        needs=("sequence_scores",),
        conserves=_SCORE,
        causal=False,
    ),
    "attention": CreditMethod(
        lambda e, s: by_attention(e, e.attention, s),
        "the score by the reward model's attention (ABC)",
        needs=("sequence_scores", "attention"),
        conserves=_SCORE,
        causal=False,
    ),
    "quoted-evidence": CreditMethod(
        by_quotes,
        "what a judge says by each criterion, on the words that it quotes",
        needs=("sequence_scores", "quoted_scores"),
        conserves=_SCORE,
        causal=False,
    ),
    "generator-attention": CreditMethod(
        lambda e, s: by_attention(
            e, mean_attention_received(e.policy_attention, e.response_mask), s
        ),
        "the score by the attention that the policy's later tokens pay (ABC-D)",
        needs=("sequence_scores", "policy_attention"),
        conserves=_SCORE,
        causal=False,
    ),
    "last-generator-attention": CreditMethod(
        lambda e, s: by_attention(
            e, last_attention_received(e.policy_attention, e.response_mask), s
        ),
        "the score by the attention that the policy's last token pays (ABC-D2)",
        needs=("sequence_scores", "policy_attention"),
        conserves=_SCORE,
        causal=False,
    ),
    "prefix-difference": CreditMethod(
        lambda e, _: by_differences(e, e.prefix_scores),
        "what each token adds to the score of the text so far",
        needs=("prefix_scores",),
        conserves=_ABOVE_PROMPT,
        causal=True,
    ),
    "smoothed-prefix-difference": CreditMethod(
        lambda e, s: by_differences(
            e, smoothed_prefix_scores(e.prefix_scores, e.response_mask, decay=s.decay)
        ),
        "prefix differences in instalments",
        needs=("prefix_scores",),
        conserves=_ABOVE_PROMPT,
        causal=True,
    ),
    "length-centred-prefix-difference": CreditMethod(
        lambda e, _: by_differences(
            e, length_centred_prefix_scores(e.prefix_scores, e.response_mask, e.length_means)
        ),
        "prefix differences without what any token adds at this length",
        needs=("prefix_scores", "length_means"),
        conserves=_ABOVE_PROMPT,
        causal=True,
    ),
    "held-prefix-difference": CreditMethod(
        lambda e, _: by_differences(e, segment_held_prefix_scores(e.prefix_scores, e.segment_ids)),
        "prefix differences paid at the ends of segments",
        needs=("prefix_scores", "segments"),
        conserves=_ABOVE_PROMPT,
        causal=True,
    ),
    "segment": CreditMethod(
        by_segment,
        "the score at the end of each segment, spread over its tokens",
        needs=("position_scores", "segments"),
        conserves="the scores of its segments",
        causal=False,
    ),
    "located-segment": CreditMethod(
        by_segment,
        "segment scores less what is usual at their place",
        needs=("position_scores", "segments", "location"),
        conserves="the normalised scores of its segments",
        causal=False,
    ),
    "utterance": CreditMethod(
        by_utterance,
        "what each segment adds to the score, as the advantage of an utterance",
        needs=("position_scores", "segments"),
        conserves=_ABOVE_PROMPT,
        causal=True,
    ),
    "log-ratio": CreditMethod(
        by_log_ratio,
        "the implicit reward of a policy that DPO trained",
        needs=("log_ratio",),
        conserves="no",
        causal=True,
        passes="0",
    ),
    "rto": CreditMethod(
        by_rto,
        "the implicit reward, and the score on the last token (RTO)",
        needs=("sequence_scores", "log_ratio"),
        conserves="no",
        causal=True,
    ),
    "shaped-log-ratio": CreditMethod(
        lambda e, s: shaped_log_ratio_credit(
            e.sequence_scores,
            e.policy_logprobs,
            e.ref_logprobs,
            e.response_mask,
            dpo_beta=e.dpo_beta,
            clip=s.clip,
        ),
        "the implicit reward, and on the last token what is left of the score",
        needs=("sequence_scores", "log_ratio"),
        conserves=_SCORE,
        causal=True,
    ),
    "implicit-q": CreditMethod(
        lambda e, _: e.token_values["q"].masked_fill(~e.response_mask, 0.0),
        "the value of each token that a policy trained by DPO implies; no reward, a value",
        needs=("implicit_values",),
        conserves="no",
        causal=True,
        passes="0",
    ),
    "implicit-value": CreditMethod(
        lambda e, _: e.token_values["v"].masked_fill(~e.response_mask, 0.0),
        "the value of the text before each token that such a policy implies; no reward, a value",
        needs=("implicit_values",),
        conserves="no",
        causal=True,
        passes="0",
    ),
    "implicit-advantage": CreditMethod(
        lambda e, _: (e.token_values["q"] - e.token_values["v"]).masked_fill(~e.response_mask, 0.0),
        "the advantage of each token that such a policy implies",
        needs=("implicit_values",),
        conserves="no",
        causal=True,
        passes="0",
    ),
    "contrastive-prompts": CreditMethod(
        lambda e, _: contrastive_prompt_credit(e.policy_logprobs, e.ref_logprobs, e.response_mask),
        "what a better prompt makes likelier than a worse one",
        needs=("two_prompts",),
        conserves="no",
        causal=True,
        passes="0",
    ),
    "discriminator": CreditMethod(
        lambda e, _: discriminator_credit(e.token_logits, e.response_mask),
        "what a classifier trained on edits thinks of each token",
        needs=("token_classes",),
        conserves="no",
        causal=True,
        passes="0",
    ),
    "severity": CreditMethod(
        lambda e, s: severity_credit(
            e.token_logits.argmax(-1),
            e.response_mask,
            severity_scores=s.judge.severity_scores,
        ),
        "a penalty for every token of an error, by its severity",
        needs=("token_classes",),
        conserves="no",
        causal=True,
        passes="0",
    ),
    "step-scores": CreditMethod(
        by_steps,
        "the probability that a step is good, on its last token",
        needs=("token_classes", "segments"),
        conserves="the scores of its steps",
        causal=True,
        passes="0",
    ),
    "fine-grained": CreditMethod(
        by_spans,
        "the log-odds of a classifier at the end of each span; one source per kind of error",
        needs=("token_classes", "segments"),
        conserves="the scores of its spans",
        causal=True,
        passes="0",
    ),
    "likelihood": CreditMethod(
        by_likelihood,
        "where a rewriter would have written otherwise",
        needs=("rewriter",),
        conserves="no",
        causal=False,
        passes="0",
    ),
    "gradient-times-input": CreditMethod(
        lambda e, _: gradient_times_input_credit(
            e.score_of_embeddings, e.embeddings, e.response_mask
        ),
        "the gradient of the score along the embedding of each token",
        needs=("embeddings",),
        conserves="no",
        causal=False,
        passes="1 and its gradient",
    ),
    "integrated-gradients": CreditMethod(
        lambda e, s: integrated_gradients_credit(
            e.score_of_embeddings, e.embeddings, e.baseline, e.response_mask, steps=s.probe.steps
        ),
        "gradients averaged on the way from embeddings that say nothing",
        needs=("embeddings",),
        conserves="the score above that of the baseline",
        causal=False,
        passes="`probe.steps` and their gradients",
    ),
    "leave-one-out": CreditMethod(
        lambda e, _: leave_one_out_credit(e.kept, e.response_mask, segment_ids=e.segment_ids),
        "what the score loses without each token",
        needs=("kept_tokens",),
        conserves="no",
        causal=False,
        passes="one per token",
    ),
    "window": CreditMethod(
        lambda e, s: window_credit(
            e.kept, e.response_mask, width=s.probe.width, segment_ids=e.segment_ids
        ),
        "what runs of neighbouring tokens score on their own",
        needs=("kept_tokens",),
        conserves="no",
        causal=False,
        passes="`probe.width` short texts per token",
    ),
    "shapley": CreditMethod(
        by_shapley,
        "what each token adds on average when tokens come in random order",
        needs=("kept_tokens",),
        conserves="the score above that of the empty response",
        causal=False,
        passes="`probe.samples` per token",
    ),
    "exact-shapley": CreditMethod(
        lambda e, _: exact_shapley_credit(e.kept, e.response_mask, segment_ids=e.segment_ids),
        "the same average over all orders, for at most 12 tokens or segments",
        needs=("kept_tokens",),
        conserves="the score above that of the empty response",
        causal=False,
        passes="2 to the number of tokens",
    ),
}


def credit_method(name: str) -> CreditMethod:
    """The row of this name.

    Raises:
        ConfigError: there is none; the message names the nearest.

    >>> credit_method("prefix-difference").causal
    True
    """
    return named("credit method", name, CREDIT_METHODS)


def token_credit(evidence: Evidence, settings: "CreditSettings") -> Float[Tensor, "batch time"]:
    """Token scores by the method that the settings name.

    Args:
        evidence: holds at least what the method needs.
        settings: the method and its options.

    Returns:
        Token scores in nats, float32, zero outside `evidence.response_mask`.

    Raises:
        ConfigError: there is no such method, or the evidence lacks what it needs.

    >>> import torch
    >>> from tokencredit.credit.settings import CreditSettings
    >>> mask = torch.tensor([[True, True]])
    >>> evidence = Evidence(mask, sequence_scores=torch.tensor([3.0]))
    >>> token_credit(evidence, CreditSettings("uniform"))
    tensor([[1.5000, 1.5000]])
    """
    method = credit_method(settings.method)
    evidence.require(method.needs, settings.method)
    return method.credit(evidence, settings)
