"""What holds for each architecture that classifies sequences: makes docs/architectures.md.

    python runs/architectures.py [family ...]   # those that were not tried yet; writes the page
    python runs/architectures.py --again falcon  # this one again

A tiny random model of each family is built from its configuration; nothing is downloaded. What was
found stands in docs/architectures.json after every family, so that a run that was stopped goes on.
"""

import argparse
import json
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)

from tokencredit.batch import ResponseBatch
from tokencredit.decoding.candidates.hf_choice import candidate_scorer
from tokencredit.decoding.candidates.hf_scorers import FullScorer
from tokencredit.decoding.candidates.scores import CandidateBatch
from tokencredit.errors import TokenCreditError
from tokencredit.models.hf_adapters import lora_model
from tokencredit.models.hf_logprobs import response_logprobs
from tokencredit.reward_model.hf_scores import reward_model_output

FOUND = Path(__file__).parent.parent / "docs/architectures.json"
PAGE = FOUND.with_suffix(".md")
FAMILIES = sorted(MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES)
LENGTHS, END, TOLERANCE, SECONDS, LARGEST = [5, 14, 9], 1, 2e-3, 40, 3e7

SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
    "max_position_embeddings": 128,
    "pad_token_id": 2,
    "bos_token_id": 0,
    "eos_token_id": END,
    "num_labels": 1,
}
_ENCODER_DECODER = {
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "decoder_start_token_id": 0,
}
_LATENT = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "head_dim": 8,
    "num_key_value_heads": 4,
}
_EXPERTS = {
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
}
_MORE: dict[str, dict[str, Any]] = {
    "deepseek_v2": _LATENT | _EXPERTS | {"n_group": 1, "topk_group": 1, "first_k_dense_replace": 1},
    "deepseek_v3": _LATENT | _EXPERTS | {"n_group": 1, "topk_group": 1, "first_k_dense_replace": 1},
    "minicpm3": _LATENT,
    "falcon": {"head_dim": None, "num_kv_heads": 2, "new_decoder_architecture": True},
    "funnel": {"num_hidden_layers": None, "block_sizes": [1, 1], "num_decoder_layers": 1,
               "d_model": 32, "n_head": 4, "d_head": 8, "d_inner": 48},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "num_layers": 2},
    "gptj": {"rotary_dim": 8},
    "lilt": {"channel_shrink_ratio": 2, "max_2d_position_embeddings": 64, "hidden_size": 48},
    "mobilebert": {"embedding_size": 32, "true_hidden_size": 32, "intra_bottleneck_size": 32,
                   "use_bottleneck": False},
    "phi3": {"rope_parameters": {"rope_type": "longrope", "rope_theta": 10000.0,
                                 "short_factor": [1.0] * 4, "long_factor": [4.0] * 4,
                                 "original_max_position_embeddings": 8},
             "original_max_position_embeddings": 8},
    "qwen2_moe": _EXPERTS,
    "qwen3_moe": _EXPERTS,
    "reformer": {"axial_pos_embds_dim": [16, 16], "axial_pos_shape": [4, 4],
                 "attention_head_size": 8, "feed_forward_size": 48, "num_hashes": 1,
                 "attn_layers": ["local", "local"], "is_decoder": False},
    "squeezebert": {"embedding_size": 32},
    "xlnet": {"max_position_embeddings": None, "d_inner": 48},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
    "roc_bert": {"pronunciation_vocab_size": 10, "shape_vocab_size": 10},
    "ctrl": {"dff": 48},
    "convbert": {"head_ratio": 2, "embedding_size": 32},
}  # fmt: skip
for _name in ("bart", "bigbird_pegasus", "mbart", "mvp", "plbart"):
    _MORE[_name] = _ENCODER_DECODER
for _name in ("t5", "mt5", "umt5"):
    _MORE[_name] = {"d_model": 32, "d_kv": 8, "d_ff": 48, "decoder_start_token_id": 0}


class TooLong(BaseException):
    """A family took longer than it may."""


def tiny(family: str, auto_class: Any = AutoModelForSequenceClassification) -> PreTrainedModel:
    """A tiny random model with weights that depend on nothing but its configuration."""
    sizes = SIZES | _MORE.get(family, {})
    sizes = {name: value for name, value in sizes.items() if value is not None}
    config = AutoConfig.for_model(family, **sizes)
    for name, value in list(vars(config).items()):
        if isinstance(value, float) and ("drop" in name or "jitter" in name):
            setattr(config, name, 0.0)
    with torch.device("meta"):
        size = sum(one.numel() for one in auto_class.from_config(config).parameters())
    if size > LARGEST:
        raise MemoryError(f"no tiny configuration: {size / 1e6:,.0f} million weights")
    torch.manual_seed(0)
    model = auto_class.from_config(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, 0.15, generator=generator)
    return model.eval()


