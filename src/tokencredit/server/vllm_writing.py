"""What a vLLM server that writes responses is asked: token ids, log-probabilities, which weights.

The server must have been started with VLLM_SERVER_DEV_MODE=1, without which it takes no weights.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokencredit.errors import ConfigError, ServerError, TokenCreditError
from tokencredit.server.answers import told
from tokencredit.server.asking import Kind, RewardServer, json_answer
from tokencredit.server.exchange import Answer

_DEV_MODE = "one of vLLM 0.32 or newer that was started with VLLM_SERVER_DEV_MODE=1"


@dataclass(frozen=True)
class WritingServer:
    """A vLLM server with a language model.

    Attributes:
        server: where it is, and how patiently to ask it.
        model: the name that it goes by there.
        max_length: tokens of prompt and response that it can read.
        takes_nccl: whether it was started with an engine for weights over NCCL.
        dtype: of its weights, as torch names it.
    """

    server: RewardServer
    model: str
    max_length: int
    takes_nccl: bool
    dtype: str


def writing_server(server: RewardServer) -> WritingServer:
    """The language model at an address, and what the server says of itself.

    Raises:
        ServerError: nobody answers there, or something else than a vLLM server does.
        ConfigError: it was started without what taking weights needs.
    """
    model = _of(json_answer(server, _VLLM, "GET", "/v1/models"), "data", 0)
    weight_version(server)  # an older server cannot say which weights it has
    info = json_answer(server, _DEV, "GET", "/server_info?config_format=json")
    config = _of(info, "vllm_config")
    return WritingServer(
        server,
        str(_of(model, "id")),
        int(_of(model, "max_model_len")),
        _of(config, "weight_transfer_config") is not None,
        str(_of(config, "model_config", "dtype")).removeprefix("torch."),
    )


def written_ids(
    writer: WritingServer, prompts: Sequence[Sequence[int]], settings: Mapping[str, Any]
) -> list[list[int]]:
    """Token ids of one response to each prompt.

    Args:
        writer: where to.
        prompts: token ids.
        settings: of `/v1/completions`, such as `temperature` and `max_tokens`.

    Raises:
        ServerError: the server fails, refuses a prompt, or answers with other than one response of
            at least a token to each.
    """
    asked = {"model": writer.model, "prompt": list(prompts), "return_token_ids": True, **settings}
    choices = _of(json_answer(writer.server, _VLLM, "POST", "/v1/completions", asked), "choices")
    rows = [_of(choice, "token_ids") for choice in choices]
    if len(rows) != len(prompts) or not all(rows):
        raise ServerError(
            f"the vLLM server answered {len(prompts)} prompts with {sum(map(bool, rows))} "
            "responses; expected one of at least a token to each"
        )
    return [list(row) for row in rows]


def text_logprobs(writer: WritingServer, ids: Sequence[int]) -> list[float]:
    """The log-probability of each token of a text but the first, in nats, as the server has it.

    Args:
        writer: whom to ask.
        ids: of the text, two at least.

    Raises:
        ServerError: the server fails, refuses the text, or does not say one number for each token.
    """
    asked = {"model": writer.model, "prompt": list(ids), "max_tokens": 1, "prompt_logprobs": 0}
    answer = json_answer(writer.server, _VLLM, "POST", "/v1/completions", asked)
    said = _of(answer, "choices", 0, "prompt_logprobs")
    if not isinstance(said, list) or len(said) != len(ids):
        raise ServerError(
            f"the vLLM server at {writer.server.address} gives {str(said)[:80]} as prompt_logprobs "
            f"of {len(ids)} tokens; expected one entry for each"
        )
    pairs = zip(said[1:], ids[1:], strict=True)
    found = [_of(entry, str(token), "logprob") for entry, token in pairs]
    return [float(value) if value is not None else math.nan for value in found]


def weight_version(server: RewardServer) -> str:
    """The name that the weights of the server were given last; `default` for those it began with.

    Raises:
        ServerError: the server fails.
        ConfigError: it keeps no such name.
    """
    return str(_of(json_answer(server, _DEV, "GET", "/weight_info"), "weight_version"))


def name_weights(server: RewardServer, version: str) -> None:
    """Give the weights of the server a name, which is lost when it starts again.

    Raises:
        ServerError, ConfigError: as `weight_version`.
    """
    json_answer(server, _DEV, "POST", "/update_weight_version", {"new_version": version})


def zero_weights(server: RewardServer) -> None:
    """Make the weights of the server zero, so that none can be left over from before.

    Raises:
        ServerError, ConfigError: as `weight_version`.
    """
    json_answer(server, _DEV, "POST", "/weight_checker", {"action": "reset"})


def load_weights(server: RewardServer, folder: Path) -> None:
    """Let the server read weights from a folder that it sees under the same path.

    Raises:
        ServerError: it cannot; vLLM does not recover from that and must be started again.
        ConfigError: as `weight_version`.
    """
    asked = {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
    json_answer(server, _DEV, "POST", "/collective_rpc", asked)


def forget_prefixes(server: RewardServer) -> None:
    """Let the server drop what it keeps of texts that other weights have read.

    Raises:
        ServerError: it did not.
        ConfigError: as `weight_version`.
    """
    answer = json_answer(server, _DEV, "POST", "/reset_prefix_cache")
    if _of(answer, "success") is not True:
        raise ServerError(
            f"the vLLM server at {server.address} did not reset its prefix cache; expected a "
            "server that nothing else asks meanwhile"
        )


def _refusal(answer: Answer, server: RewardServer) -> TokenCreditError:
    said = told(answer, token=server.token)
    if answer.status in (404, 405):
        said += ": is it a vLLM server with a model that writes?"
    return ServerError(f"the vLLM server at {server.address} answered {said}")


def _refusal_of_dev(answer: Answer, server: RewardServer) -> TokenCreditError:
    if answer.status in (404, 405):
        said = told(answer, token=server.token)
        return ConfigError(
            f"the server at {server.address} takes no weights ({said}); expected {_DEV_MODE}"
        )
    return _refusal(answer, server)


_VLLM = Kind("vLLM server", "a vLLM server", _refusal)
_DEV = Kind("vLLM server", _DEV_MODE, _refusal_of_dev)


def _of(container: Any, *path: str | int) -> Any:
    """What stands in an answer under these keys."""
    for key in path:
        try:
            container = container[key]
        except (KeyError, IndexError, TypeError) as error:
            raise ServerError(
                f"the vLLM server answers without {'.'.join(map(str, path))}: "
                f"{str(container)[:80]!a}; expected the answer of vLLM 0.32: look at what listens "
                "there"
            ) from error
    return container
