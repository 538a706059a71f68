"""Attack a reward server, and see what its other clients and its memory notice.

    python runs/attack_server.py
    python runs/attack_server.py --attacks wrong-types silent

Each attack meets a `tokencredit serve` of its own, with a small model whose tokenizer falls back on
bytes. Meanwhile one client asks for /health and another one for the score of a short text, again
and again. Prints, by attack, the longest that either waited, what the attacker was answered, the
most memory, and the length of the log.
"""

import argparse
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import LlamaConfig, LlamaForSequenceClassification, PreTrainedTokenizerFast

LOOPS = "{% if 'loop' in messages[0].content %}{% for a in range(99999) %}" + (
    "{% for b in range(99999) %}{% endfor %}{% endfor %}{% endif %}"
)
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
SHORT = {"texts": [{"prompt": "the film", "response": " is good"}], "credit": []}


def save_model(folder: Path, *, template: str | None = None) -> None:
    """A small Llama with a reward head, whose tokens are bytes and a few words."""
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "film"]
    core = Tokenizer(
        models.BPE({n: i for i, n in enumerate(names)}, [], unk_token="<unk>", byte_fallback=True)
    )
    core.normalizer = normalizers.Replace(" ", "▁")
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", bos_token="<s>", eos_token="</s>",
        pad_token="</s>", chat_template=template,
    )  # fmt: skip
    config = LlamaConfig(
        vocab_size=len(names), hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=16384, num_labels=1, pad_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@dataclass
class Server:
    """A server in a process of its own."""

    process: subprocess.Popen
    port: int
    log: Path
    longest: Counter = field(default_factory=Counter)
    statuses: Counter = field(default_factory=Counter)

    def ask(self, method: str, path: str, body: bytes = b"", seconds: float = 120.0) -> int:
        """The status of an answer; 0 for none."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=seconds)
        try:
            connection.request(method, path, body or None, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            answer.read()
            return answer.status
        except OSError:
            return 0
        finally:
            connection.close()

    def watch(self, name: str, call: Callable[[], int], end: threading.Event) -> None:
        """Call again and again and note the longest time."""
        while not end.is_set():
            started = time.monotonic()
            status = call()
            self.longest[name] = max(self.longest[name], time.monotonic() - started)
            self.statuses[name, status] += 1
            end.wait(0.05)

    def memory(self, name: str) -> int:
        """Resident megabytes, now (VmRSS) or at most (VmHWM)."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(rf"{name}:\s+(\d+)", status)[1]) // 1024


@contextmanager
def serving(folder: Path, *settings: str, files: int | None = None) -> Iterator[Server]:
    def limit() -> None:
        if files is not None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))

    log = folder / "log"
    command = [sys.executable, "-m", "tokencredit.cli", "serve", "--reward_model", str(folder)]
    with log.open("w") as errors:
        process = subprocess.Popen(
            [*command, "--port", "0", *settings],
            stdout=subprocess.PIPE, stderr=errors, text=True, preexec_fn=limit,
        )  # fmt: skip
    try:
        lines = iter(process.stdout.readline, "")
        port = next(int(found[1]) for line in lines if (found := re.search(r":(\d+)$", line)))
        yield Server(process, port, log)
    finally:
        process.kill()
        process.wait()


def post(server: Server, body: Any) -> str:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    started = time.monotonic()
    status = server.ask("POST", "/score", content)
    return f"{status} after {time.monotonic() - started:.1f} s"