def texts(model: PreTrainedModel) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of several lengths, each with an end of sequence where the model reads in a decoder."""
    ids = torch.randint(3, 97, (3, max(LENGTHS)), generator=torch.Generator().manual_seed(1))
    mask = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    if getattr(model.config, "is_encoder_decoder", False):
        ids[range(3), [length - 1 for length in LENGTHS]] = END
    return ids, mask


def own_score(model: PreTrainedModel, ids: torch.Tensor) -> float:
    """What the model's own forward pass says of one text alone."""
    return float(model(input_ids=ids[None]).logits.flatten()[0])


def _apart(found: Any, expected: Any) -> str:
    """The word right, or by how much two results differ."""
    found, expected = torch.as_tensor(found), torch.as_tensor(expected)
    error = float((found - expected).abs().max())
    scale = max(float(expected.abs().max()), 1e-3)
    return "right" if error <= TOLERANCE * scale else f"WRONG by {error:.3g} of {scale:.3g}"


def batch_scores(model: PreTrainedModel) -> str:
    """Scores in a batch against the model's own forward pass over each text alone."""
    ids, mask = texts(model)
    rows = [own_score(model, row[:length]) for row, length in zip(ids, LENGTHS, strict=True)]
    return _apart(reward_model_output(model, ids, mask).sequence_scores, rows)


def prefix_scores(model: PreTrainedModel) -> str:
    """Scores of all prefixes in one pass against those of single passes."""
    ids, mask = texts(model)
    scores = reward_model_output(model, ids, mask).position_scores
    if scores is None:
        return "has none"
    return _apart(scores[1], [own_score(model, ids[1, :end]) for end in range(1, 15)])


def attention_row(model: PreTrainedModel) -> str:
    """The recorded row against the map of a model that is eager from the start."""
    ids, mask = texts(model)
    row = reward_model_output(model, ids[1:2], mask[1:2], attention_layer=-1).attention
    config = model.config
    eager = type(model)._from_config(config, attn_implementation="eager").eval()
    eager.load_state_dict(model.state_dict())
    maps = eager.base_model(input_ids=ids[1:2], output_attentions=True).attentions
    return _apart(row[0], maps[-1][0].float().mean(0)[_read_at(model, ids[1:2])])


def _read_at(model: PreTrainedModel, ids: torch.Tensor) -> int:
    """The position whose last state the model's own score depends on, found by its gradient."""
    states: list[torch.Tensor] = []

    def keep(_module: Any, _args: Any, output: Any) -> Any:
        states.append(output[0].detach().requires_grad_())
        output["last_hidden_state"] = states[0]
        return output

    handle = model.base_model.register_forward_hook(keep)
    try:
        with torch.enable_grad():
            score = model(input_ids=ids).logits.flatten()[0]
            (slope,) = torch.autograd.grad(score, states[0], allow_unused=True)
    finally:
        handle.remove()
    if slope is None:  # the score is made of what BERT's pooler keeps, the first token
        return 0
    (position,) = slope[0].abs().sum(-1).nonzero().flatten().tolist()
    return int(position)


def rollout(family: str) -> str:
    """Log-probabilities of responses in a padded batch against those of the plain model."""
    if family not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return "no language model"
    model = tiny(family, AutoModelForCausalLM)
    if getattr(model.config, "is_encoder_decoder", False):
        return "no language model"
    ids, _ = texts(model)
    prompt_mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1], [0, 1, 1, 1]]).bool()
    response_mask = torch.arange(10) < torch.tensor([4, 10, 6])[:, None]
    batch = ResponseBatch(ids[:, :4], prompt_mask, ids[:, 4:], response_mask)
    found, expected = response_logprobs(model, batch), torch.zeros(3, 10)
    found = getattr(found, "logprobs", found)
    for row in range(3):
        prompt, response = ids[row, :4][prompt_mask[row]], ids[row, 4:][response_mask[row]]
        logits = model(input_ids=torch.cat([prompt, response])[None]).logits[0].float()
        chosen = logits.log_softmax(-1)[len(prompt) - 1 : -1].gather(-1, response[:, None])
        expected[row, : len(response)] = chosen[:, 0]
    return _apart(found, expected)


def guidance(model: PreTrainedModel) -> str:
    """The scorer of candidates that is chosen, over two steps, against a full re-run."""
    ids, mask = texts(model)
    ids, mask = ids.flip(-1), mask.flip(-1)  # padded on the left
    chosen, full, verdicts = candidate_scorer(model), FullScorer(model), []
    for step in range(3):
        candidates = torch.tensor([[END, 7, 8]]).repeat(3, 1)
        if not getattr(model.config, "is_encoder_decoder", False):
            candidates[:, 0] = 9
        batch = CandidateBatch(ids, mask, candidates, torch.ones_like(candidates).bool())
        verdicts.append(_apart(chosen(batch).candidates, full(batch).candidates))
        ids = torch.cat([ids, torch.full((3, 1), 11 + step)], dim=-1)
        mask = torch.cat([mask, torch.ones(3, 1).bool()], dim=-1)
    return next((one for one in verdicts if one != "right"), "right")


