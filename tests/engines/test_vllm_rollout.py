"""`train-policy --machine.vllm_server` with vLLM itself: a server on the CPU, tiny models."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("vllm", reason="vLLM is installed by make test-engines alone")

from generate_settings import generate_config
from safetensors.torch import load_file
from several_processes import (
    CERTAIN,
    assert_same_training,
    environment_of,
    finished,
    write_tied_models,
)
from tiny_policy import tiny_config, write_models
from transformers import AutoModelForCausalLM, AutoTokenizer
from vllm_servers import WRITING, free_port, serving, started, stop

from tokencredit.errors import ConfigError, ServerError
from tokencredit.recipes.decoding.generate import generate
from tokencredit.recipes.policy import vllm
from tokencredit.recipes.policy.train_policy import train_policy
from tokencredit.recipes.policy.vllm_weights import FolderTransport, _write
from tokencredit.recipes.run.run_folder import read_jsonl
from tokencredit.sampling import Sampling, drawable_tokens, sampling_logits
from tokencredit.server import vllm_writing
from tokencredit.server.asking import RewardServer, json_answer
from tokencredit.server.vllm_scoring import probed, scoring_server
from tokencredit.server.vllm_writing import (
    name_weights,
    text_logprobs,
    weight_version,
    writing_server,
)

pytestmark = pytest.mark.timeout(2400)  # a server takes up to a minute to start, several processes
# The CPU attention of vLLM knows heads of 32 and more.
SHAPE = {"hidden_size": 64, "head_dim": 32}
LIKELIEST = {"sampling.logprobs_of": "unmasked", "sampling.min_new_tokens": 2, "sampling.top_k": 1}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return write_models(tmp_path_factory.mktemp("models"), **SHAPE)


@pytest.fixture(scope="module")
def address(models, tmp_path_factory):
    log = tmp_path_factory.mktemp("server") / "log"
    with serving(models / "policy", log, *WRITING, "--max-model-len", "64") as address:
        yield address


def trained(models: Path, output: Path, **settings: Any) -> dict[str, torch.Tensor]:
    """The final policy."""
    train_policy(tiny_config(models, output, **{"steps": 3, **settings}))
    return load_file(output / "policy" / "model.safetensors")


def assert_trained_alike(models: Path, output: Path, address: str, **settings: Any) -> None:
    """Bit for bit, with responses of the policy itself and of the server."""
    own = trained(models, output / "own", **settings)
    served = trained(models, output / "served", machine__vllm_server=address, **settings)
    assert own.keys() == served.keys()
    assert all(torch.equal(weight, served[name]) for name, weight in own.items())
    rows = [read_jsonl(output / name / "metrics.jsonl") for name in ("own", "served")]
    assert [row["score"] for row in rows[0]] == [row["score"] for row in rows[1]]
    assert len({row["score"] for row in rows[0]}) > 1


@pytest.mark.parametrize(
    "settings",
    [{}, {"sampling.response_lengths": "uniform"}, {"sampling.min_new_tokens": 5}],
    ids=["plain", "uniform", "endless"],
)
def test_training_is_the_same_bit_for_bit(models, address, tmp_path, settings):
    assert_trained_alike(models, tmp_path, address, **{**LIKELIEST, **settings})


def test_two_processes_share_a_server(models, address, tmp_path):
    kinds = {"ddp": "ddp.yaml", "fsdp2": "fsdp2.yaml"}
    jobs = [
        {
            "models": str(models),
            "output": str(tmp_path / name),
            "environment": environment_of(file),
            "machine.vllm_server": address,
            **CERTAIN,
        }
        for name, file in kinds.items()
    ]
    finished(tmp_path, jobs)
    train_policy(tiny_config(models, tmp_path / "alone", **CERTAIN))
    for name in kinds:
        assert_same_training(tmp_path / "alone", tmp_path / name, step=2)


def test_drawn_responses_train(models, address, tmp_path):
    shape = {"sampling.temperature": 0.8, "sampling.top_k": 20, "sampling.top_p": 0.9}
    trained(models, tmp_path, machine__vllm_server=address, **shape)
    rows = read_jsonl(tmp_path / "metrics.jsonl")
    assert rows[0]["kl"] == pytest.approx(0.0, abs=1e-5)
    assert rows[-1]["kl"] != 0.0


def test_the_last_weights_are_those_of_the_step_before(models, address, tmp_path):
    trained(models, tmp_path, machine__vllm_server=address, **{**LIKELIEST, "steps": 2})
    writer = writing_server(RewardServer(address))
    text = list(range(1, 40, 3))
    said = torch.tensor(text_logprobs(writer, text))
    folder = tmp_path / "checkpoints" / "step-000001" / "policy"
    before, after = (
        AutoModelForCausalLM.from_pretrained(f)(torch.tensor([text])).logits[0].log_softmax(-1)
        for f in (folder, tmp_path / "policy")
    )
    places = torch.arange(len(text) - 1)
    torch.testing.assert_close(said, before[places, text[1:]], rtol=0, atol=1e-4)
    assert (said - after[places, text[1:]]).abs().max() > 1e-2


@pytest.mark.parametrize(
    "shape",
    [
        {"temperature": 0.8, "top_k": 20, "top_p": 0.9},
        {"temperature": 1.3, "top_k": 7, "top_p": 1.0},
        {"temperature": 0.5, "top_k": 20, "top_p": 0.6},
    ],
)
def test_the_server_draws_from_the_distribution_that_is_scored(models, address, shape):
    """`logprobs` of vLLM are of the processed distribution here, see WRITING."""
    server = RewardServer(address)
    vllm_writing.load_weights(server, models / "policy")
    vllm_writing.forget_prefixes(server)
    sampling = Sampling(max_new_tokens=6, min_new_tokens=3, **shape)
    asked = {
        "model": writing_server(server).model,
        "prompt": [[1, 20, 30], [1, 44, 5, 9, 60], [1]],
        "n": 8,
        "max_tokens": 6,
        "min_tokens": 3,
        "stop_token_ids": [2],
        "logprobs": 20,
        "return_tokens_as_token_ids": True,
        "return_token_ids": True,
        **shape,
    }
    answer = json_answer(server, vllm_writing._VLLM, "POST", "/v1/completions", asked)
    model = AutoModelForCausalLM.from_pretrained(models / "policy").eval()
    drawable = drawable_tokens(sampling, model.config.vocab_size, 2)
    positions = 0
    for choice in answer["choices"]:
        prompt, ids = asked["prompt"][choice["index"] // 8], choice["token_ids"]
        logits = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1].detach()
        for place, said in enumerate(choice["logprobs"]["top_logprobs"]):
            own = sampling_logits(logits[place], drawable[place], sampling).log_softmax(-1)
            support = {id_ for id_, value in enumerate(own.tolist()) if value > -math.inf}
            theirs = {int(name.split(":")[1]): value for name, value in said.items()}
            theirs = {id_: value for id_, value in theirs.items() if value > -1000}
            assert theirs.keys() == support
            for id_, value in theirs.items():
                assert value == pytest.approx(own[id_].item(), abs=1e-4)
            positions += 1
        assert 2 not in ids[:3]
    assert positions > 100


@pytest.mark.parametrize("method", ["unguided", "best-of-n"])
def test_responses_of_generate_come_from_it(models, address, tmp_path, method):
    server = RewardServer(address)
    vllm_writing.load_weights(server, models / "policy")
    vllm_writing.forget_prefixes(server)
    given = {
        "policy": str(models / "policy"),
        "reward_model": str(models / "reward"),
        "prompts": str(models / "prompts.jsonl"),
        "method": method,
        "n": 3,
        "sampling.max_new_tokens": 8,
        "sampling.top_k": 1,
        "progress": False,
    }
    own = read_jsonl(generate(generate_config(**given, output=str(tmp_path / "own"))))
    given |= {"output": str(tmp_path / "served"), "vllm_server": address}
    served = read_jsonl(generate(generate_config(**given)))
    assert [row["token_ids"] for row in own] == [row["token_ids"] for row in served]
    assert [row["score"] for row in own] == [row["score"] for row in served]
    drawn = given | {"output": str(tmp_path / "drawn"), "sampling.top_k": 0, "n": 8}
    rows = read_jsonl(generate(generate_config(**drawn)))
    assert len(rows) == len(own)
    assert len({tuple(row["token_ids"]) for row in rows}) > 1


def test_another_run_is_noticed(models, address, tmp_path, monkeypatch):
    drawn = vllm.drawn_ids

    def taken(writer: Any, *question: Any, **settings: Any) -> Any:
        name_weights(writer.server, "tokencredit-other-7")
        return drawn(writer, *question, **settings)

    monkeypatch.setattr(vllm, "drawn_ids", taken)
    with pytest.raises(ServerError, match="has the weights 'tokencredit-other-7'; expected"):
        trained(models, tmp_path, machine__vllm_server=address)


def test_weights_that_are_not_in_the_files_are_noticed(models, address, tmp_path, monkeypatch):
    """vLLM takes them without a word."""

    def without_norm(folder: Path, weights: Any, dtype: Any) -> None:
        _write(folder, [(name, w) for name, w in weights if name != "model.norm.weight"], dtype)

    monkeypatch.setattr("tokencredit.recipes.policy.vllm_weights._write", without_norm)
    with pytest.raises(ConfigError, match="does not follow the weights that it is sent"):
        trained(models, tmp_path, machine__vllm_server=address)


def test_a_server_of_a_smaller_vocabulary_keeps_its_weights(models, address, tmp_path, monkeypatch):
    probe = "tokencredit.recipes.policy.vllm_weights.probe_text"
    monkeypatch.setattr(probe, lambda vocabulary, most: [1, vocabulary + 200])
    before = weight_version(RewardServer(address))
    model = AutoModelForCausalLM.from_pretrained(models / "policy")
    model.resize_token_embeddings(500)
    model.save_pretrained(tmp_path / "larger")
    AutoTokenizer.from_pretrained(models / "policy").save_pretrained(tmp_path / "larger")
    with pytest.raises(ServerError, match="out of vocabulary"):
        trained(models, tmp_path / "run", machine__vllm_server=address,
                policy=str(tmp_path / "larger"))  # fmt: skip
    assert weight_version(RewardServer(address)) == before


def test_a_server_that_writes_does_not_score(models, address):
    scoring = scoring_server(RewardServer(address))
    with pytest.raises(ServerError, match="with a reward model: start it with"):
        probed(scoring, [1, 2, 3], outputs=1)


def test_tied_embeddings_half_a_file_and_a_server_that_starts_again(
    tmp_path, tmp_path_factory, monkeypatch
):
    """vLLM on the CPU keeps a tied head, dies of half a file, and has its first weights again."""
    models = tmp_path_factory.mktemp("tied-models")
    write_tied_models(models, **SHAPE)
    port, log = free_port(), tmp_path / "log"
    address = f"http://127.0.0.1:{port}"
    arguments = (models / "policy", port, log, *WRITING, "--max-model-len", "64")
    process = started(*arguments)
    try:
        assert_trained_alike(models, tmp_path / "whole", address, **LIKELIEST)
        assert "ParallelLMHead: Failed to load weights" in log.read_text()

        sends = FolderTransport.__call__
        count = iter(range(100))

        def half(self: FolderTransport, *weights: Any) -> None:
            if next(count) == 3:  # after two to try it and one of the first step
                monkeypatch.setattr("tokencredit.recipes.policy.vllm_weights._write", _write_half)
            sends(self, *weights)

        monkeypatch.setattr(FolderTransport, "__call__", half)
        with pytest.raises(ServerError, match="does not recover from this: start it again"):
            trained(models, tmp_path / "broken", machine__vllm_server=address, **LIKELIEST)
        monkeypatch.undo()

        stop(process)
        process = started(*arguments)
        assert weight_version(RewardServer(address)) == "default"
        ended = trained(models, tmp_path / "broken", machine__vllm_server=address, **LIKELIEST)
        whole = load_file(tmp_path / "whole" / "own" / "policy" / "model.safetensors")
        assert all(torch.equal(weight, ended[name]) for name, weight in whole.items())
    finally:
        stop(process)


def _write_half(folder: Path, weights: Any, dtype: Any) -> None:
    _write(folder, weights, dtype)
    (file,) = folder.iterdir()
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
