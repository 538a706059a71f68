"""The first layers of a language model, as a language model.

    python runs/first_layers.py output/real/smollm2 output/error-types/half --layers 15

It trains and scores as much faster as it has fewer layers. What it writes by itself is worthless.
"""

import argparse
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("output", type=Path)
    parser.add_argument("--layers", type=int, required=True)
    arguments = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(
        arguments.model, num_hidden_layers=arguments.layers
    )
    model.save_pretrained(arguments.output)
    AutoTokenizer.from_pretrained(arguments.model).save_pretrained(arguments.output)
    print(arguments.output)


if __name__ == "__main__":
    main()
