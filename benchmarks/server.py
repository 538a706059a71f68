"""The server against the model itself, and under load.

    python benchmarks/server.py throughput
    python benchmarks/server.py scorers --vllm .venv-vllm/bin/python
    python benchmarks/server.py load --clients 200 --seconds 600

`throughput`: the same texts, in turn, in batches made by the same rule: *forward* calls the model
on padded batches that are ready, nothing else; *library* also encodes the texts and assigns credit;
*server* gets them by concurrent requests, in a process of its own. Ratios are of texts per second.

`scorers`: one batch of responses by ids, as training has it, gets its token scores by the model in
this process, by `tokencredit serve`, and by a pooling server of vLLM, each through the scorer that
`reward_model` names; the servers have a process each, and all have as many threads. vLLM compiles
the model unless `--eager`. The scores have to agree, or the benchmark stops.

`load`: clients on loopback that each post one text, wait for the answer and post the next; some are
much longer than others. It reports every status, latency percentiles of what was answered, and the
server's resident memory along the way. Any status but 200 and 429 fails the run.
"""

import argparse
import asyncio
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from random import Random
from typing import Any
from urllib.request import urlopen

import httpx2
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

from tokencredit.aggregation.methods import CombinationSettings
from tokencredit.credit.settings import CreditSettings
from tokencredit.recipes.serving.offers import rewards_on_offer
from tokencredit.recipes.serving.served_model import ServedModel
from tokencredit.reward_model.hf_loading import load_reward_model
from tokencredit.scorers.source_settings import RewardSource
from tokencredit.scorers.sources import loaded_rewards
from tokencredit.server.batching import batch_with_the_oldest
from tokencredit.server.messages import PromptAndResponse
from tokencredit.text.hf_encoding import encode_responses
from tokencredit.text.hf_known_readings import reading_of, written_by
from tokencredit.text.segments import SegmentSettings
from tokencredit.toy.hf_tokenizer import toy_tokenizer
from tokencredit.toy.reviews import sample_review

PATIENCE = 600.0  # seconds until vLLM has started
SIZES = {
    "tiny": (64, 2),
    "small": (512, 8),
    "medium": (1024, 16),
}


def save_model(folder: Path, size: str) -> None:
    """A random Llama with a reward head."""
    tokenizer = toy_tokenizer()
    width, layers = SIZES[size]
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=width * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        num_labels=1,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(0)
    LlamaForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def texts_of(number: int, *, shortest: int, longest: int, seed: int = 0) -> list[dict[str, str]]:
    """Prompts and responses whose lengths in words are spread evenly on a log scale."""
    random, texts = Random(seed), []
    for _ in range(number):
        words = round(shortest * (longest / shortest) ** random.random())
        review = ""
        while len(review.split()) < words:
            review = f"{review} {sample_review(random)}"
        kept = review.split()[:words]
        texts.append({"prompt": " ".join(kept[:8]), "response": " " + " ".join(kept[8:])})
    return texts


