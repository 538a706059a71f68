"""Soft Q-learning in `train-policy`: its target network, responses of others, its optimum."""

import json
import math

import ending_models
import pytest
import torch
from accelerate.utils import DistributedType
from safetensors.torch import load_file
from several_processes import require_allowed_under
from tiny_policy import by_command, tiny_config, write_models
from transformers import LlamaForCausalLM

from tokencredit.errors import ConfigError, DataError
from tokencredit.recipes.policy.demonstrations import demonstrations_of
from tokencredit.recipes.policy.models import loaded_models
from tokencredit.recipes.policy.target_network import follow, in_place, opened_target
from tokencredit.recipes.policy.train_policy import train_policy
from tokencredit.recipes.run.run_folder import read_jsonl

SOFT = {"algorithm.name": "soft-q", "kl.coef": 0.5}
ANSWERS = [("the plot is", " great ."), ("this film", " was bad ."), ("a", " fine cast .")]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = write_models(tmp_path_factory.mktemp("models"))
    rows = [json.dumps({"prompt": p, "completion": c}) + "\n" for p, c in ANSWERS]
    (folder / "answers.jsonl").write_text("".join(rows))
    return folder


def checkpoint(folder, step: int):
    return folder / "checkpoints" / f"step-{step:06d}"


def test_resumed_equals_uninterrupted(models, tmp_path):
    data = {"soft_q.data": str(models / "answers.jsonl"), "soft_q.data_batch_size": 2}
    for name, parts in {"whole": [3], "parts": [1, 3]}.items():
        for steps in parts:
            train_policy(tiny_config(models, tmp_path / name, steps=steps, **SOFT, **data))
    for file in ("target.safetensors", "policy/model.safetensors", "optimizer.safetensors"):
        one, other = (load_file(checkpoint(tmp_path / n, 3) / file) for n in ("whole", "parts"))
        assert all(torch.equal(value, other[name]) for name, value in one.items()), file
    rows = read_jsonl(tmp_path / "whole" / "metrics.jsonl")
    alone = tiny_config(models, tmp_path / "alone", steps=1, **SOFT)
    train_policy(alone)
    first = read_jsonl(tmp_path / "alone" / "metrics.jsonl")[0]
    assert rows[0]["score"] == pytest.approx(first["score"], rel=1e-5)  # of what was drawn alone
    assert rows[0]["policy_loss"] != pytest.approx(first["policy_loss"], rel=1e-2)


def test_the_target_follows_the_policy_after_every_step(models, tmp_path):
    train_policy(tiny_config(models, tmp_path, steps=1, **SOFT, soft_q__target_rate=0.25))
    target = load_file(checkpoint(tmp_path, 1) / "target.safetensors")
    after = load_file(checkpoint(tmp_path, 1) / "policy" / "model.safetensors")
    before = load_file(models / "policy" / "model.safetensors")
    assert {f"policy.{name}" for name in after} == set(target)
    for name, value in after.items():
        torch.testing.assert_close(target[f"policy.{name}"], before[name].lerp(value, 0.25))
    assert any(not torch.equal(before[name], value) for name, value in after.items())


def test_a_target_in_place_is_taken_out_again():
    layer = torch.nn.Linear(2, 1, bias=False)
    target = opened_target(layer, None)
    before, own = target["weight"].clone(), layer.weight.data
    own += 1.0
    with in_place(target, layer):
        assert torch.equal(layer.weight, before)
    assert torch.equal(layer.weight, own)
    follow(target, layer, 1.0)
    assert torch.equal(target["weight"], own)
    layer.requires_grad_(False)
    assert opened_target(layer, None) == {}


def test_without_rewards_the_reference_is_the_optimum(models, tmp_path):
    """All values are 0 and nothing is to be learnt, at any token of any response."""
    config = tiny_config(models, tmp_path, steps=1, **SOFT, algorithm__epochs=1)
    train_policy(config, token_scorer=lambda batch: torch.zeros(batch.response_ids.shape))
    assert read_jsonl(tmp_path / "metrics.jsonl")[0]["policy_loss"] == pytest.approx(0, abs=1e-8)


def test_the_soft_optimum_is_found(models, tmp_path):
    """Responses of one token: even ids earn half a nat, at a price of a quarter of one."""
    settings = {
        "algorithm.name": "soft-q",
        "kl.coef": 0.25,
        "steps": 60,
        "optimizer.learning_rate": 0.03,
        "batch_size": 64,
        "data.limit": 1,
        "sampling.max_new_tokens": 1,
        "sampling.response_lengths": "uniform",
        "algorithm.epochs": 1,
        "record.checkpoint_every": 60,
    }
    policy = train_policy(
        tiny_config(models, tmp_path, **settings),
        token_scorer=lambda batch: 0.5 * (batch.response_ids % 2 == 0).float(),
    )
    config = tiny_config(models, tmp_path, **settings)
    reading = loaded_models(config, None, torch.device("cpu")).reading
    ids = torch.tensor(reading.prompt_rows(["the plot is"], where="here"))
    odds = []
    for folder in (models / "policy", policy):
        model = LlamaForCausalLM.from_pretrained(folder)
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, -1]
        logits[list(reading.turn_ends)] = -math.inf
        share = logits.softmax(-1)[::2].sum()
        odds.append(float((share / (1 - share)).log()))
    assert odds[1] - odds[0] == pytest.approx(2.0, abs=0.03)  # 1.975 after 60 steps


