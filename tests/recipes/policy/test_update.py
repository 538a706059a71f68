"""The pass that old log-probs come from is that of the first update, where one pass is enough."""

import pytest
import torch
from safetensors.torch import load_file
from tiny_policy import tiny_config, write_models

from tokencredit.policy.hf_models import ActorCritic
from tokencredit.recipes.policy import experience
from tokencredit.recipes.policy.train_policy import train_policy
from tokencredit.recipes.run.run_folder import read_jsonl

EPOCHS = 2


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture
def passes(monkeypatch):
    """How many forward passes the policy makes with its critic."""
    made = []
    forward = ActorCritic.forward

    def noted(self, *arguments):
        made.append(torch.is_grad_enabled())
        return forward(self, *arguments)

    monkeypatch.setattr(ActorCritic, "forward", noted)
    return made


def trained(models, output, **changes):
    folder = train_policy(tiny_config(models, output, **changes))
    numbers = [
        {name: value for name, value in row.items() if not name.startswith(("seconds", "tokens"))}
        for row in read_jsonl(output / "metrics.jsonl")
    ]
    return load_file(folder / "model.safetensors"), numbers


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"algorithm.critic": "separate"},
        {"algorithm.name": "grpo", "algorithm.samples_per_prompt": 2},
        {"kl.coef": 0.0, "kl.loss_coef": 0.1, "kl.estimator": "k2"},
        {"sampling.top_k": 4, "sampling.temperature": 0.7},
        {"sampling.truncated": "bootstrap"},
    ],
)
def test_one_pass_less_trains_the_same_policy(models, tmp_path, monkeypatch, passes, changes):
    found = trained(models, tmp_path / "once", **changes)
    once = list(passes)
    passes.clear()
    monkeypatch.setattr(experience, "_begins_update", lambda *_: False)
    expected = trained(models, tmp_path / "twice", **changes)
    assert len(once) == len(passes) - len(expected[1])  # a step makes one pass less
    assert once.count(True) == EPOCHS * len(found[1])
    torch.testing.assert_close(found[0], expected[0], rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(found[1], expected[1], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "changes", [{"algorithm.minibatch_size": 2}, {"algorithm.micro_batch_size": 2}]
)
def test_parts_of_a_batch_have_passes_of_their_own(models, tmp_path, passes, changes):
    trained(models, tmp_path, steps=1, **changes)
    assert passes.count(True) == 2 * EPOCHS  # two parts
    assert passes.count(False) == (2 if "algorithm.micro_batch_size" in changes else 1)


def test_no_graph_is_left_after_the_first_epoch(models, tmp_path, monkeypatch):
    from tokencredit.recipes.policy import update

    had = []
    losses = update._losses

    def noted(*arguments):
        part = arguments[-1]
        had.append(part.first_pass is not None)
        assert not part.old.logprobs.requires_grad
        assert not part.old.values.requires_grad
        return losses(*arguments)

    monkeypatch.setattr(update, "_losses", noted)
    trained(models, tmp_path, steps=1)
    assert had == [True, False]
