"""Responses from a vLLM server that is sent the policy's weights, by a stand-in that answers alike.

tests/engines/test_vllm_rollout.py asks vLLM itself.
"""

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from several_processes import write_tied_models
from tiny_policy import tiny_config, write_models
from tiny_vllm import TinyVLLM, failure, listening

from tokencredit.errors import ConfigError, RunFolderError, ServerError
from tokencredit.recipes.policy.setting_groups import MachineSettings
from tokencredit.recipes.policy.train_policy import train_policy
from tokencredit.recipes.policy.vllm import VLLMServer, connect, served_responses
from tokencredit.recipes.policy.vllm_weights import WeightSender
from tokencredit.recipes.run.run_folder import read_jsonl
from tokencredit.sampling import Sampling
from tokencredit.server import vllm_writing
from tokencredit.server.asking import RewardServer
from tokencredit.server.vllm_writing import WritingServer, written_ids

PROMPTS = torch.tensor([[0, 5], [6, 7]])
PROMPT_MASK = torch.tensor([[False, True], [True, True]])
CERTAIN = {"sampling.logprobs_of": "unmasked", "sampling.min_new_tokens": 2, "sampling.top_k": 1}
PUSH = ["/update_weight_version", "/weight_checker", "/collective_rpc", "/reset_prefix_cache",
        "/weight_info", "/update_weight_version"]  # fmt: skip
STEP = ["/weight_info", *PUSH, "/v1/completions", "/v1/completions", "/weight_info"]
FIRST = ["/v1/models", "/weight_info", "/server_info", "/weight_info", "/v1/completions", *PUSH,
         "/v1/completions", *STEP[1:]]  # fmt: skip


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def tied_models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tied")
    write_tied_models(folder)
    return folder


def trained(models: Path, output: Path, tiny: TinyVLLM, **settings: Any) -> Path:
    """The final policy of a training with this server."""
    with listening(tiny) as address:
        train_policy(tiny_config(models, output, machine__vllm_server=address, **settings))
    return output / "policy" / "model.safetensors"


def assert_same_weights(one: Path, other: Path) -> None:
    own, served = load_file(one), load_file(other)
    assert own.keys() == served.keys()
    assert all(torch.equal(value, served[name]) for name, value in own.items())


@pytest.mark.parametrize("settings", [{}, {"sampling.response_lengths": "uniform"}])
def test_a_server_draws_what_the_policy_would(models, tmp_path, settings):
    tiny = TinyVLLM(models / "policy")
    served = trained(models, tmp_path / "served", tiny, **CERTAIN, **settings)
    train_policy(tiny_config(models, tmp_path / "own", **CERTAIN, **settings))
    assert tiny.calls == [*FIRST, *STEP]
    assert_same_weights(tmp_path / "own" / "policy" / "model.safetensors", served)
    rows = [read_jsonl(tmp_path / name / "metrics.jsonl") for name in ("own", "served")]
    assert [row["score"] for row in rows[0]] == [row["score"] for row in rows[1]]
    assert not list((tmp_path / "served").glob("vllm*"))


def test_the_weights_of_the_last_step_are_sent_before_the_next(models, tmp_path):
    tiny = TinyVLLM(models / "policy")
    trained(models, tmp_path, tiny)
    before = load_file(tmp_path / "checkpoints" / "step-000001" / "policy" / "model.safetensors")
    for name, weight in tiny.model.state_dict().items():
        assert torch.equal(weight, before[name]), name


def test_greedy_responses_come_from_the_server_with_the_same_weights(models, tmp_path):
    tiny = TinyVLLM(models / "policy")
    settings = {**CERTAIN, "algorithm.name": "remax"}
    served = trained(models, tmp_path / "served", tiny, **settings)
    train_policy(tiny_config(models, tmp_path / "own", **settings))
    drawn = ["/v1/completions", "/weight_info"]
    assert tiny.calls == [*FIRST, *drawn, *STEP, *drawn]
    assert_same_weights(tmp_path / "own" / "policy" / "model.safetensors", served)


def test_a_tied_head_that_stays_old_is_sent_by_its_own_name(tied_models, tmp_path):
    tiny = TinyVLLM(tied_models / "policy", keeps_head=True)
    served = trained(tied_models, tmp_path / "served", tiny, **CERTAIN)
    train_policy(tiny_config(tied_models, tmp_path / "own", **CERTAIN))
    assert tiny.calls.count("/collective_rpc") == 4  # twice to try it, once in each step
    assert_same_weights(tmp_path / "own" / "policy" / "model.safetensors", served)


