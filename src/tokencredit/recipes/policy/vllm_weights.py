"""Weights on their way to a vLLM server, and what shows that they have arrived.

They travel over NCCL, by TRL's client, or through a folder that the server reads. Either way the
server's weights are made zero first and get a name, and the server then says the log-probabilities
of a text, which must be those of the policy: weights that are old, of another model or only half
there are an error.

vLLM may keep old weights with no more than a line in its log: on the CPU it does so with an output
head that is tied to the input embeddings, unless the head comes under its own name as well. So the
first weights that a server gets are those of the policy with every token moved up by one id. A
server that has them all says of the text moved up by one what the policy says of the text itself.
"""

import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor, nn

from tokencredit.batch import ResponseBatch
from tokencredit.errors import ConfigError, RunFolderError, ServerError
from tokencredit.models.hf_logprobs import response_logprobs
from tokencredit.recipes.policy.sharding import named_parameters, whole
from tokencredit.server.vllm_writing import (
    WritingServer,
    forget_prefixes,
    load_weights,
    name_weights,
    probe_text,
    text_logprobs,
    weight_version,
    zero_weights,
)

Described = list[tuple[str, str, list[int]]]
Transport = Callable[[Described, Iterable[tuple[str, Tensor]]], None]
"""Takes the server weights: names, precisions and shapes of all, then one after another."""

# A file of weights is written when so many bytes are there; they lie in memory until then.
_FILE_BYTES = 2**31
# Mean difference of log-probabilities in nats: two ways to compute in float32, and in half of it.
_CLOSE = {"float32": 2e-3, "other": 0.3}


@dataclass
class SentWeights:
    """What the first process remembers of the weights that it has sent.

    Attributes:
        run: a name of this run, for the names of weights.
        number: how often weights were sent.
        with_head: whether an output head that is tied to the input goes under its own name too.
    """

    run: str = field(default_factory=lambda: f"tokencredit-{uuid.uuid4().hex[:8]}")
    number: int = 0
    with_head: bool = False

    @property
    def version(self) -> str:
        """The name of the weights that were sent last."""
        return f"{self.run}-{self.number}"


@dataclass(frozen=True)
class WeightSender:
    """What brings a policy's weights to a server.

    Attributes:
        writer: the server in the first process, None in the others.
        transport: how they get there, likewise.
        sent: what has been sent.
        half_precision: whether the policy computes in less than float32.
    """

    writer: WritingServer | None = None
    transport: Transport | None = None
    sent: SentWeights = field(default_factory=SentWeights)
    half_precision: bool = False


@torch.no_grad()
def send_weights(
    sender: WeightSender,
    policy: nn.Module,
    ask_policy: Callable[[Callable[[Any], Tensor]], Tensor],
    *,
    vocabulary: int,
) -> None:
    """Give the server the weights of the policy; every process must call this at the same time.

    Args:
        sender: what brings them.
        policy: whose they are.
        ask_policy: calls a function with the policy, gathered if it is sharded.
        vocabulary: ids that the policy's tokenizer has tokens for.

    Raises:
        ServerError: the server fails, has been sent weights by another run meanwhile, or does not
            say what the policy says.
        ConfigError: it does not follow: see `_require_following`.
        RunFolderError: the weights cannot be written.
    """
    text = None if sender.writer is None else probe_text(vocabulary, sender.writer.max_length)
    text = _of_first(text)
    own = ask_policy(lambda model: _own_logprobs(model, text))[0].tolist()
    if _of_first(sender.writer is not None and _is_new(sender, text)):
        _require_following(sender, policy, own, text)
    _push(sender, policy, moved=False)
    wrong = None
    if sender.writer is not None and (said := _differently(sender, own, text)):
        wrong = ServerError(
            f"the vLLM server at {sender.writer.server.address} does not have the weights that it "
            f"was sent: {said}. Start it again with the model of `policy`, then run the same "
            "command"
        )
    _raise_everywhere(wrong)


