"""The example that shows the whole algorithm on one page: what it says of itself."""

import copy
import importlib.util
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_policy import PROMPTS, tiny_config, write_models
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from tokencredit.policy.hf_models import ActorCritic
from tokencredit.recipes.policy.prompts import prompts_of_step, seeded
from tokencredit.recipes.policy.train_policy import train_policy
from tokencredit.toy.hf_tokenizer import toy_tokenizer

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "ppo_loop.py"


@pytest.fixture(scope="module")
def ppo_loop() -> Any:
    spec = importlib.util.spec_from_file_location("ppo_loop", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def weights_of_example(ppo_loop, models: Path, *, steps: int, **settings: Any):
    tokenizer = toy_tokenizer()
    policy = AutoModelForCausalLM.from_pretrained(models / "policy")
    reward_model = AutoModelForSequenceClassification.from_pretrained(models / "reward").eval()
    reference = copy.deepcopy(policy)
    actor_critic = ActorCritic(policy)
    optimizer = torch.optim.AdamW(actor_critic.parameters(), lr=1e-2, eps=1e-5, weight_decay=0.0)
    rows = [tokenizer.encode(prompt) for prompt in PROMPTS]
    for step in range(steps):
        chosen = [rows[i] for i in prompts_of_step(len(rows), 4, 0, step)]
        seeded(0, step, 0)
        ppo_loop.ppo_step(
            actor_critic, reference, reward_model, optimizer, chosen, tokenizer,
            max_new_tokens=5, ppo_epochs=2, **settings,
        )  # fmt: skip
    return policy.state_dict()


def largest_difference(weights, others) -> float:
    return max(float((weights[name] - others[name]).abs().max()) for name in weights)


def test_it_learns_what_train_policy_learns(ppo_loop, tmp_path):
    models = write_models(tmp_path / "models")
    trained = train_policy(tiny_config(models, tmp_path / "run"))
    of_recipe = AutoModelForCausalLM.from_pretrained(trained).state_dict()
    before = AutoModelForCausalLM.from_pretrained(models / "policy").state_dict()
    assert largest_difference(before, of_recipe) > 1e-2
    assert largest_difference(weights_of_example(ppo_loop, models, steps=2), of_recipe) < 1e-4
    without_kl = weights_of_example(ppo_loop, models, steps=2, kl_coef=0.0)
    assert largest_difference(without_kl, of_recipe) > 1e-3


def test_it_prints_every_step_and_a_review_with_its_credit(ppo_loop, capsys):
    rows = ppo_loop.main(steps=2, batch_size=4, max_new_tokens=6, supervised_steps=2)
    printed = capsys.readouterr().out
    steps = [line.split()[1] for line in printed.splitlines() if line.startswith("step")]
    assert steps == ["0", "1"]
    assert rows[0]["kl"] == pytest.approx(0.0, abs=1e-5)  # the policy is its reference at first
    assert rows[1]["kl"] != pytest.approx(0.0, abs=1e-5)
    assert all(math.isfinite(value) for row in rows for value in row.values())
    assert printed.splitlines()[-1].count("(") >= 1