def test_a_tied_head_is_sent_once_where_that_is_enough(tied_models, tmp_path):
    tiny = TinyVLLM(tied_models / "policy")
    trained(tied_models, tmp_path, tiny, **CERTAIN)
    assert tiny.calls == [*FIRST, *STEP]


def test_files_of_weights_are_split_where_they_grow_large(models, tmp_path, monkeypatch):
    monkeypatch.setattr("tokencredit.recipes.policy.vllm_weights._FILE_BYTES", 5000)
    tiny, files = TinyVLLM(models / "policy"), []

    def reload(folder: Path) -> Any:
        files.append(len(list(folder.iterdir())))
        return TinyVLLM.reload(tiny, folder)

    monkeypatch.setattr(tiny, "reload", reload)
    trained(models, tmp_path / "run", tiny, machine__vllm_folder=str(tmp_path / "shared"))
    assert files == [5, 5, 5]
    assert list((tmp_path / "shared").iterdir()) == []


# What would be old weights.


class Forgetful(TinyVLLM):
    """Does not load what it should."""

    def __init__(self, folder: Path, forgets: str) -> None:
        self.forgets = forgets
        super().__init__(folder)

    def take(self, found: dict[str, torch.Tensor]) -> None:
        super().take({name: w for name, w in found.items() if self.forgets not in name})


@pytest.mark.parametrize("forgets", ["lm_head", "embed_tokens", "layers.1.mlp.down_proj", ""])
def test_weights_that_do_not_arrive_are_an_error(models, tmp_path, forgets):
    with pytest.raises(ConfigError, match="does not follow the weights that it is sent: the log-p"):
        trained(models, tmp_path, Forgetful(models / "policy", forgets))


def test_weights_that_stop_arriving_are_an_error(models, tmp_path, monkeypatch):
    tiny = TinyVLLM(models / "policy")
    loads: list[Path] = []

    def reload(folder: Path) -> Any:
        loads.append(folder)
        return (200, {"results": [None]}) if len(loads) == 3 else TinyVLLM.reload(tiny, folder)

    monkeypatch.setattr(tiny, "reload", reload)
    message = "does not have the weights that it was sent: the log-probabilities of a text of 48"
    with pytest.raises(ServerError, match=message):
        trained(models, tmp_path, tiny)


def test_a_server_that_has_started_again_between_steps_gets_everything_anew(models, tmp_path):
    tiny = TinyVLLM(models / "policy")
    train_policy(tiny_config(models, tmp_path / "own", **CERTAIN))
    count = iter(range(100))

    def at_the_second_step(_: Any) -> None:
        if next(count) == 5:  # after two at the start, two while sending and one after drawing
            tiny.start()

    tiny.replies["/weight_info"] = at_the_second_step
    served = trained(models, tmp_path / "served", tiny, **CERTAIN)
    assert tiny.calls.count("/collective_rpc") == 4
    assert_same_weights(tmp_path / "own" / "policy" / "model.safetensors", served)


def test_a_server_that_starts_again_while_it_draws_is_an_error(models, tmp_path):
    tiny = TinyVLLM(models / "policy")
    tiny.replies["/v1/completions"] = lambda body: tiny.start() if "min_tokens" in body else None
    with pytest.raises(
        ServerError, match=r"has the weights 'default'; expected 'tokencredit-.*-2'"
    ):
        trained(models, tmp_path, tiny)


def test_another_run_with_the_same_server_is_an_error(models, tmp_path):
    tiny = TinyVLLM(models / "policy")

    def taken(body: Any) -> None:
        if "min_tokens" in body:
            tiny.version = "tokencredit-other-7"

    tiny.replies["/v1/completions"] = taken
    with pytest.raises(ServerError, match="has the weights 'tokencredit-other-7'; expected"):
        trained(models, tmp_path / "while-drawing", tiny)
    tiny = TinyVLLM(models / "policy")
    tiny.replies["/reset_prefix_cache"] = lambda _: setattr(tiny, "version", "tokencredit-other-7")
    with pytest.raises(ServerError, match="another run has sent the vLLM server"):
        trained(models, tmp_path / "while-sending", tiny)


def test_two_runs_one_after_the_other_may_share_a_server(models, tmp_path):
    tiny = TinyVLLM(models / "policy")
    first = trained(models, tmp_path / "first", tiny, **CERTAIN)
    second = trained(models, tmp_path / "second", tiny, **CERTAIN)
    assert_same_weights(first, second)