def require_version(sender: WeightSender) -> None:
    """Refuse what the server has drawn from other weights than it was sent last.

    Raises:
        ServerError: it has started again, or another run has sent it weights.
    """
    if sender.writer is None:
        return
    found = weight_version(sender.writer.server)
    if found != sender.sent.version:
        raise ServerError(
            f"the vLLM server at {sender.writer.server.address} has the weights {found[:80]!r}; "
            f"expected {sender.sent.version!r}, which it was sent: it has started again, or "
            "another run sends it weights. The last checkpoint is whole: run the same command, "
            "with a server of its own"
        )


def _is_new(sender: WeightSender, text: list[int]) -> bool:
    """Whether the server has never had weights of this run; it can read the text then, too."""
    assert sender.writer is not None
    found = weight_version(sender.writer.server)
    if sender.sent.number and found == sender.sent.version:
        return False
    if sender.sent.number and found != "default":
        require_version(sender)
    text_logprobs(sender.writer, text)  # before its own weights are gone
    return True


def _require_following(
    sender: WeightSender, policy: nn.Module, own: list[float], text: list[int]
) -> None:
    """Send weights that no server began with, and see that all of them arrive.

    Raises:
        ConfigError: what the server says is not what these weights say.
    """
    moved = [id_ + 1 for id_ in text]
    tied, said = _tied_head(policy) is not None, None
    for with_head in [False, True] if tied else [False]:
        sender.sent.with_head = with_head
        _push(sender, policy, moved=True)
        said = None if sender.writer is None else _differently(sender, own, moved)
        if _of_first(said) is None:
            return
    wrong = None
    if sender.writer is not None:
        wrong = ConfigError(
            f"the vLLM server at {sender.writer.server.address} does not follow the weights that "
            f"it is sent: {said}. Expected the model of `policy` there, in a precision of its own "
            "but not quantized"
        )
    _raise_everywhere(wrong)


def _push(sender: WeightSender, policy: nn.Module, *, moved: bool) -> None:
    """Send weights once, under a name of their own."""
    described = _described(policy, with_head=sender.sent.with_head)
    weights = _gathered(policy, described, moved=moved)
    if sender.writer is None or sender.transport is None:
        for _ in weights:  # a part of each weight lies here
            pass
        return
    server = sender.writer.server
    sender.sent.number += 1
    name_weights(server, f"{sender.sent.version}-not-whole")
    zero_weights(server)
    sender.transport([(name, dtype, shape) for name, dtype, shape, _ in described], weights)
    forget_prefixes(server)
    if weight_version(server) != f"{sender.sent.version}-not-whole":
        raise ServerError(
            f"another run has sent the vLLM server at {server.address} weights while this one did; "
            "expected a server for each run"
        )
    name_weights(server, sender.sent.version)


def _described(
    policy: nn.Module, *, with_head: bool
) -> list[tuple[str, str, list[int], nn.Parameter]]:
    """Name, precision and shape of each weight, with the parameter itself."""
    parameters = named_parameters(policy)
    if with_head:
        parameters |= {_tied_head(policy) or "": _vocabulary_weights(policy)[0]}
    return [
        (name, str(p.dtype).removeprefix("torch."), list(getattr(p, "ds_shape", p.shape)), p)
        for name, p in parameters.items()
    ]


def _gathered(
    policy: nn.Module, described: list[Any], *, moved: bool
) -> Iterator[tuple[str, Tensor]]:
    """Whole weights by their names, one after another; moved, each token has the next one's id."""
    of_tokens = {id(p) for p in _vocabulary_weights(policy)}
    for name, _, _, parameter in described:
        weight = whole(parameter).detach().to(parameter.dtype)
        yield name, weight.roll(1, 0) if moved and id(parameter) in of_tokens else weight