@contextmanager
def server(folder: Path, arguments: argparse.Namespace) -> Iterator[str]:
    """The address of a server in a process of its own."""
    settings = {
        "reward_model": folder,
        "port": 0,
        "device": arguments.device,
        "loading.dtype": arguments.dtype,
        "limits.max_batch_tokens": arguments.max_batch_tokens,
        "limits.queue_size": arguments.queue_size,
        "limits.request_timeout": 600,
    }
    flags = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    process = subprocess.Popen(
        [sys.executable, "-m", "tokencredit.cli", "serve", *flags],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        lines = iter(process.stdout.readline, "")
        yield next(found[1] for line in lines if (found := re.search(r" at (http\S+)", line)))
    finally:
        process.terminate()
        process.wait()


def batches_of(served: ServedModel, texts: list[dict[str, str]], credit: tuple[str, ...]) -> Any:
    """Rows in the batches that the server would make if all came at once."""
    rows = served.text_rows([PromptAndResponse(**text) for text in texts], credit)
    while rows:
        lengths = [row.length for row in rows]
        taken = set(batch_with_the_oldest(lengths, max_tokens=served.max_tokens))
        yield [row for index, row in enumerate(rows) if index in taken]
        rows = [row for index, row in enumerate(rows) if index not in taken]


def tensors_of(served: ServedModel, rows: Any) -> dict[str, torch.Tensor]:
    """A batch padded on the right, as the model takes it."""
    width = max(row.length for row in rows)
    ids = [row.prompt_ids + row.response_ids + row.closing_ids for row in rows]
    device, pad = served.model.device, served.tokenizer.pad_token_id
    return {
        "input_ids": torch.tensor([i + [pad] * (width - len(i)) for i in ids], device=device),
        "attention_mask": torch.tensor(
            [[1] * len(i) + [0] * (width - len(i)) for i in ids], device=device
        ),
    }


async def post_all(address: str, texts: list[dict[str, str]], arguments: Any) -> None:
    """All texts at once, a few in each request."""
    size = arguments.texts_per_request
    bodies = [texts[i : i + size] for i in range(0, len(texts), size)]
    limits = httpx2.Limits(max_connections=len(bodies))
    async with httpx2.AsyncClient(timeout=600, limits=limits) as client:
        answers = await asyncio.gather(
            *(
                client.post(f"{address}/score", json={"texts": body, "credit": arguments.credit})
                for body in bodies
            )
        )
    assert {answer.status_code for answer in answers} == {200}, answers[0].text


def throughput(arguments: argparse.Namespace) -> dict[str, Any]:
    """Texts per second of the three, in turn."""
    texts = texts_of(arguments.texts, shortest=arguments.shortest, longest=arguments.longest)
    credit = tuple(arguments.credit)
    with tempfile.TemporaryDirectory() as folder:
        save_model(Path(folder), arguments.size)
        model, tokenizer = load_reward_model(folder, dtype=arguments.dtype, device=arguments.device)
        reading = reading_of(model, tokenizer)
        rewards = loaded_rewards(
            [RewardSource("own", name="reward")],
            CreditSettings("terminal"),
            SegmentSettings(),
            CombinationSettings(),
            reading,
            known={"own": (model, reading)},
        )
        served = ServedModel(
            model,
            reading,
            rewards_on_offer(rewards, credit),
            max_tokens=arguments.max_batch_tokens,
        )
        ready = [tensors_of(served, rows) for rows in batches_of(served, texts, credit)]

        def forward() -> None:
            with torch.no_grad():
                for batch in ready:
                    model(**batch, use_cache=False).logits.tolist()

        def library() -> None:
            for rows in batches_of(served, texts, credit):
                served.scores(rows)

        with server(Path(folder), arguments) as address:
            ways = {
                "forward": forward,
                "library": library,
                "server": lambda: asyncio.run(post_all(address, texts, arguments)),
            }
            seconds = seconds_in_turn(ways, arguments.repeats)
    print_speeds(seconds, len(texts), against=("forward", "library"))
    return {"seconds": seconds, "batches": len(ready)}


def seconds_in_turn(ways: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each way, one of each in turn, after one of each that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(-1, repeats):
        for name, score in ways.items():
            started = time.perf_counter()
            score()
            if repeat >= 0:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def print_speeds(seconds: dict[str, list[float]], texts: int, *, against: tuple[str, ...]) -> None:
    """Texts per second, and the medians over the repeats of the ratios within a repeat."""
    heads = [f"against {name}" for name in against]
    print("| way | texts per second | " + " | ".join(heads) + " |")
    print("|---|---:|" + "---:|" * len(heads))
    for name, own in seconds.items():
        ratios = [
            statistics.median(other / mine for other, mine in zip(seconds[peer], own, strict=True))
            for peer in against
        ]
        cells = [f"{texts / statistics.median(own):.1f}", *(f"{ratio:.3f}" for ratio in ratios)]
        print(f"| {name} | " + " | ".join(cells) + " |")


@contextmanager
def vllm_server(folder: Path, arguments: argparse.Namespace) -> Iterator[str]:
    """The address of vLLM's pooling server of the same model, in an environment of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    pooler = json.dumps({"task": "token_classify", "use_activation": False})
    command = [arguments.vllm, "-m", "vllm.entrypoints.openai.api_server", "--model", folder]
    command += ["--port", port, "--host", "127.0.0.1", "--dtype", arguments.dtype]
    command += ["--runner", "pooling", "--pooler-config", pooler, "--max-model-len", 1024]
    command += ["--max-num-batched-tokens", arguments.max_batch_tokens]
    command += ["--enforce-eager"] * arguments.eager
    environment = {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [str(part) for part in command],
            env=os.environ | environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            end = time.monotonic() + PATIENCE
            while not is_up(f"http://127.0.0.1:{port}/health"):
                if process.poll() is not None or time.monotonic() > end:
                    log.seek(0)
                    raise SystemExit(f"vLLM did not start: {log.read().decode()[-4000:]}")
                time.sleep(0.5)
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()


def is_up(address: str) -> bool:
    try:
        with urlopen(address, timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


def scorers(arguments: argparse.Namespace) -> dict[str, Any]:
    """Texts per second of the model in this process and of two servers of it, in turn."""
    texts = texts_of(arguments.texts, shortest=arguments.shortest, longest=arguments.longest)
    with tempfile.TemporaryDirectory() as folder:
        save_model(Path(folder), arguments.size)
        model, tokenizer = load_reward_model(folder, dtype=arguments.dtype, device="cpu")
        prompts, responses = zip(*(text.values() for text in texts), strict=True)
        batch = encode_responses(tokenizer, prompts, responses).batch
        with server(Path(folder), arguments) as own, vllm_server(Path(folder), arguments) as theirs:
            places = {
                "this process": "own",
                "tokencredit serve": own,
                "vLLM": f"vllm+{theirs}#{folder}",
            }
            ways = {
                name: partial(credited_by(place, tokenizer, model).credited, batch)
                for name, place in places.items()
            }
            expected = ways["this process"]()
            for name, score in ways.items():
                torch.testing.assert_close(score(), expected, atol=1e-3, rtol=1e-3, msg=name)
            seconds = seconds_in_turn(ways, arguments.repeats)
    print_speeds(seconds, len(texts), against=("this process", "vLLM"))
    return {"seconds": seconds}


def credited_by(place: str, tokenizer: Any, model: Any) -> Any:
    """What makes prefix differences of the reward model at a place."""
    return loaded_rewards(
        [RewardSource(place, name="reward")],
        CreditSettings("prefix-difference"),
        SegmentSettings(),
        CombinationSettings(),
        written_by(tokenizer),
        known={"own": (model, reading_of(model, tokenizer))},
    )


async def keep_asking(address: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Clients that ask until the time is over; statuses, seconds of answers, memory."""
    texts = texts_of(200, shortest=arguments.shortest, longest=arguments.longest)
    statuses: Counter[str] = Counter()
    seconds: list[float] = []
    memory: list[tuple[float, float]] = []
    started = time.perf_counter()
    end = started + arguments.seconds
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)

    async def client_of(number: int, session: httpx2.AsyncClient) -> None:
        random = Random(number)
        while time.perf_counter() < end:
            body = {"texts": [random.choice(texts)], "credit": arguments.credit}
            asked = time.perf_counter()
            try:
                answer = await session.post(f"{address}/score", json=body)
            except httpx2.HTTPError as error:
                statuses[type(error).__name__] += 1
                continue
            statuses[str(answer.status_code)] += 1
            if answer.status_code == 200:
                seconds.append(time.perf_counter() - asked)
            elif answer.status_code == 429:
                await asyncio.sleep(float(answer.headers["retry-after"]))

    async def watch() -> None:
        while time.perf_counter() < end:
            memory.append((time.perf_counter() - started, await asyncio.to_thread(rss, address)))
            await asyncio.sleep(min(10, arguments.seconds / 10))

    async with httpx2.AsyncClient(timeout=600, limits=limits) as session:
        await asyncio.gather(watch(), *(client_of(i, session) for i in range(arguments.clients)))
    memory.append((time.perf_counter() - started, rss(address)))
    return {
        "statuses": dict(statuses),
        "latencies": seconds,
        "memory": memory,
        "elapsed": time.perf_counter() - started,
    }


def rss(address: str) -> float:
    """Resident megabytes of the server."""
    with urlopen(f"{address}/metrics") as answer:
        found = re.search(r"^process_resident_memory_bytes (\S+)$", answer.read().decode(), re.M)
    return float(found[1]) / 2**20 if found else float("nan")


def load(arguments: argparse.Namespace) -> dict[str, Any]:
    """Many clients for some time."""
    with tempfile.TemporaryDirectory() as folder:
        save_model(Path(folder), arguments.size)
        with server(Path(folder), arguments) as address:
            result = asyncio.run(keep_asking(address, arguments))
    latencies = sorted(result.pop("latencies"))
    cuts = statistics.quantiles(latencies, n=1000, method="inclusive")
    result["milliseconds"] = {
        name: round(1000 * cuts[at - 1], 1)
        for name, at in (("p50", 500), ("p95", 950), ("p99", 990))
    } | {"max": round(1000 * latencies[-1], 1)}
    memory = result["memory"]
    # The first samples still warm up.
    warm = next(value for second, value in memory if second >= 0.1 * arguments.seconds)
    print(f"{arguments.clients} clients, {result['elapsed']:.0f} s, model {arguments.size}")
    print(f"answers by status: {result['statuses']}")
    print(f"answers per second: {len(latencies) / result['elapsed']:.1f}")
    print(f"milliseconds: {result['milliseconds']}")
    print(
        f"resident MB: {memory[0][1]:.0f} at first, {warm:.0f} warm, {memory[-1][1]:.0f} at the end"
    )
    result["failed"] = set(result["statuses"]) - {"200", "429"} != set()
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("throughput", "scorers", "load"))
    parser.add_argument("--vllm", default=".venv-vllm/bin/python", help="Python that has vLLM")
    parser.add_argument("--eager", action="store_true", help="vLLM does not compile the model")
    parser.add_argument("--size", default=None, choices=SIZES, help="small, for load tiny")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--credit", nargs="*", default=["prefix-difference"])
    parser.add_argument("--shortest", type=int, default=32, help="words of a text")
    parser.add_argument("--longest", type=int, default=256)
    parser.add_argument("--max-batch-tokens", type=int, default=2048)
    parser.add_argument("--queue-size", type=int, default=1024)
    parser.add_argument("--texts", type=int, default=64, help="throughput: in each repeat")
    parser.add_argument("--texts-per-request", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--json", type=Path, default=None, help="also write everything here")
    arguments = parser.parse_args()
    if arguments.size is None:
        arguments.size = "tiny" if arguments.what == "load" else "small"
    result = {"throughput": throughput, "scorers": scorers, "load": load}[arguments.what](arguments)
    if arguments.json is not None:
        settings = {name: str(value) for name, value in vars(arguments).items()}
        arguments.json.write_text(json.dumps({"settings": settings, **result}) + "\n")
    return int(result.get("failed", False))


if __name__ == "__main__":
    raise SystemExit(main())