def test_half_a_file_is_an_error_that_says_what_to_do(models, tmp_path, monkeypatch):
    tiny = TinyVLLM(models / "policy")

    def reload(folder: Path) -> Any:
        (file,) = folder.iterdir()
        file.write_bytes(file.read_bytes()[:5000])
        return TinyVLLM.reload(tiny, folder)

    monkeypatch.setattr(tiny, "reload", reload)
    with pytest.raises(ServerError, match="does not recover from this: start it again, then run"):
        trained(models, tmp_path, tiny)
    assert not list(tmp_path.glob("vllm*"))


def test_a_server_of_a_smaller_vocabulary_keeps_its_weights(models, tmp_path):
    tiny = TinyVLLM(models / "policy")
    tiny.model.config.vocab_size = 150
    with pytest.raises(ServerError, match="answered 400, Token id 152 is out of vocabulary"):
        trained(models, tmp_path, tiny)
    assert "/weight_checker" not in tiny.calls


def test_a_server_of_another_model_is_an_error(models, tmp_path, tmp_path_factory):
    other = write_models(tmp_path_factory.mktemp("other"), hidden_size=32)
    with pytest.raises(ServerError, match="serve the model of `policy`"):
        trained(models, tmp_path, TinyVLLM(other / "policy"))


def test_a_server_that_computes_otherwise_is_an_error(models, tmp_path):
    tiny = TinyVLLM(models / "policy")
    tiny.model.lm_head.register_forward_hook(lambda _m, _i, out: 0.9 * out)
    with pytest.raises(ConfigError, match=r"expected at most 0\.002"):
        trained(models, tmp_path / "float32", tiny)
    half = TinyVLLM(models / "policy", dtype="bfloat16")
    trained(models, tmp_path / "bfloat16", half)  # weights were rounded, and that is allowed for
    sent = tmp_path / "bfloat16" / "checkpoints" / "step-000001" / "policy" / "model.safetensors"
    head = half.model.lm_head.weight
    assert torch.equal(head, head.bfloat16())
    assert not torch.equal(head, load_file(sent)["lm_head.weight"])


def test_a_folder_that_cannot_be_written_is_an_error(models, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match=r"set machine\.vllm_folder"):
        trained(
            models,
            tmp_path / "run",
            TinyVLLM(models / "policy"),
            machine__vllm_folder=str(tmp_path / "file"),
        )


# Over NCCL, by TRL's client.