def _vocabulary_weights(policy: Any) -> list[nn.Parameter]:
    """Parameters with a row for each token, those of the input first."""
    parts = (policy.get_input_embeddings(), policy.get_output_embeddings())
    return [p for part in parts if part is not None for p in part.parameters()]


def _tied_head(policy: Any) -> str | None:
    """The name that the weight of an output head would have by itself; None where it has one."""
    head = policy.get_output_embeddings()
    if head is None or head.weight is not policy.get_input_embeddings().weight:
        return None
    return next(f"{name}.weight" for name, part in policy.named_modules() if part is head)


def _own_logprobs(model: Any, text: list[int]) -> Float[Tensor, "one time"]:
    device = next(model.parameters()).device
    batch = ResponseBatch.of_rows([text[:1]], [text[1:]], pad_token_id=0, device=device)
    return response_logprobs(model, batch)


def _differently(sender: WeightSender, own: list[float], text: list[int]) -> str | None:
    """How far from what it should say the server is about a text; None where it is close."""
    assert sender.writer is not None
    said = torch.tensor(text_logprobs(sender.writer, text), dtype=torch.float64)
    difference = float((said - torch.tensor(own, dtype=torch.float64)).abs().mean())
    in_float32 = sender.writer.dtype == "float32" and not sender.half_precision
    most = _CLOSE["float32" if in_float32 else "other"]
    if difference <= most:  # NaN is not
        return None
    return (
        f"the log-probabilities of a text of {len(text)} tokens are {difference:.3g} nats from "
        f"the policy's on average, expected at most {most}"
    )


def _raise_everywhere(error: Exception | None) -> None:
    """Raise in every process what the first one has found, so that none waits for the others."""
    found = _of_first(error)
    if found is not None:
        raise found


def _of_first(value: Any) -> Any:
    """What the first process has."""
    return broadcast_object_list([value])[0]


@dataclass(frozen=True)
class FolderTransport:
    """Weights by a folder that the trainer writes and the server reads.

    Attributes:
        writer: the server.
        folder: that both see under the same path; it holds one set of weights at a time.
    """

    writer: WritingServer
    folder: Path

    def __call__(
        self,
        described: Described,  # noqa: ARG002 - files say it themselves
        weights: Iterable[tuple[str, Tensor]],
    ) -> None:
        """Write all weights, let the server read them, and remove them.

        Raises:
            RunFolderError: they cannot be written.
            ServerError, ConfigError: as `load_weights`.
        """
        whole_set = self.folder / f"vllm-weights-{uuid.uuid4().hex[:8]}"
        try:
            # The server never sees a folder that is still being written to.
            part = whole_set.with_suffix(".part")
            part.mkdir(parents=True)
            _write(part, weights, getattr(torch, self.writer.dtype))
            part.rename(whole_set)
        except OSError as error:
            raise RunFolderError(
                f"the weights for the vLLM server cannot be written below {self.folder} ({error}); "
                "expected a folder with room for them: set machine.vllm_folder"
            ) from error
        try:
            load_weights(self.writer.server, whole_set)
        except ServerError as error:
            raise ServerError(
                f"{error}. It was to read the weights in {whole_set}: it must see them there (set "
                "machine.vllm_folder) and serve the model of `policy`. vLLM does not recover from "
                "this: start it again, then run the same command"
            ) from error
        finally:
            shutil.rmtree(whole_set, ignore_errors=True)


def _write(folder: Path, weights: Iterable[tuple[str, Tensor]], dtype: torch.dtype) -> None:
    """Files of weights in the precision of the server, which would round them alike."""
    kept: dict[str, Tensor] = {}
    for name, weight in weights:
        precision = dtype if weight.is_floating_point() else weight.dtype
        kept[name] = weight.to("cpu", precision, copy=True).contiguous()
        if sum(tensor.nbytes for tensor in kept.values()) >= _FILE_BYTES:
            save_file(kept, folder / f"{name}.safetensors")
            kept.clear()
    if kept:
        save_file(kept, folder / "model.safetensors")
