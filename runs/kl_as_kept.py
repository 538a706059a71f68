"""How far the KL that the pages of offline losses keep is from the right one.

    python runs/kl_as_kept.py

Responses are drawn without an end before their 40th token. The kept KL took log-probabilities in
which an end was still possible; `offline_study.judged` now takes those of what can be drawn. Six
policies are trained again and judged both ways.
"""

import shutil
from typing import Any
from unittest.mock import patch

import offline_study
from token_weights import weights_of
from torch import Tensor

from tokencredit.logprobs import token_logprobs

CASES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("none", {"options.dpo_beta": 0.1}),
    ("true causal credit", {"options.dpo_beta": 0.1}),
    ("true causal credit", {"options.dpo_beta": 1.0}),
    ("best 30 % by true credit", {"options.dpo_beta": 0.1}),
    ("edits", {"options.dpo_beta": 0.1}),
    ("none", {"loss": "simpo"}),
)


def with_ends(logits: Tensor, ids: Tensor, *, ends: object) -> Tensor:  # noqa: ARG001
    """Log-probabilities as they were kept."""
    return token_logprobs(logits, ids)


def main() -> None:
    folder = offline_study.folder_of("kl-as-kept")
    data = offline_study.pairs_of(folder)["noisy judge"]
    offline_study.reward_model_of(data)
    for weights, own in CASES:
        output = folder / "policy"
        shutil.rmtree(output, ignore_errors=True)
        policy = offline_study.policy_of(data, output, seed=0, **weights_of(data)[weights], **own)
        right = offline_study.judged_folder(policy)
        with patch.object(offline_study, "drawn_logprobs", with_ends):
            kept = offline_study.judged_folder(policy)
        print(weights, own, f"true {right['true']}, kept {kept['kl']}, right {right['kl']}")


if __name__ == "__main__":
    main()