def lora(model: PreTrainedModel) -> str:
    """Whether PEFT wraps the model and a step along the gradient moves its scores."""
    ids, mask = texts(model)
    torch.manual_seed(0)
    wrapped = lora_model(model, rank=2, alpha=2)
    with torch.enable_grad():
        before = reward_model_output(wrapped, ids, mask).sequence_scores
        before.sum().backward()
    moved = [one for one in wrapped.parameters() if one.requires_grad and one.grad is not None]
    with torch.no_grad():
        for one in moved:
            one.add_(one.grad, alpha=0.1)
    after = reward_model_output(wrapped.eval(), ids, mask).sequence_scores
    return "right" if float((after - before).abs().max()) > 1e-6 else "WRONG: nothing moved"


def _verdict(check: Callable[[], str]) -> str:
    """What a check says; an error of the library is a refusal, another one a crash."""
    try:
        return check()
    except TokenCreditError as error:
        return f"refuses ({type(error).__name__}: {_first_words(error)})"
    except Exception as error:  # every failure of an architecture is a row of the table
        return f"not tried ({type(error).__name__}: {_first_words(error)})"


def _first_words(error: Exception) -> str:
    words = " ".join(str(error).split()).replace("|", "/")
    return words if len(words) <= 90 else words[:90].rsplit(" ", 1)[0] + " ..."


CHECKS = ("batch", "prefixes", "attention", "rollout", "guidance", "LoRA")


def tried(family: str) -> dict[str, str]:
    """What holds for one family, check by check."""

    def stop(*_: Any) -> None:
        raise TooLong

    signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)  # of this process, however busy the machine
    found: dict[str, str] = {}
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                model = tiny(family)
                own_score(model, texts(model)[0][1])
            except Exception as error:
                said = f"not tried ({type(error).__name__}: {_first_words(error)})"
                return dict.fromkeys(CHECKS, said)
            checks: list[Callable[[], str]] = [
                lambda: batch_scores(model),
                lambda: prefix_scores(model),
                lambda: attention_row(model),
                lambda: rollout(family),
                lambda: guidance(model),
                lambda: lora(model),
            ]
            for name, check in zip(CHECKS, checks, strict=True):
                found[name] = _verdict(check)
    except TooLong:
        pass
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    return {name: found.get(name, f"not tried (over {SECONDS} seconds)") for name in CHECKS}


def page(found: dict[str, Any]) -> str:
    """The page, from what was found."""
    families, version = found["families"], found["transformers"]
    notes: list[str] = []

    def cell(verdict: str) -> str:
        if "(" not in verdict:
            return verdict
        word, why = verdict.rstrip(")").split(" (", 1)
        if why not in notes:
            notes.append(why)
        return f"{word} [{notes.index(why) + 1}]"

    rows = [
        f"| {family} | " + " | ".join(cell(families[family][name]) for name in CHECKS) + " |"
        for family in sorted(families)
    ]
    right = sum(families[family]["batch"] == "right" for family in families)
    head = f"""# Architectures

Made by `python runs/architectures.py` with transformers {version}: {len(families)} families that
classify sequences, of which {right} score right. Each is a tiny random model, built from its
configuration, in float32 on a CPU. Do not edit this page.

- **batch**: scores in a padded batch are those of the model's own pass over each text alone.
- **prefixes**: the scores of all prefixes, from one pass, are those of a pass each.
- **attention**: the row that attention credit reads is that of a model with eager attention.
- **rollout**: log-probabilities of responses in a padded batch are those of single texts.
- **guidance**: the scorer that guided decoding chooses gives what a full re-run does.
- **LoRA**: PEFT wraps the model, and a step along the gradient moves its scores.

"right" means equal to {TOLERANCE:g} of the largest number; "has none" and "no language model" that
there is nothing to ask for. What is refused ends in a typed error, and what was not tried says
nothing, for either of which the number names the reason below the table.

| family | {" | ".join(CHECKS)} |
|---{"|---" * len(CHECKS)}|
"""
    reasons = "\n".join(f"{number}. `{why}`" for number, why in enumerate(notes, start=1))
    return head + "\n".join(rows) + "\n\n" + reasons.replace("``", "`") + "\n"


def main() -> None:
    """Try what was not tried yet, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("families", nargs="*")
    parser.add_argument("--again", action="store_true", help="also those that were tried before")
    asked = parser.parse_args()
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    found = json.loads(FOUND.read_text()) if FOUND.exists() else {}
    if found.get("transformers") != transformers.__version__:
        found = {"transformers": transformers.__version__, "families": {}}
    for family in asked.families or FAMILIES:
        if asked.again or family not in found["families"]:
            found["families"][family] = tried(family)
            print(family, found["families"][family], file=sys.stderr, flush=True)
            FOUND.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    PAGE.write_text(page(found))


if __name__ == "__main__":
    main()