def raw(server: Server, content: bytes) -> socket.socket:
    """A connection that has sent this and reads nothing."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(("127.0.0.1", server.port))
    connection.sendall(content)
    return connection


def request(body: Any) -> bytes:
    content = json.dumps(body).encode()
    head = "POST /score HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content


def wrong_types(server: Server) -> str:
    """A body of 3.8 MB whose entries all have the wrong type."""
    return post(server, b'{"ids": [' + b"{}," * 1_270_000 + b"{}]}")


def bytes_of_ids(server: Server) -> str:
    """48 KB of ids that are bytes of long characters."""
    ids = [3 + byte for byte in "映".encode()] * 3200
    return post(server, {"ids": [{"prompt_ids": [1], "response_ids": ids}]})


def uneven(server: Server) -> str:
    """70 KB of texts, one of them long."""
    texts = [{"response": "a"} for _ in range(1000)] + [{"response": "a" * 15_000}]
    return post(server, {"texts": texts, "credit": []})


def gone(server: Server) -> str:
    """Forty clients that post a thousand texts each and hang up at once."""
    body = request({"texts": [{"response": "a" * 100}] * 1000, "credit": []})
    for _ in range(40):
        with suppress(OSError):
            raw(server, body).close()
    return post(server, SHORT)


def silent(server: Server) -> str:
    """Three hundred connections that say nothing, where 256 files may be open."""
    kept = []
    for _ in range(300):
        with suppress(OSError):
            kept.append(raw(server, b""))
    time.sleep(30)
    answer = post(server, SHORT)
    for each in kept:
        each.close()
    return answer


def unread(server: Server) -> str:
    """Thirty answers of some megabytes that nobody reads."""
    ids = [{"prompt_ids": [1], "response_ids": [259] * 2000}] * 40
    kept = []
    for _ in range(30):
        with suppress(OSError):
            kept.append(raw(server, request({"ids": ids, "credit": ["terminal"]})))
    time.sleep(60)
    answer = f"{server.memory('VmRSS')} MB after a minute"
    for each in kept:
        each.close()
    return answer


def loops(server: Server) -> str:
    """A text for which the chat template does not end; then SIGTERM while there is another."""
    answer = post(server, {"texts": [{"prompt": "loop", "response": "a"}], "credit": []})
    thread = threading.Thread(
        target=post, daemon=True,
        args=(server, {"texts": [{"prompt": "loop", "response": "a"}], "credit": []}),
    )  # fmt: skip
    thread.start()
    time.sleep(5)
    ready = server.ask("GET", "/ready")
    server.process.send_signal(signal.SIGTERM)
    started = time.monotonic()
    try:
        server.process.wait(90)
    except subprocess.TimeoutExpired:
        return f"{answer}; /ready {ready}; goes on 90 s after SIGTERM"
    ended = f"ended {time.monotonic() - started:.1f} s after SIGTERM"
    return f"{answer}; /ready {ready}; {ended} with {server.process.returncode}"


ATTACKS: dict[str, tuple[Callable[[Server], str], dict[str, Any]]] = {
    "wrong-types": (wrong_types, {}),
    "bytes-of-ids": (bytes_of_ids, {}),
    "uneven": (uneven, {}),
    "gone": (gone, {}),
    "silent": (silent, {"files": 256}),
    "unread": (unread, {}),
    "loops": (loops, {}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--attacks", nargs="+", choices=ATTACKS, default=list(ATTACKS))
    parser.add_argument("--settings", nargs="*", default=[], help="of the server")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    print("attack         /health   a score  statuses           MB at most  log   the attacker")
    for name in arguments.attacks:
        attack, keywords = ATTACKS[name]
        with tempfile.TemporaryDirectory() as folder:
            save_model(Path(folder), template=LOOPS + TEMPLATE if name == "loops" else None)
            with serving(Path(folder), *arguments.settings, **keywords) as server:
                end, short = threading.Event(), json.dumps(SHORT).encode()
                watched = {
                    "health": lambda s=server: s.ask("GET", "/health"),
                    "score": lambda s=server, b=short: s.ask("POST", "/score", b),
                }
                threads = [
                    threading.Thread(target=server.watch, args=(*pair, end), daemon=True)
                    for pair in watched.items()
                ]
                for thread in threads:
                    thread.start()
                time.sleep(1)
                said = attack(server)
                time.sleep(0.5)
                most = server.memory("VmHWM") if server.process.poll() is None else 0
                end.set()
                for thread in threads:
                    thread.join(5)
                found = {s: n for (kind, s), n in server.statuses.items() if kind == "score"}
                waited = "  ".join(f"{server.longest[kind]:6.1f} s" for kind in watched)
                size = server.log.stat().st_size // 1024
                print(f"{name:13}{waited}  {found!s:18} {most:8}  {size:4} KB  {said}", flush=True)


if __name__ == "__main__":
    main()
