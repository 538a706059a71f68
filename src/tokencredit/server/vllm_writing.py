"""What a vLLM server that writes responses is asked: token ids, log-probabilities, which weights.

What is about weights needs a server that was started with VLLM_SERVER_DEV_MODE=1.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tokencredit.errors import ConfigError, ServerError, TokenCreditError
from tokencredit.sampling import Sampling
from tokencredit.server.answers import told
from tokencredit.server.asking import Kind, RewardServer, json_answer
from tokencredit.server.exchange import Answer

# The most that vLLM lets one take from a logit: what is left is e^-100 of the probability.
_NEVER = -100.0
_PROBED_TOKENS = 48
_DEV_MODE = "one of vLLM 0.32 or newer that was started with VLLM_SERVER_DEV_MODE=1"


@dataclass(frozen=True)
class WritingServer:
    """A vLLM server with a language model.

    Attributes:
        server: where it is, and how patiently to ask it.
        model: the name that it goes by there.
        max_length: tokens of prompt and response that it can read.
        takes_nccl: whether it was started with an engine for weights over NCCL.
        dtype: of its weights, as torch names it; "unknown" of a server that takes no weights.
    """

    server: RewardServer
    model: str
    max_length: int
    takes_nccl: bool = False
    dtype: str = "unknown"


def writing_server(server: RewardServer) -> WritingServer:
    """The language model at an address.

    Raises:
        ServerError: nobody answers there, or something else than a vLLM server does.
    """
    model = _of(json_answer(server, _VLLM, "GET", "/v1/models"), "data", 0)
    return WritingServer(server, str(_of(model, "id")), int(_of(model, "max_model_len")))


def weight_taker(server: RewardServer) -> WritingServer:
    """The language model at an address, of a server that takes weights.

    Raises:
        ServerError: as `writing_server`.
        ConfigError: it was started without what taking weights needs.
    """
    found = writing_server(server)
    weight_version(server)  # an older server cannot say which weights it has
    info = json_answer(server, _DEV, "GET", "/server_info?config_format=json")
    config = _of(info, "vllm_config")
    return replace(
        found,
        takes_nccl=_of(config, "weight_transfer_config") is not None,
        dtype=str(_of(config, "model_config", "dtype")).removeprefix("torch."),
    )


def drawn_ids(
    writer: WritingServer,
    prompts: Sequence[Sequence[int]],
    *,
    sampling: Sampling,
    ends: Sequence[int],
) -> list[list[int]]:
    """Token ids of one response to each prompt, drawn as `sampling_logits` says, without a seed.

    Args:
        writer: where to.
        prompts: token ids; one that comes twice gets two responses.
        sampling: how to draw.
        ends: ids that end a response, and belong to it.

    Raises:
        ServerError: as `written_ids`, or it draws what may not be drawn.
    """
    # No end before this many tokens: with as many as there may be, there is none at all.
    endless = bool(ends) and set(ends) <= set(sampling.suppress_tokens)
    # No seed: vLLM would seed each prompt with it, and answer one that comes twice the same.
    settings: dict[str, Any] = {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "max_tokens": sampling.max_new_tokens,
        "min_tokens": sampling.max_new_tokens if endless else sampling.min_new_tokens,
        "stop_token_ids": list(ends),
    }
    never = set(sampling.suppress_tokens) - set(ends)
    if never:
        settings["logit_bias"] = {str(token): _NEVER for token in sorted(never)}
    answers = written_ids(writer, prompts, settings)
    drawn = never & {token for answer in answers for token in answer}
    if drawn:
        raise ServerError(
            f"the vLLM server drew the ids {sorted(drawn)[:5]}, which it was asked to leave out; "
            "expected a server that heeds logit_bias"
        )
    return answers


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


def probe_text(vocabulary: int, max_length: int) -> list[int]:
    """Ids from all over a vocabulary, of which each has a next one, to compare two models by.

    Args:
        vocabulary: number of ids.
        max_length: tokens that a server can read, of which it writes one.

    >>> probe_text(9, 5)
    [0, 2, 4, 6]
    """
    most = min(_PROBED_TOKENS, vocabulary - 1, max_length - 1)
    return [number * (vocabulary - 1) // most for number in range(most)]


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
