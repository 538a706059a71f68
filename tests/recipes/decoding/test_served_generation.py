"""`generate` with responses from a vLLM server, by a stand-in that answers alike.

tests/engines/test_vllm_rollout.py asks vLLM itself.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from generate_settings import generate_config
from tiny_policy import PROMPTS, write_models
from tiny_vllm import TinyVLLM, listening

from tokencredit.decoding.rules import GUIDANCE_METHODS
from tokencredit.decoding.search.hf_methods import SEARCHES
from tokencredit.errors import ConfigError, ServerError
from tokencredit.recipes.decoding.generate import generate
from tokencredit.recipes.run.run_folder import read_jsonl

WHOLE = ("unguided", "best-of-n")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return write_models(tmp_path_factory.mktemp("models"))


def settings(models: Path, output: Path, **changes: Any) -> dict[str, Any]:
    return {
        "policy": str(models / "policy"),
        "reward_model": str(models / "reward"),
        "prompts": str(models / "prompts.jsonl"),
        "output": str(output),
        "sampling.max_new_tokens": 6,
        "batch_size": 4,
        "n": 3,
        "progress": False,
        **changes,
    }


def found(models: Path, output: Path, tiny: TinyVLLM | None = None, **changes: Any) -> Any:
    given = settings(models, output, **changes)
    if tiny is None:
        return read_jsonl(generate(generate_config(**given)))
    with listening(tiny) as address:
        return read_jsonl(generate(generate_config(**given, vllm_server=address)))


@pytest.mark.parametrize("method", WHOLE)
def test_the_likeliest_responses_are_those_of_the_policy(models, tmp_path, method):
    likeliest = {"method": method, "sampling.top_k": 1, "sampling.min_new_tokens": 2}
    tiny = TinyVLLM(models / "policy")
    served = found(models, tmp_path / "served", tiny, **likeliest)
    own = found(models, tmp_path / "own", **likeliest)
    for one, other in zip(own, served, strict=True):
        for name in ("token_ids", "score", "response", "lm_positions", "reward_positions"):
            assert one[name] == other[name], name
    assert "kl" in own[0] or method == "best-of-n"
    assert "kl" not in served[0]  # it is not known where top-k makes it
    assert tiny.calls == ["/v1/models", *["/v1/completions"] * 3]  # the probe, and 6 prompts of 4


def test_the_best_of_what_the_server_drew_is_taken(models, tmp_path):
    tiny, asked = TinyVLLM(models / "policy"), []
    tiny.replies["/v1/completions"] = lambda body: asked.append(body)
    rows = found(models, tmp_path, tiny, method="best-of-n", n=16)
    (_, first, second) = asked
    assert [len(first["prompt"]), len(second["prompt"])] == [64, 32]
    assert first["prompt"][:16] == [first["prompt"][0]] * 16
    assert first["prompt"][16] != first["prompt"][0]
    assert "seed" not in first
    one = found(models, tmp_path / "one", TinyVLLM(models / "policy"), method="unguided")
    assert sum(row["score"] for row in rows) > sum(row["score"] for row in one)
    assert one[0]["kl"] == 0.0
    assert json.loads((tmp_path / "metrics.json").read_text())["kl_at_most"] > 1


def test_a_server_of_another_model_is_an_error(models, tmp_path):
    tiny = TinyVLLM(models / "policy")
    with torch.no_grad():
        tiny.model.lm_head.weight.mul_(0.5)
    with pytest.raises(ConfigError, match="has another model than `policy`: the log-prob"):
        found(models, tmp_path, tiny, method="unguided")


def test_a_server_that_fails_is_an_error(models, tmp_path):
    tiny = TinyVLLM(models / "policy")
    tiny.replies["/v1/models"] = (404, {"detail": "Not Found"})
    with pytest.raises(ServerError, match="is it a vLLM server with a model that writes"):
        found(models, tmp_path, tiny, method="unguided")


@pytest.mark.parametrize("method", sorted({*GUIDANCE_METHODS, *SEARCHES} - {*WHOLE}))
def test_methods_that_look_at_the_policy_on_the_way_are_refused(method):
    implicit = method in SEARCHES and "implicit model" in SEARCHES[method].needs
    changes = {"implicit.model": "dpo"} if implicit else {}
    changes |= {"cards.target_reward": 1.0} if method == "cards" else {}
    given = settings(Path("models"), Path("out"), method=method, **changes)
    generate_config(**(given | ({"n": 4} if method == "tree-bon" else {})))
    with pytest.raises(ConfigError, match="expected unguided or best-of-n, or no vllm_server"):
        generate_config(
            **(given | {"n": 4, "vllm_server": "http://localhost:8000"}),
        )


def test_every_prompt_is_answered(models, tmp_path):
    rows = found(models, tmp_path, TinyVLLM(models / "policy"), method="unguided")
    assert len(rows) == len(PROMPTS)
    assert all(1 <= len(row["token_ids"]) <= 6 for row in rows)
