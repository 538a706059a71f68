"""Several responses to each prompt: prompts read once, and read again for every response.

    python benchmarks/groups.py --repeats 5

The Llama of `ppo.py` draws eight responses to each of four prompts, as `train-policy` does with
`algorithm.samples_per_prompt` and `generate` with best of n, and reads them forward and backward,
as an update does. One thread, processor time, in turn; ratios with their quartiles. `again` reads
each prompt for every response, in passes of like length, as it was before. Responses are the same
both ways, or the benchmark stops.
"""

import argparse
import statistics
import time

import torch
from ppo import SIZES
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from tokencredit.batch import ResponseBatch
from tokencredit.models import hf_shared_beginnings
from tokencredit.models.hf_sampling import drawn_sequences
from tokencredit.policy.hf_models import ActorCritic
from tokencredit.recipes.policy.views import view_of
from tokencredit.sampling import Sampling

USUAL, NEVER = hf_shared_beginnings._PRICE, 10**9  # tokens that have to be saved


def drawn(policy: LlamaForCausalLM, ids: Tensor, samples: int, new_tokens: int) -> Tensor:
    torch.manual_seed(0)
    return drawn_sequences(
        policy,
        ids,
        torch.ones_like(ids, dtype=torch.bool),
        sampling=Sampling(max_new_tokens=new_tokens, min_new_tokens=new_tokens),
        pad_token_id=0,
        eos_token_id=2,
        copies=samples,
    )


def learnt(model: ActorCritic, sequences: Tensor, width: int) -> None:
    there = torch.ones_like(sequences, dtype=torch.bool)
    parts = (part for all_of in (sequences, there) for part in all_of.tensor_split([width], dim=1))
    prompt_ids, response_ids, prompt_mask, response_mask = parts
    batch = ResponseBatch(prompt_ids, prompt_mask, response_ids, response_mask)
    view = view_of(model, batch, None, 1.0)
    (view.logprobs.sum() + view.values.sum()).backward()
    model.zero_grad()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--prompt-tokens", type=int, nargs="+", default=[16, 64, 256])
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    policy = LlamaForCausalLM(LlamaConfig(**SIZES["small"], max_position_embeddings=2048)).eval()
    model = ActorCritic(policy, "shared")

    def seconds(ids: Tensor, price: int) -> tuple[Tensor, list[float]]:
        hf_shared_beginnings._PRICE = price
        begun = time.process_time()
        sequences = drawn(policy, ids, options.samples, options.new_tokens)
        between = time.process_time()
        learnt(model, sequences, ids.shape[1])
        return sequences, [between - begun, time.process_time() - between]

    print("| prompt tokens | what | again, CPU s | once / again | quartiles |")
    print("|---:|---|---:|---:|---|")
    for width in options.prompt_tokens:
        ids = torch.randint(5, policy.config.vocab_size, (options.prompts, width))
        seconds(ids, USUAL)  # tries the model and fills caches
        taken, ratios = [], []
        for _ in range(options.repeats):
            (whole, again), (other, once) = seconds(ids, NEVER), seconds(ids, USUAL)
            if not torch.equal(whole, other):
                raise SystemExit("the responses differ")
            taken.append(again)
            ratios.append([one / before for one, before in zip(once, again, strict=True)])
        for place, what in enumerate(("drawing", "update")):
            low, middle, high = statistics.quantiles([one[place] for one in ratios], n=4)
            again = statistics.median(one[place] for one in taken)
            found = f"{again:.2f} | {middle:.2f} | {low:.2f} to {high:.2f}"
            print(f"| {width} | {what} | {found} |", flush=True)


if __name__ == "__main__":
    main()
