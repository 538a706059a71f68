"""Responses from a vLLM server: vLLM is not needed, TRL's client is held to its signatures."""

from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from tiny_policy import tiny_config, write_models

from tokencredit.errors import ConfigError, ServerError
from tokencredit.recipes.policy.train_policy import train_policy
from tokencredit.recipes.policy.vllm import VLLMServer, connect, served_responses
from tokencredit.recipes.run_folder import read_jsonl
from tokencredit.sampling import Sampling

pytest.importorskip("trl", reason="TRL is an extra")
from tiny_vllm import TinyVLLM, installed

ADDRESS = "http://localhost:8000"
CLIENT = "trl.generation.vllm_client.VLLMClient"
PROMPTS = torch.tensor([[0, 5], [6, 7]])
PROMPT_MASK = torch.tensor([[False, True], [True, True]])


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return write_models(tmp_path_factory.mktemp("models"))


class Scripted:
    """Answers what it was told to, and remembers the question."""

    def __init__(self, answers: list[list[int]]) -> None:
        self.answers = answers

    def generate(self, **question: Any) -> dict[str, Any]:
        self.question = question
        return {"completion_ids": self.answers}


def answered(
    answers: list[list[int]], lengths: torch.Tensor | None = None, *, ends: Any = 2, **sampling: Any
):
    client = Scripted(answers)
    batch, truncated = served_responses(
        VLLMServer(Accelerator(cpu=True), client),
        PROMPTS,
        PROMPT_MASK,
        sampling=Sampling(max_new_tokens=3, **sampling),
        pad_token_id=0,
        eos_token_id=ends,
        response_lengths=lengths,
    )
    return client.question, batch, truncated.tolist()


@pytest.mark.parametrize(
    "settings",
    [{"sampling.top_k": 1}, {"sampling.top_k": 1, "sampling.response_lengths": "uniform"}],
)
def test_a_server_draws_what_the_policy_would(models, tmp_path, monkeypatch, settings):
    settings = {"sampling.logprobs_of": "unmasked", "sampling.min_new_tokens": 2, **settings}
    clients = installed(models / "policy")
    monkeypatch.setattr(CLIENT, clients)
    train_policy(tiny_config(models, tmp_path / "own", **settings))
    train_policy(tiny_config(models, tmp_path / "served", machine__vllm_server=ADDRESS, **settings))
    (client,) = clients.made
    assert client.address == ADDRESS
    each = ["update_named_params", "reset_prefix_cache", "generate"]
    assert client.calls == ["init_communicator", *each, *each]
    own, served = (
        load_file(tmp_path / name / "policy" / "model.safetensors") for name in ("own", "served")
    )
    assert all(torch.equal(value, served[name]) for name, value in own.items())
    rows = [read_jsonl(tmp_path / name / "metrics.jsonl") for name in ("own", "served")]
    assert [row["score"] for row in rows[0]] == [row["score"] for row in rows[1]]


def test_the_weights_of_the_last_step_are_sent_before_the_next(models, tmp_path, monkeypatch):
    clients = installed(models / "policy")
    monkeypatch.setattr(CLIENT, clients)
    train_policy(tiny_config(models, tmp_path, machine__vllm_server=ADDRESS))
    before = load_file(tmp_path / "checkpoints" / "step-000001" / "policy" / "model.safetensors")
    for name, weight in clients.made[0].model.state_dict().items():
        assert torch.equal(weight, before[name]), name


def test_greedy_responses_come_from_the_server_with_the_same_weights(models, tmp_path, monkeypatch):
    clients = installed(models / "policy")
    monkeypatch.setattr(CLIENT, clients)
    settings = {"algorithm.name": "remax", "sampling.logprobs_of": "unmasked", "sampling.top_k": 1}
    train_policy(tiny_config(models, tmp_path / "own", **settings))
    train_policy(tiny_config(models, tmp_path / "served", machine__vllm_server=ADDRESS, **settings))
    each = ["update_named_params", "reset_prefix_cache", "generate", "generate"]
    assert clients.made[0].calls == ["init_communicator", *each, *each]
    own, served = (
        load_file(tmp_path / name / "policy" / "model.safetensors") for name in ("own", "served")
    )
    assert all(torch.equal(value, served[name]) for name, value in own.items())


