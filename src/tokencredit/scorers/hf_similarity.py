"""Likeness to a reference as a source of reward: best matches of token embeddings (BMAS)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from tokencredit.batch import Prompt, padded_rows
from tokencredit.credit.methods import credit_method
from tokencredit.credit.settings import CreditSettings
from tokencredit.errors import DataError
from tokencredit.models.hf_loading import load_model, load_tokenizer
from tokencredit.reward_model.similarity import best_match_similarity
from tokencredit.scorers.hf_prefix_texts import made_of_prefixes
from tokencredit.scorers.python_rewards import FunctionScorer
from tokencredit.scorers.references import prompt_key, read_references
from tokencredit.scorers.source_settings import SimilaritySettings
from tokencredit.text.hf_reading import Reading

# Texts whose cosines are in memory at once.
_TEXTS = 32


@dataclass(frozen=True)
class SimilarityReward:
    """Likeness to references as a reward in Python: from prompts and responses to scores.

    Attributes:
        model: whose input embeddings are compared.
        tokenizer: of the model.
        references: by the key of the prompt.
        file: that they stand in, for messages.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    references: Mapping[str, str]
    file: str = "the references"

    @torch.no_grad()
    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        """Similarities, 1 for the words of the reference and 0 for an empty text.

        Raises:
            DataError: a prompt has no reference.
        """
        keys = [prompt_key(prompt) for prompt in prompts]
        missing = [key for key in keys if key not in self.references]
        if missing:
            raise DataError(
                f"{len(missing)} prompts have no reference in {self.file}, the first is "
                f"{missing[0][:80]!r}; expected a row for every prompt, as it is asked"
            )
        found: list[float] = []
        for at in range(0, len(responses), _TEXTS):
            some = slice(at, at + _TEXTS)
            own, own_mask = self._embedded(responses[some])
            other, other_mask = self._embedded([self.references[key] for key in keys[some]])
            found += best_match_similarity(own, other, own_mask, other_mask).tolist()
        return found

    def _embedded(
        self, texts: Sequence[str]
    ) -> tuple[Float[Tensor, "texts time width"], Bool[Tensor, "texts time"]]:
        rows = [self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        ids, mask = padded_rows(rows, fill=0, side="right")
        table: Any = self.model.get_input_embeddings()
        return table(ids.to(self.model.device)), mask.to(self.model.device)


def similarity_scorer(
    model: str,
    label: str,
    settings: SimilaritySettings,
    credit: CreditSettings,
    writer: Reading,
    *,
    loading: Mapping[str, Any] | None = None,
) -> FunctionScorer:
    """The scorer of a source of reward that compares with references.

    Args:
        model: Hub id or folder of a causal language model.
        label: of the source, for messages.
        settings: of the comparison.
        credit: that is made from its scores.
        writer: how the model reads that writes the responses.
        loading: as `load_model` takes it; also `pad_token`.

    Raises:
        DataError: the file of references cannot be read.
        ModelError: there is no such model.
    """
    references = read_references(settings.references, setting="similarity.references")
    given = dict(loading or {})
    pad, trust = given.pop("pad_token", None), given.get("trust_remote_code", False)
    loaded = load_model(AutoModelForCausalLM, model, **given)
    loaded.requires_grad_(False)
    tokenizer = load_tokenizer(model, trust_remote_code=trust, pad_token=pad)
    reward = SimilarityReward(loaded, tokenizer, references, settings.references)
    at_ends = "segments" in credit_method(credit.method).needs
    return FunctionScorer(
        reward,
        writer,
        f"the similarity {label}",
        made_of_prefixes(credit),
        at_ends=at_ends,
        model=loaded,
    )
