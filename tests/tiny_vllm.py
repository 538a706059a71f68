"""A tiny model behind the endpoints of a vLLM server, which answer as vLLM 0.32 was seen to answer.

tests/engines/test_vllm_rollout.py runs the same against vLLM itself.
"""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tokencredit.batch import padded_rows
from tokencredit.policy.hf_rollout import sampled_responses
from tokencredit.sampling import Sampling

Reply = tuple[int, Any]


def failure(status: int, message: str, kind: str = "InternalServerError") -> Reply:
    """An error as vLLM tells it."""
    return status, {"error": {"message": message, "type": kind, "param": None, "code": status}}


class TinyVLLM:
    """Draws from the weights that it has.

    Attributes:
        model: with those weights.
        calls: paths that were asked for since the last look.
        keeps_head: whether a tied output head stays as it was unless it comes under its own name.
        replies: by path, what is answered in the place of the truth: a reply, or a function of the
            body that returns one or None.
    """

    def __init__(self, folder: Path, *, dtype: str = "float32", keeps_head: bool = False) -> None:
        self.folder, self.dtype, self.keeps_head = folder, dtype, keeps_head
        self.calls: list[str] = []
        self.replies: dict[str, Any] = {}
        self.start()

    def start(self) -> None:
        """As the process does: with the weights of its folder."""
        self.model = AutoModelForCausalLM.from_pretrained(self.folder).eval()
        self.version, self.nccl = "default", None
        self.dead = False

    def reply(self, path: str, body: Any) -> Reply:
        """Status and JSON."""
        self.calls.append(path)
        made = self.replies.get(path)
        if callable(made):
            made = made(body)
        if made is not None:
            return made
        if self.dead:
            return failure(500, "EngineCore encountered an issue.")
        match path:
            case "/v1/models":
                return 200, {
                    "data": [{"id": "tiny", "root": str(self.folder), "max_model_len": 64}]
                }
            case "/server_info":
                config = {"model_config": {"dtype": f"torch.{self.dtype}"}}
                return 200, {"vllm_config": config | {"weight_transfer_config": self.nccl}}
            case "/weight_info":
                return 200, {"weight_version": self.version}
            case "/update_weight_version":
                self.version = body["new_version"]
                return 200, {"success": True}
            case "/weight_checker" if body["action"] == "reset":
                for parameter in self.model.parameters():
                    parameter.data.zero_()
                return 200, {"status": "reset"}
            case "/collective_rpc" if body["method"] == "reload_weights":
                return self.reload(Path(body["kwargs"]["weights_path"]))
            case "/reset_prefix_cache":
                return 200, {"success": True}
            case "/v1/completions":
                return self.completions(body)
        return 404, {"detail": "Not Found"}

    def reload(self, folder: Path) -> Reply:
        """What is not in the files stays as it is, without a word; vLLM dies of half a file."""
        try:
            files = sorted(folder.glob("*.safetensors"))
            found = {name: w for file in files for name, w in load_file(file).items()}
            self.take(found)
        except (SafetensorError, RuntimeError, KeyError) as error:
            self.dead = True
            return failure(500, f"Worker failed with error '{error}'")
        return 200, {"results": [None]}

    @torch.no_grad()
    def take(self, found: dict[str, torch.Tensor]) -> None:
        """Put weights into the model."""
        model = self.model
        own_head = found.pop("lm_head.weight", None) if self.is_tied or self.keeps_head else None
        parameters = dict(model.named_parameters())
        if self.keeps_head and self.is_tied:  # a copy of the head is what is read
            model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone())
        for name, weight in found.items():
            parameters[name].copy_(weight)
        if own_head is not None:
            model.lm_head.weight.copy_(own_head)

    @property
    def is_tied(self) -> bool:
        """Whether the model was made so."""
        return bool(self.model.config.tie_word_embeddings)

    def completions(self, body: dict[str, Any]) -> Reply:
        """Responses, or log-probabilities of a text."""
        rows = body["prompt"] if isinstance(body["prompt"][0], list) else [body["prompt"]]
        most = self.model.config.vocab_size
        beyond = [id_ for row in rows for id_ in row if id_ >= most]
        if beyond:
            message = f"Token id {beyond[0]} is out of vocabulary"
            return failure(400, message, "BadRequestError")
        if body["model"] != "tiny":
            return failure(404, "The model does not exist.", "NotFoundError")
        if "prompt_logprobs" in body:
            (row,) = rows
            with torch.no_grad():
                logprobs = self.model(torch.tensor([row])).logits[0].log_softmax(-1)
            said = [{str(t): {"logprob": logprobs[i, t].item()}} for i, t in enumerate(row[1:])]
            return 200, {"choices": [{"index": 0, "prompt_logprobs": [None, *said]}]}
        biases = body.get("logit_bias", {})
        assert set(biases.values()) <= {-100.0}
        sampling = Sampling(
            max_new_tokens=body["max_tokens"],
            min_new_tokens=body["min_tokens"],
            suppress_tokens=tuple(map(int, biases)),
            temperature=body["temperature"],
            top_k=body["top_k"],
            top_p=body["top_p"],
        )
        assert body["return_token_ids"] is True
        pad = self.model.config.pad_token_id
        ids, mask = padded_rows(rows, fill=pad, side="left")
        ends = {"pad_token_id": pad, "eos_token_id": body["stop_token_ids"]}
        batch, _ = sampled_responses(self.model, ids, mask, sampling=sampling, **ends)
        drawn = zip(batch.response_ids, batch.response_mask, strict=True)
        choices = [{"index": i, "token_ids": row[m].tolist()} for i, (row, m) in enumerate(drawn)]
        return 200, {"choices": choices}


@contextmanager
def listening(tiny: Any) -> Iterator[str]:
    """The address of a stand-in, whatever has `reply(path, body)`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            path = self.path.partition("?")[0]
            if hasattr(tiny, "keys"):
                tiny.keys.add(self.headers.get("Authorization"))
            status, said = tiny.reply(path, json.loads(body) if body else None)
            sent = json.dumps(said).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(sent)))
            self.end_headers()
            self.wfile.write(sent)

        do_POST = do_GET

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