def test_from_the_command_line_as_published_and_with_adapters(models, tmp_path):
    arguments = {
        "algorithm.name": "soft-q",
        "algorithm.micro_batch_size": 2,
        "soft_q.regulariser": "entropy",
        "soft_q.consistency": "multi-step",
        "soft_q.reversed_share": 0,
        "soft_q.data": models / "answers.jsonl",
        "soft_q.data_batch_size": 1,
        "lora.rank": 2,
    }
    (row,) = by_command(models, tmp_path / "run", **arguments)
    assert row["gradient_norm"] > 0
    names = load_file(checkpoint(tmp_path / "run", 1) / "target.safetensors")
    assert names
    assert all("lora_" in name for name in names)


def test_responses_of_others_are_as_the_policy_would_have_written_them(models, tmp_path):
    data = {"soft_q.data": str(models / "answers.jsonl")}
    config = tiny_config(models, tmp_path, **SOFT, **data, sampling__max_new_tokens=3)
    reading = loaded_models(config, None, torch.device("cpu")).reading
    found = demonstrations_of(config, reading)
    assert found.prompts == reading.prompt_rows([p for p, _ in ANSWERS], where="here")
    whole = [reading.tokenizer.encode(text, add_special_tokens=False) for _, text in ANSWERS]
    end = reading.turn_ends[0]
    assert found.responses == [[*ids, end][:3] for ids in whole]
    assert found.ended == [len(ids) < 3 for ids in whole]
    uniform = {"sampling.response_lengths": "uniform"}
    config = tiny_config(models, tmp_path, **SOFT, **data, **uniform)
    without_end = demonstrations_of(config, reading)
    assert without_end.responses == whole
    assert not any(without_end.ended)
    config = tiny_config(models, tmp_path, **SOFT, **data, sampling__min_new_tokens=5)
    with pytest.raises(DataError, match=r"answers.jsonl, row 0: a response of 3 tokens; expected"):
        demonstrations_of(config, reading)


def test_responses_of_others_to_a_chat_policy_end_as_its_turns_do(tmp_path):
    folder = ending_models.write_models(tmp_path / "models")
    asked = [{"role": "user", "content": "hello"}]
    row = {"prompt": asked, "completion": [{"role": "assistant", "content": "good plot"}]}
    cut = {**row, "ended": False}
    (folder / "answers.jsonl").write_text(f"{json.dumps(row)}\n{json.dumps(cut)}\n")
    data = {"soft_q.data": str(folder / "answers.jsonl")}
    config = tiny_config(folder, tmp_path, **SOFT, **data, sampling__max_new_tokens=40)
    reading = loaded_models(config, None, torch.device("cpu")).reading
    found = demonstrations_of(config, reading)
    assert [reading.tokenizer.decode(ids) for ids in found.prompts] == [
        "user hello<eot>\nassistant "
    ] * 2
    texts = [reading.tokenizer.decode(ids) for ids in found.responses]
    assert texts == ["good plot<eot>", "good plot"]
    assert found.ended == [True, False]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"soft_q.data": "x.jsonl"}, r"soft_q\.data is 'x\.jsonl' with algorithm\.name 'ppo'"),
        ({**SOFT, "kl.coef": 0.0}, r"kl\.coef is 0\.0 .* expected kl\.coef above 0"),
        ({**SOFT, "kl.penalty": "sqrt-chi-square"}, r"kl\.penalty 'sqrt-chi-square'"),
        ({**SOFT, "soft_q.reversed_share": 1.5}, r"reversed_share is 1\.5; expected a share"),
        ({**SOFT, "soft_q.target_rate": 0.0}, r"target_rate is 0\.0; expected more than 0"),
        ({**SOFT, "soft_q.data_batch_size": 0}, r"soft_q\.data_batch_size is 0"),
        ({**SOFT, "algorithm.whiten_advantages": True}, "which has no advantages"),
        (
            {
                **SOFT,
                "soft_q.data": "x.jsonl",
                "algorithm.samples_per_prompt": 2,
                "selection.keep": "best",
            },
            r"selection\.keep is 'best' with soft_q\.data",
        ),
    ],
)
def test_contradictions_are_refused(models, tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        tiny_config(models, tmp_path, **changes)


@pytest.mark.parametrize("kind", [DistributedType.FSDP, DistributedType.DEEPSPEED])
def test_a_target_network_needs_whole_weights(models, tmp_path, kind):
    config = tiny_config(models, tmp_path, **SOFT)
    require_allowed_under(DistributedType.NO, config)
    with pytest.raises(ConfigError, match="'soft-q', whose target network is a copy of whole"):
        require_allowed_under(kind, config)