def test_prompts_go_without_padding_and_answers_come_with_it():
    question, batch, truncated = answered([[8, 2], [8, 9, 9]], min_new_tokens=1, top_p=0.9)
    assert question["prompts"] == [[5], [6, 7]]
    assert question["max_tokens"] == 3
    assert question["top_p"] == 0.9
    assert question["generation_kwargs"] == {"min_tokens": 1, "stop_token_ids": [2]}
    assert batch.response_ids.tolist() == [[8, 2, 0], [8, 9, 9]]
    assert batch.response_mask.tolist() == [[True, True, False], [True] * 3]
    assert truncated == [False, True]


def test_responses_without_end_are_as_long_as_they_may_be():
    lengths = torch.tensor([1, 3])
    question, batch, truncated = answered(
        [[8, 8, 8], [9, 9, 9]], lengths, suppress_tokens=(2,), min_new_tokens=1
    )
    assert question["generation_kwargs"] == {"min_tokens": 3, "stop_token_ids": [2]}
    assert batch.response_ids.tolist() == [[8, 0, 0], [9, 9, 9]]
    assert truncated == [True, True]


def test_the_end_is_forced_on_a_response_of_full_length_alone():
    _, batch, truncated = answered([[8, 9, 9], [8, 2]], force_eos=True)
    assert batch.response_ids.tolist() == [[8, 9, 2], [8, 2, 0]]
    assert truncated == [False, False]


def test_what_the_server_ended_by_a_token_of_its_own_was_cut_off():
    _, batch, truncated = answered([[8, 7], [8, 9, 2]])
    assert batch.response_mask.tolist() == [[True, True, False], [True] * 3]
    assert truncated == [True, False]


def test_every_declared_end_is_asked_of_the_server():
    question, _, truncated = answered([[8, 7], [8, 9, 9]], ends=(2, 7))
    assert question["generation_kwargs"]["stop_token_ids"] == [2, 7]
    assert truncated == [False, True]
    endless, _, _ = answered([[8, 8, 8]] * 2, ends=(2, 7), suppress_tokens=(7, 2, 5))
    assert endless["generation_kwargs"]["min_tokens"] == 3
    one_left, _, _ = answered([[8, 8, 8]] * 2, ends=(2, 7), suppress_tokens=(7,))
    assert one_left["generation_kwargs"]["min_tokens"] == 0


def test_ids_without_a_token_are_asked_to_stay_away():
    question, _, _ = answered([[8, 2], [8, 9, 9]], suppress_tokens=(11, 12))
    assert question["generation_kwargs"]["logit_bias"] == {"11": -100.0, "12": -100.0}
    with pytest.raises(ServerError, match=r"drew the ids \[12\]"):
        answered([[8, 12], [8, 9, 9]], suppress_tokens=(11, 12))


@pytest.mark.parametrize("answers", [[[8]], [[8], []]])
def test_an_answer_too_few_is_an_error(answers):
    with pytest.raises(ServerError, match="2 prompts with 1 responses"):
        answered(answers)


def test_a_server_that_fails_is_an_error_that_says_how_to_go_on():
    class Broken:
        def generate(self, **_: Any) -> Any:
            raise Exception("Request failed: 500")  # as TRL's client does

    with pytest.raises(ServerError, match=r"Request failed: 500\); the last checkpoint is whole"):
        served_responses(
            VLLMServer(Accelerator(cpu=True), Broken()),
            PROMPTS,
            PROMPT_MASK,
            sampling=Sampling(max_new_tokens=3),
            pad_token_id=0,
            eos_token_id=2,
        )


@pytest.mark.parametrize(
    ("raised", "error", "message"),
    [
        (ImportError("vLLM is not installed"), ConfigError, "pip install"),
        (ConnectionError("refused"), ServerError, "there is no vLLM server at"),
        (RuntimeError("no weight-transfer engine"), ConfigError, "cannot be sent weights"),
        (NotImplementedError("needs a CUDA device"), ConfigError, "cannot be sent weights"),
    ],
)
def test_a_server_that_cannot_be_used_is_refused(monkeypatch, raised, error, message):
    class Refusing(TinyVLLM):
        def __init__(self, **_: Any) -> None:
            raise raised

    monkeypatch.setattr(CLIENT, Refusing)
    with pytest.raises(error, match=message):
        connect(ADDRESS, Accelerator(cpu=True))


def test_an_adapter_is_not_sent(models, tmp_path):
    with pytest.raises(ConfigError, match="whole weights, not an adapter"):
        tiny_config(models, tmp_path, machine__vllm_server=ADDRESS, lora__rank=2)
