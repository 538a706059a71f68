"""One PPO iteration of ours against TRL's last PPO trainer: tokens/s, and where the time goes.

    make bench                              # builds the peer's environment and runs everything
    python benchmarks/ppo.py --repeats 5    # on the CPU, 16 and 48 new tokens
    python benchmarks/ppo.py --clock cpu --threads 1    # where other work is running
    python benchmarks/ppo.py --device cuda --size 1b

Both sides get the same random policy and reward model, the same prompts and the same settings (see
`ppo_settings.py`), each in a process of its own, one after the other, the order swapped in every
repeat. Reported is the median over the repeats of the ratio within one repeat, so that a machine
that slows down for a while harms both sides alike.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from ppo_settings import PHASES, PPOSettings

HERE = Path(__file__).resolve().parent
PEER_PYTHON = HERE.parent / ".venv-trl-ppo" / "bin" / "python"
SCRIPTS = {"tokencredit": HERE / "our_ppo.py", "trl": HERE / "trl_ppo_peer.py"}

# Llama configurations: "small" has 4.5 million parameters, "1b" has 1.1 billion; "narrow" has the
# operations of "small" on next to no numbers, for `bound.py`.
SIZES: dict[str, dict[str, int]] = {
    "small": {
        "vocab_size": 4096,
        "hidden_size": 256,
        "intermediate_size": 448,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
    },
    "narrow": {
        "vocab_size": 64,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
    },
    "1b": {
        "vocab_size": 32000,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
}


def make_models(folder: Path, *, size: str, prompt_tokens: int, prompts: int = 256) -> None:
    """Writes a random policy, a random reward model, one tokenizer and prompts into `folder`."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        LlamaConfig,
        LlamaForCausalLM,
        LlamaForSequenceClassification,
        PreTrainedTokenizerFast,
    )

    torch.manual_seed(0)
    words = ["<pad>", "<bos>", "<eos>", "<unk>"]
    words += [f"w{index}" for index in range(len(words), SIZES[size]["vocab_size"])]
    vocabulary = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>")
    )
    vocabulary.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=vocabulary,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
    )
    config = LlamaConfig(
        **SIZES[size],
        max_position_embeddings=512,
        tie_word_embeddings=False,
        attention_dropout=0.0,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "policy")
    config.num_labels = 1
    LlamaForSequenceClassification(config).save_pretrained(folder / "reward_model")
    for name in ("policy", "reward_model"):
        tokenizer.save_pretrained(folder / name)
    picks = torch.randint(4, len(words), (prompts, prompt_tokens))
    rows = [{"prompt": " ".join(words[i] for i in row)} for row in picks.tolist()]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def require_peer() -> None:
    """End with a message where the peer's environment is not built."""
    if not PEER_PYTHON.exists():
        sys.exit(
            f"no peer environment: expected {PEER_PYTHON.relative_to(HERE.parent)}; "
            "build it with `make .venv-trl-ppo/.installed`"
        )


def measure(side: str, settings: PPOSettings) -> dict[str, Any]:
    """Runs one side in a process of its own and reads the JSON it prints last.

    `load_before` is the machine's load average before the start: with other work on the same
    cores, threads wait for each other and both sides slow down many times over, not alike.
    """
    load_before = os.getloadavg()[0]
    python = PEER_PYTHON if side == "trl" else Path(sys.executable)
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(settings.threads),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    done = subprocess.run(
        [str(python), str(SCRIPTS[side]), settings.to_json()],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        sys.exit(f"the {side} side failed with status {done.returncode}:\n{done.stderr[-4000:]}")
    return {**json.loads(done.stdout.splitlines()[-1]), "load_before": load_before}


def compare(settings: PPOSettings, *, repeats: int) -> dict[str, Any]:
    """Alternates the two sides and returns the medians, the ratios and their median."""
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in SCRIPTS}
    for repeat in range(repeats):
        for side in sorted(SCRIPTS, reverse=bool(repeat % 2)):
            print(f"{settings.new_tokens} new tokens, repeat {repeat + 1}, {side}", file=sys.stderr)
            runs[side].append(measure(side, settings))
    ratios = [
        ours["tokens_per_second"] / theirs["tokens_per_second"]
        for ours, theirs in zip(runs["tokencredit"], runs["trl"], strict=True)
    ]
    leaner = [
        ratio * (1 - theirs["seconds"]["collection"] / theirs["seconds_per_step"])
        for ratio, theirs in zip(ratios, runs["trl"], strict=True)
    ]
    return {
        "new_tokens": settings.new_tokens,
        "ratio": statistics.median(ratios),
        "ratio_without_collection": statistics.median(leaner),
        "ratios": ratios,
        **{side: median_run(rows) for side, rows in runs.items()},
    }


def median_run(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The repeat whose seconds per step are the (lower) median of all."""
    return sorted(rows, key=lambda row: row["seconds_per_step"])[(len(rows) - 1) // 2]


def markdown(results: list[dict[str, Any]]) -> str:
    """One line per side and length: speed, ratio, memory and the share of each phase."""
    lines = [
        "| new tokens | side | s/iteration | tokens/s | ratio | ratio without TRL's garbage "
        "collections | peak memory, MiB | "
        + " | ".join(f"{phase}, s (share)" for phase in PHASES)
        + " |",
        "|---:|---|---:|---:|---:|---:|---:|" + "---:|" * len(PHASES),
    ]
    for result in results:
        for side in SCRIPTS:
            row = result[side]
            ratios = ["1", "1"]
            if side == "tokencredit":
                ratios = [f"{result[key]:.2f}x" for key in ("ratio", "ratio_without_collection")]
            cells = [
                str(result["new_tokens"]),
                side,
                f"{row['seconds_per_step']:.3f}",
                f"{row['tokens_per_second']:.0f}",
                *ratios,
                f"{row['peak_gpu_mib'] or row['peak_rss_mib']:.0f}",
            ]
            for phase in PHASES:
                seconds = row["seconds"][phase]
                cells.append(f"{seconds:.3f} ({seconds / row['seconds_per_step']:.0%})")
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--size", choices=tuple(SIZES), default="small")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--credit", default="attention", help="our side alone")
    parser.add_argument("--critic", choices=("shared", "separate"), default="shared")
    parser.add_argument("--new-tokens", type=int, nargs="+", default=[16, 48])
    parser.add_argument("--prompt-tokens", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--json", type=Path, help="also write everything measured to this file")
    return parser.parse_args()


def main() -> None:
    options = parse_options()
    require_peer()
    busy = os.getloadavg()[0]
    if options.device == "cpu" and options.clock == "wall" and busy > 0.5:
        print(f"load average {busy:.1f}: other work is running, do not trust the figures",
              file=sys.stderr)  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        make_models(Path(folder), size=options.size, prompt_tokens=options.prompt_tokens)
        results = [
            compare(
                PPOSettings(
                    models=folder,
                    new_tokens=new_tokens,
                    credit=options.credit,
                    critic=options.critic,
                    steps=options.steps,
                    threads=options.threads,
                    device=options.device,
                    dtype=options.dtype,
                    clock=options.clock,
                ),
                repeats=options.repeats,
            )
            for new_tokens in options.new_tokens
        ]
    print(markdown(results))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
