"""Plain attention against PyTorch's fused one, forward and backward, on the CPU.

    python benchmarks/attention.py

Rows with padding, as a policy's update has them: 8 rows, 9 heads of width 64 (those of
SmolLM2-135M). One thread, processor time, in turn, medians. Above `LONGEST` of
`tokencredit.models.hf_short_attention` the library leaves the fused one in its place.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

ROWS, HEADS, WIDTH = 8, 9, 64


def plain(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """What transformers calls eager attention."""
    scores = query @ key.transpose(-1, -2) * WIDTH**-0.5 + mask
    return scores.softmax(-1, dtype=torch.float32).to(query.dtype) @ value


def fused(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """PyTorch's own choice for these inputs."""
    return scaled_dot_product_attention(query, key, value, attn_mask=mask.to(query.dtype))


def milliseconds(attention: Callable[..., Tensor], inputs: list[Tensor], mask: Tensor) -> float:
    """Processor time of one pass forward and backward."""
    begin = time.process_time()
    attention(*inputs, mask).sum().backward()
    return 1000 * (time.process_time() - begin)


def kept_megabytes(attention: Callable[..., Tensor], inputs: list[Tensor], mask: Tensor) -> float:
    """What the backward pass needs of the forward pass besides its inputs."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*inputs, mask)}
    kept = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = attention(*inputs, mask)
    # The result itself is held until here, so that no address is used twice.
    del result
    return sum(size for address, size in kept.items() if address not in own) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--lengths", type=int, nargs="+", default=[64, 128, 192, 256, 384, 512])
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(
        "| precision | tokens | fused, ms | plain, ms | ratio | fused, MB kept | plain, MB kept |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|")
    for dtype in (torch.bfloat16, torch.float32):
        for length in options.lengths:
            shape = (ROWS, HEADS, length, WIDTH)
            inputs = [torch.randn(shape, dtype=dtype, requires_grad=True) for _ in range(3)]
            hidden = ~torch.ones(length, length, dtype=torch.bool).tril()
            mask = torch.zeros(ROWS, 1, length, length).masked_fill(hidden, -1e30)
            times: dict[str, list[float]] = {"fused": [], "plain": []}
            for repeat in range(options.repeats + 2):
                for name, attention in (("fused", fused), ("plain", plain)):
                    taken = milliseconds(attention, inputs, mask)
                    if repeat >= 2:  # the first ones set things up
                        times[name].append(taken)
            slow, fast = (statistics.median(times[name]) for name in ("fused", "plain"))
            name = str(dtype).removeprefix("torch.")
            found = f"{slow:.1f} | {fast:.1f} | {slow / fast:.2f}"
            kept = (f"{kept_megabytes(one, inputs, mask):.1f}" for one in (fused, plain))
            print(f"| {name} | {length} | {found} | {' | '.join(kept)} |", flush=True)


if __name__ == "__main__":
    main()
