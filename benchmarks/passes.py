"""How many tokens a pass should have on the CPU.

    python benchmarks/passes.py
    python benchmarks/passes.py --gradients    # with one backward pass through all of them

Llamas of four widths read rows of equal and of different lengths, in batches of like length of at
most so many tokens, padding included. Processor time of one thread, in turn, medians, divided by
that of one pass over all rows. `tokens_per_pass` in `tokencredit.models.hf_passes` has the limit of
the library.
"""

import argparse
import statistics
import time

import torch
from transformers import LlamaConfig, LlamaModel

from tokencredit.batch import rows_of_like_length

# width, layers, width of the middle, heads; the last is SmolLM2-135M without its vocabulary
SIZES = ((128, 2, 256, 4), (256, 4, 688, 4), (512, 8, 1376, 8), (576, 30, 1536, 9))
LIMITS = (None, 2048, 1024, 512, 256)


def rows() -> dict[str, torch.Tensor]:
    """Lengths of rows, by what they are."""
    random = torch.Generator().manual_seed(0)
    return {
        "32 of 50": torch.full((32,), 50),
        "32 of 10 to 60": torch.randint(10, 61, (32,), generator=random),
        "16 of 60 to 400": torch.randint(60, 401, (16,), generator=random),
    }


def seconds(
    model: LlamaModel, lengths: torch.Tensor, tokens: int | None, *, gradients: bool
) -> float:
    """Processor time of all passes."""
    begin, found = time.process_time(), []
    with torch.inference_mode(not gradients):
        for some in rows_of_like_length(lengths, tokens=tokens):
            ids = torch.full((len(some), int(lengths[some].max())), 7)
            states = model(input_ids=ids, use_cache=False).last_hidden_state
            found += [states.square().sum()] if gradients else []
    if gradients:
        torch.stack(found).sum().backward()
        model.zero_grad()
    return time.process_time() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--gradients", action="store_true")
    parser.add_argument("--widths", type=int, nargs="+", default=[size[0] for size in SIZES])
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    heads = [f"{limit} tokens" for limit in LIMITS[1:]]
    print("| width | layers | rows | " + " | ".join(["one pass, ms", *heads]) + " |")
    print("|---:|---:|---|" + "---:|" * len(LIMITS))
    for width, layers, middle, number in (size for size in SIZES if size[0] in options.widths):
        config = LlamaConfig(
            vocab_size=512,
            hidden_size=width,
            num_hidden_layers=layers,
            intermediate_size=middle,
            num_attention_heads=number,
            max_position_embeddings=2048,
        )
        model = LlamaModel(config).eval()
        for name, lengths in rows().items():
            taken: dict[int | None, list[float]] = {limit: [] for limit in LIMITS}
            for repeat in range(options.repeats + 1):
                for limit in LIMITS:
                    found = seconds(model, lengths, limit, gradients=options.gradients)
                    if repeat:  # the first ones set things up
                        taken[limit].append(found)
            whole, *limited = (statistics.median(taken[limit]) for limit in LIMITS)
            cells = [f"{1000 * whole:.0f}", *(f"{one / whole:.2f}" for one in limited)]
            print(f"| {width} | {layers} | {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