def over_nccl(tiny: TinyVLLM, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replace TRL's client by one that hands weights to the stand-in; the calls that it gets."""
    vllm_client = pytest.importorskip("trl.generation.vllm_client", reason="TRL is an extra")
    real, calls = vllm_client.VLLMClient, []

    def fitting(name: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        calls.append(name)
        bound = inspect.signature(getattr(real, name)).bind(None, *args, **kwargs)
        return dict(list(bound.arguments.items())[1:])

    class Client:
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            fitting("__init__", *args, **kwargs)

        def init_communicator(self, *args: Any, **kwargs: Any) -> None:
            fitting("init_communicator", *args, **kwargs)

        def update_named_params(self, *args: Any, **kwargs: Any) -> None:
            given = fitting("update_named_params", *args, **kwargs)
            found = {}
            pairs = zip(given["metadata"], given["named_params"], strict=True)
            for (name, dtype, shape), (same_name, weight) in pairs:
                assert (name, dtype, shape) == (same_name, "float32", list(weight.shape))
                found[name] = weight
            tiny.take(found)

    monkeypatch.setattr(vllm_client, "VLLMClient", Client)
    return calls


def test_weights_over_nccl(models, tmp_path, monkeypatch):
    tiny = TinyVLLM(models / "policy")
    calls = over_nccl(tiny, monkeypatch)
    settings = {**CERTAIN, "machine.vllm_weights": "nccl"}
    served = trained(models, tmp_path / "served", tiny, **settings)
    train_policy(tiny_config(models, tmp_path / "own", **CERTAIN))
    assert calls == ["__init__", "init_communicator", *["update_named_params"] * 3]
    assert "/collective_rpc" not in tiny.calls
    assert_same_weights(tmp_path / "own" / "policy" / "model.safetensors", served)


@pytest.mark.parametrize(
    ("device", "nccl", "expected"),
    [("cuda", {"backend": "nccl"}, True), ("cuda", None, False), ("cpu", {"backend": 1}, False)],
)
def test_nccl_is_taken_where_there_is_a_gpu_and_the_server_is_ready(
    models, monkeypatch, device, nccl, expected
):
    tiny = TinyVLLM(models / "policy")
    tiny.nccl, calls = nccl, over_nccl(tiny, monkeypatch)
    accelerator = Accelerator(cpu=True)
    monkeypatch.setattr(Accelerator, "device", torch.device(device))
    with listening(tiny) as address:
        connect(MachineSettings(vllm_server=address), accelerator, Path("output"))
    assert bool(calls) == expected


@pytest.mark.parametrize(
    ("raised", "message"),
    [
        (ImportError("vLLM is not installed"), "pip install"),
        (RuntimeError("no weight-transfer engine"), "cannot be sent weights over NCCL"),
        (NotImplementedError("needs a CUDA device"), "or machine.vllm_weights 'folder'"),
    ],
)
def test_what_keeps_weights_from_nccl_is_told(models, monkeypatch, raised, message):
    vllm_client = pytest.importorskip("trl.generation.vllm_client", reason="TRL is an extra")

    def refusing(**_: Any) -> None:
        raise raised

    monkeypatch.setattr(vllm_client, "VLLMClient", refusing)
    with listening(TinyVLLM(models / "policy")) as address:
        machine = MachineSettings(vllm_server=address, vllm_weights="nccl")
        with pytest.raises(ConfigError, match=message):
            connect(machine, Accelerator(cpu=True), Path("output"))


# What listens there.


def test_nobody_there_is_an_error(monkeypatch):
    monkeypatch.setattr(RewardServer, "sleep", lambda _: None)
    machine = MachineSettings(vllm_server="http://127.0.0.1:1")
    with pytest.raises(ServerError, match=r"the vLLM server at http:.* was asked 4 times"):
        connect(machine, Accelerator(cpu=True), Path("output"))


@pytest.mark.parametrize(
    ("path", "reply", "error", "message"),
    [
        ("/weight_info", (404, {"detail": "Not Found"}), ConfigError, "VLLM_SERVER_DEV_MODE=1"),
        ("/server_info", (404, {"detail": "Not Found"}), ConfigError, "vLLM 0.32 or newer"),
        ("/v1/models", (404, {"detail": "Not Found"}), ServerError, "with a model that writes"),
        ("/v1/models", (200, {"data": []}), ServerError, "without data.0"),
        ("/server_info", (200, {"vllm_config": 3}), ServerError, "without weight_transfer_config"),
    ],
)
def test_what_does_not_answer_like_vllm_is_an_error(models, path, reply, error, message):
    tiny = TinyVLLM(models / "policy")
    tiny.replies[path] = reply
    with listening(tiny) as address, pytest.raises(error, match=message):
        connect(MachineSettings(vllm_server=address), Accelerator(cpu=True), Path("output"))


def test_a_model_that_does_not_write_is_an_error(models, tmp_path):
    tiny = TinyVLLM(models / "policy")
    tiny.replies["/v1/completions"] = (404, {"detail": "Not Found"})
    with pytest.raises(ServerError, match="is it a vLLM server with a model that writes"):
        trained(models, tmp_path, tiny)


@pytest.mark.parametrize("said", [None, [None], [None, *[{}] * 47], "a"])
def test_an_answer_without_log_probabilities_is_an_error(models, tmp_path, said):
    tiny = TinyVLLM(models / "policy")
    tiny.replies["/v1/completions"] = (200, {"choices": [{"prompt_logprobs": said}]})
    with pytest.raises(ServerError, match=r"prompt_logprobs|without [34]\.logprob"):
        trained(models, tmp_path, tiny)


def test_a_cache_that_is_not_reset_is_an_error(models, tmp_path):
    tiny = TinyVLLM(models / "policy")
    tiny.replies["/reset_prefix_cache"] = (200, {"success": False})
    with pytest.raises(ServerError, match="did not reset its prefix cache"):
        trained(models, tmp_path, tiny)


# What is asked for, and what comes back.


def answered(
    monkeypatch: pytest.MonkeyPatch,
    answers: list[list[int]],
    lengths: torch.Tensor | None = None,
    *,
    ends: Any = 2,
    **sampling: Any,
):
    question: dict[str, Any] = {}

    def written(_: Any, prompts: list[list[int]], settings: dict[str, Any]) -> list[list[int]]:
        question.update(settings, prompts=prompts)
        return answers

    monkeypatch.setattr(vllm_writing, "written_ids", written)
    writer = WritingServer(RewardServer("http://127.0.0.1:1"), "tiny", 64)
    batch, truncated = served_responses(
        VLLMServer(Accelerator(cpu=True), writer, WeightSender()),
        PROMPTS,
        PROMPT_MASK,
        sampling=Sampling(max_new_tokens=3, **sampling),
        pad_token_id=0,
        eos_token_id=ends,
        response_lengths=lengths,
    )
    return question, batch, truncated.tolist()


def test_prompts_go_without_padding_and_answers_come_with_it(monkeypatch):
    question, batch, truncated = answered(
        monkeypatch, [[8, 2], [8, 9, 9]], min_new_tokens=1, top_p=0.9
    )
    assert question["prompts"] == [[5], [6, 7]]
    assert question["max_tokens"] == 3
    assert question["top_p"] == 0.9
    assert question["min_tokens"] == 1
    assert question["stop_token_ids"] == [2]
    assert batch.response_ids.tolist() == [[8, 2, 0], [8, 9, 9]]
    assert batch.response_mask.tolist() == [[True, True, False], [True] * 3]
    assert truncated == [False, True]


def test_responses_without_end_are_as_long_as_they_may_be(monkeypatch):
    lengths = torch.tensor([1, 3])
    question, batch, truncated = answered(
        monkeypatch, [[8, 8, 8], [9, 9, 9]], lengths, suppress_tokens=(2,), min_new_tokens=1
    )
    assert question["min_tokens"] == 3
    assert question["stop_token_ids"] == [2]
    assert batch.response_ids.tolist() == [[8, 0, 0], [9, 9, 9]]
    assert truncated == [True, True]


def test_the_end_is_forced_on_a_response_of_full_length_alone(monkeypatch):
    _, batch, truncated = answered(monkeypatch, [[8, 9, 9], [8, 2]], force_eos=True)
    assert batch.response_ids.tolist() == [[8, 9, 2], [8, 2, 0]]
    assert truncated == [False, False]


def test_what_the_server_ended_by_a_token_of_its_own_was_cut_off(monkeypatch):
    _, batch, truncated = answered(monkeypatch, [[8, 7], [8, 9, 2]])
    assert batch.response_mask.tolist() == [[True, True, False], [True] * 3]
    assert truncated == [True, False]


def test_every_declared_end_is_asked_of_the_server(monkeypatch):
    question, _, truncated = answered(monkeypatch, [[8, 7], [8, 9, 9]], ends=(2, 7))
    assert question["stop_token_ids"] == [2, 7]
    assert truncated == [False, True]
    endless, _, _ = answered(monkeypatch, [[8, 8, 8]] * 2, ends=(2, 7), suppress_tokens=(7, 2, 5))
    assert endless["min_tokens"] == 3
    one_left, _, _ = answered(monkeypatch, [[8, 8, 8]] * 2, ends=(2, 7), suppress_tokens=(7,))
    assert one_left["min_tokens"] == 0


def test_ids_without_a_token_are_asked_to_stay_away(monkeypatch):
    question, _, _ = answered(monkeypatch, [[8, 2], [8, 9, 9]], suppress_tokens=(11, 12))
    assert question["logit_bias"] == {"11": -100.0, "12": -100.0}
    with pytest.raises(ServerError, match=r"drew the ids \[12\]"):
        answered(monkeypatch, [[8, 12], [8, 9, 9]], suppress_tokens=(11, 12))


@pytest.mark.parametrize("answers", [[[8]], [[8], []]])
def test_an_answer_too_few_is_an_error(models, answers):
    tiny = TinyVLLM(models / "policy")
    tiny.replies["/v1/completions"] = (200, {"choices": [{"token_ids": row} for row in answers]})
    with listening(tiny) as address:
        writer = WritingServer(RewardServer(address), "tiny", 64)
        with pytest.raises(ServerError, match="2 prompts with 1 responses"):
            written_ids(writer, [[5], [6]], {})


def test_a_server_that_fails_is_an_error_that_says_how_to_go_on(models, tmp_path):
    tiny = TinyVLLM(models / "policy")
    broken = failure(500, "EngineCore encountered an issue.")
    tiny.replies["/v1/completions"] = lambda body: broken if "min_tokens" in body else None
    with pytest.raises(ServerError, match=r"an issue\.\. The last checkpoint is whole: start"):
        trained(models, tmp_path, tiny)


def test_an_adapter_is_not_sent(models, tmp_path):
    with pytest.raises(ConfigError, match="whole weights, not an adapter"):
        tiny_config(models, tmp_path, machine__vllm_server="http://localhost:8000", lora__rank=2)
