"""Products of few rows, as decoding makes them: weights as they are, transposed, and packed.

    python benchmarks/few_rows.py --repeats 7

One thread, processor time. Every product reads other weights, 60 of each shape in turn, so that
they do not stay in the cache. `transposed` holds the weights column by column; `packed` are those
that PyTorch's oneDNN lays out once for this number of rows, through an operator that is not public.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import linear

SHAPES = ((1376, 512), (512, 1376), (512, 512))
"""Outputs and inputs of the products in a layer of a Llama of width 512: 2, 1 and 4 of them."""


def packed_linear(rows: Tensor, weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(rows, weight, None, "none", [], "")


def microseconds(product: Callable[[Tensor, Tensor], Tensor], x: Tensor, weights: list) -> float:
    start = time.process_time()
    for weight in weights:
        product(x, weight)
    return (time.process_time() - start) / len(weights) * 1e6


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 11, 16])
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| outputs, inputs | rows | as it is, us | transposed | packed |")
    print("|---|---:|---:|---:|---:|")
    for shape in SHAPES:
        plain = [torch.randn(shape) for _ in range(60)]
        transposed = [weight.t().contiguous().t() for weight in plain]
        for rows in options.rows:
            x = torch.randn(rows, shape[1])
            packed = [torch.ops.mkldnn._reorder_linear_weight(one, rows) for one in plain]
            ways = {
                "as it is": (linear, plain),
                "transposed": (linear, transposed),
                "packed": (packed_linear, packed),
            }
            taken: dict[str, list[float]] = {name: [] for name in ways}
            for _ in range(options.repeats):
                for name, (product, weights) in ways.items():
                    taken[name].append(microseconds(product, x, weights))
            base, *others = (statistics.median(found) for found in taken.values())
            ratios = " | ".join(f"{other / base:.2f}" for other in others)
            print(f"| {shape[0]}, {shape[1]} | {rows} | {base:.0f} | {ratios} |", flush=True)


if __name__ == "__main__":
    main()
