"""Tiny models of a chat policy whose turns end with other tokens than `tokenizer.eos_token`.

Its vocabulary is padded too, as those of many published models are: the last ids are no tokens.
"""

import json
from pathlib import Path
from typing import Any

import torch
from saved_models import save_reward_model
from tiny_models import tiny_model
from tiny_tokenizers import byte_level
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

TURNS = (
    "{% for m in messages %}{{ m['role'] }} {{ m['content'] }}<eot>\n{% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)
REWARD_TURNS = (
    "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}<eos>\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
ASKED = ("rate this film", "hello", "a good plot ?", "one slow scene")
PADDING = 50
"""Ids after the last token, all of them likelier than most tokens."""


def tokenizer_of(template: str | None = TURNS) -> PreTrainedTokenizerFast:
    """Ends of a turn: `<eot>` by the template, `<eos>` by the tokenizer."""
    tokenizer = byte_level(chat_template=template)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<eot>", "<end>"]})
    return tokenizer


def write_models(folder: Path) -> Path:
    """Write `policy/`, which declares `<end>` in its generation settings, `reward/` and prompts."""
    tokenizer = tokenizer_of()
    settings: dict[str, Any] = {
        "vocab_size": len(tokenizer) + PADDING,
        "max_position_embeddings": 256,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    policy = tiny_model("llama", auto_class=AutoModelForCausalLM, **settings)
    ends = tokenizer.convert_tokens_to_ids(["<eos>", "<eot>", "<end>"])
    with torch.no_grad():
        ids = torch.tensor([tokenizer("user rate this film<eot>\nassistant good")["input_ids"]])
        usual = policy.model(ids).last_hidden_state.mean((0, 1))
        for likely in (*ends, *range(len(tokenizer), len(tokenizer) + PADDING)):
            policy.lm_head.weight[likely] = 3 * usual / usual.norm() ** 2
        for likely in ends:
            policy.lm_head.weight[likely] *= 2
    policy.generation_config.eos_token_id = [ends[0], ends[2]]
    policy.generation_config.do_sample = True
    policy.generation_config.temperature = 0.01
    policy.generation_config.repetition_penalty = 5.0
    policy.save_pretrained(folder / "policy")
    tokenizer.save_pretrained(folder / "policy")
    reward_tokenizer = tokenizer_of(REWARD_TURNS)
    save_reward_model(folder / "reward", reward_tokenizer, "llama", max_position_embeddings=256)
    other = byte_level(chat_template=REWARD_TURNS, merges=20)
    save_reward_model(folder / "other-tokens", other, "llama", max_position_embeddings=256)
    chats = [{"prompt": [{"role": "user", "content": text}]} for text in ASKED]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chats))
    return folder


def ends_of(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """All that end a response of the policy."""
    ends: list[int] = tokenizer.convert_tokens_to_ids(["<eos>", "<eot>", "<end>"])
    return ends
