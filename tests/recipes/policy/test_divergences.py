"""Terms besides the clipped loss: chi-square, entropy, KL the other way, texts; critics first."""

import json

import pytest
import torch
from safetensors.torch import load_file
from several_processes import CERTAIN, assert_same_training, finished
from tiny_policy import tiny_config, write_models
from tokenizers import processors

from tokencredit.errors import ConfigError, DataError
from tokencredit.masking import masked_sum
from tokencredit.policy.losses.divergences import chi_square_terms, dense_chi_square_penalties
from tokencredit.recipes.policy import opened_run
from tokencredit.recipes.policy import train_policy as recipe
from tokencredit.recipes.policy import update as ppo_update
from tokencredit.recipes.policy.loss_terms import chi_square_slope
from tokencredit.recipes.policy.pretraining import pretraining_rows, rows_of_update
from tokencredit.recipes.policy.refusals import require_shared_evenly
from tokencredit.recipes.policy.rollout import draw_responses
from tokencredit.recipes.policy.train_policy import train_policy
from tokencredit.recipes.run.run_folder import read_jsonl
from tokencredit.text.hf_reading import Reading
from tokencredit.toy.hf_tokenizer import toy_tokenizer

ROOT = {"kl.penalty": "sqrt-chi-square", "kl.coef": 0.0}
IN_LOSS, IN_REWARD = {**ROOT, "kl.loss_coef": 0.3}, {**ROOT, "kl.coef": 0.3}
TEXTS = ("the plot is good and the cast is great", "this film was a bad comedy", "the music")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = write_models(tmp_path_factory.mktemp("models"))
    rows = (json.dumps({"text": text}) + "\n" for text in TEXTS)
    (folder / "texts.jsonl").write_text("".join(rows))
    return folder


def weights(folder, name="policy"):
    return load_file(folder / name / "model.safetensors")


def assert_same_weights(first, second, **tolerance):
    for key, value in weights(first).items():
        if tolerance:
            torch.testing.assert_close(weights(second)[key], value, **tolerance)
        else:
            assert torch.equal(value, weights(second)[key]), key


def texts(models, **options) -> dict:
    return {
        "pretraining.data": str(models / "texts.jsonl"),
        **{f"pretraining.{name}": value for name, value in options.items()},
    }


def far_from_its_reference(models, output, **settings):
    """A run whose policy is not its reference, and a rollout of it."""
    config = tiny_config(models, output, **settings)
    run, state = opened_run.open_run(config, opened_run.accelerator_of(config), None)
    with torch.no_grad():
        for weight in run.models.actor_critic.policy.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    rng = recipe.seeded(0, 0, 0)
    rollout = draw_responses(config, run.accelerator, run.models, run.prompts, 0, rng)
    experience = recipe.experience_of(
        run.models, run.model, rollout, config, run.accelerator,
        kl_coef=config.kl.coef, moments=state.moments,
    )  # fmt: skip
    return run, experience


def test_tokens_pay_for_the_chi_square_of_the_response(models, tmp_path):
    _, found = far_from_its_reference(models, tmp_path, **IN_REWARD)
    mask, old = found.batch.response_mask, found.old.logprobs
    terms = chi_square_terms(masked_sum(old - found.ref_logprobs, mask))
    assert terms.min() > 0
    expected = found.token_scores - 0.3 * dense_chi_square_penalties(
        old, found.ref_logprobs, mask, chi_square=float(terms.mean())
    )
    torch.testing.assert_close(found.token_rewards, expected.masked_fill(~mask, 0.0))
    torch.testing.assert_close(
        masked_sum(found.kl, mask), masked_sum(old - found.ref_logprobs, mask)
    )


def test_the_slope_of_the_loss_is_that_of_the_root(models, tmp_path):
    config = tiny_config(models, tmp_path, **IN_LOSS)
    accelerator = opened_run.accelerator_of(config)
    ratios = torch.randn(4, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[True, True]] * 3 + [[False, False]])  # the last one is left out
    terms = chi_square_terms(ratios * mask.any(-1))
    slope = chi_square_slope(accelerator, terms.detach().sum(), mask, config.kl)
    (found,) = torch.autograd.grad(slope * terms.sum(), ratios, retain_graph=True)
    root = 0.3 * (terms.sum() / 3).sqrt()
    torch.testing.assert_close(found, torch.autograd.grad(root, ratios)[0])


def test_micro_batches_of_a_root_are_the_whole(models, tmp_path):
    for size in (1, 4):
        settings = {**IN_LOSS, "algorithm.micro_batch_size": size, "optimizer.adam_epsilon": 1e-3}
        train_policy(tiny_config(models, tmp_path / str(size), **settings))
    assert_same_weights(tmp_path / "1", tmp_path / "4", rtol=1e-3, atol=1e-5)


PRICES = {
    "root in the loss": {**ROOT, "kl.loss_coef": 3.0},
    "root in the reward": {**ROOT, "kl.coef": 3.0},
    "forward KL": {"kl.forward_coef": 1.0},
}


def test_a_price_keeps_the_policy_near(models, tmp_path):
    kls, steps = {}, {"steps": 8, "batch_size": 32, "record.checkpoint_every": 8}
    slowly = {"kl.coef": 0.0, "optimizer.learning_rate": 5e-3, **steps}
    for name, prices in {"free": {}, **PRICES}.items():
        train_policy(tiny_config(models, tmp_path / name, **{**slowly, **prices}))
        rows = read_jsonl(tmp_path / name / "metrics.jsonl")
        kls[name] = sum(row["kl"] for row in rows[-4:])
    assert all(kls[name] < 0.8 * kls["free"] for name in PRICES), kls


def test_an_entropy_bonus_keeps_the_policy_undecided(models, tmp_path):
    entropies = {}
    for coef in (0.0, 1.0):
        settings = {"kl.entropy_coef": coef, "kl.coef": 0.0, "steps": 4}
        train_policy(tiny_config(models, tmp_path / str(coef), **settings))
        entropies[coef] = read_jsonl(tmp_path / str(coef) / "metrics.jsonl")[-1]["entropy"]
    assert entropies[1.0] > entropies[0.0] + 0.02


def test_coefficients_of_zero_change_no_bit(models, tmp_path):
    train_policy(tiny_config(models, tmp_path / "plain"))
    zero = {"kl.entropy_coef": 0.0, "kl.forward_coef": 0.0, "optimizer.critic_warmup": 0}
    zero["algorithm.advantage_clip"] = 1e6
    train_policy(tiny_config(models, tmp_path / "zero", **zero))
    assert_same_weights(tmp_path / "plain", tmp_path / "zero")


def test_advantages_are_clipped_after_whitening(models, tmp_path, monkeypatch):
    seen = []
    real = ppo_update.rows_of

    def watched(experience, rows):
        seen.append(experience.advantages)
        return real(experience, rows)

    monkeypatch.setattr(ppo_update, "rows_of", watched)
    train_policy(tiny_config(models, tmp_path, steps=1, algorithm__advantage_clip=0.5))
    assert seen[0].abs().max() == 0.5
    assert (seen[0].abs() < 0.5).any()


def test_texts_are_learnt_besides(models, tmp_path):
    losses = {}
    for coef in (0.001, 20.0):
        settings = texts(models, coef=coef, batch_size=3)
        train_policy(tiny_config(models, tmp_path / str(coef), steps=4, **settings))
        rows = read_jsonl(tmp_path / str(coef) / "metrics.jsonl")
        losses[coef] = [row["pretraining_loss"] for row in rows]
    assert losses[20.0][-1] < losses[0.001][-1] - 0.1


def test_the_loss_of_texts_is_their_mean_likelihood(models, tmp_path):
    settings = texts(models, batch_size=3, coef=1e-6)
    config = tiny_config(models, tmp_path, steps=1, algorithm__epochs=1, **settings)
    run, _ = opened_run.open_run(config, opened_run.accelerator_of(config), None)
    total, tokens = 0.0, 0
    for text in TEXTS:
        ids = torch.tensor([run.models.tokenizer(text)["input_ids"]])
        logprobs = run.models.actor_critic.policy(ids).logits.log_softmax(-1)
        chosen = logprobs[:, :-1].gather(-1, ids[:, 1:, None])
        total, tokens = total - chosen.sum().item(), tokens + chosen.numel()
    train_policy(config)
    (row,) = read_jsonl(tmp_path / "metrics.jsonl")
    assert row["pretraining_loss"] == pytest.approx(total / tokens, rel=1e-4)


def test_micro_batches_of_texts_are_the_whole(models, tmp_path):
    for size in (1, 4):
        settings = {"algorithm.micro_batch_size": size, "optimizer.adam_epsilon": 1e-3}
        settings |= texts(models, coef=1.0, batch_size=3)
        train_policy(tiny_config(models, tmp_path / str(size), **settings))
    assert_same_weights(tmp_path / "1", tmp_path / "4", rtol=1e-3, atol=1e-5)


def test_each_text_comes_once_in_a_pass(models, tmp_path):
    settings = {**texts(models, batch_size=2), "algorithm.minibatch_size": 2}
    config = tiny_config(models, tmp_path, **settings)
    run, _ = opened_run.open_run(config, opened_run.accelerator_of(config), None)
    seen = [
        tuple(row)
        for step in (0, 1)
        for update in range(4)  # two epochs of two minibatches
        for row in rows_of_update(config, run.accelerator, run.pretraining, step, update)
    ]
    assert [seen[:15].count(row) for row in set(seen)] == [5, 5, 5]


def test_the_critic_learns_first(models, tmp_path):
    for critic in ("shared", "separate"):
        folder = tmp_path / critic
        settings = {"optimizer.critic_warmup": 2, "algorithm.critic": critic}
        train_policy(tiny_config(models, folder, steps=2, **settings))
        start = load_file(models / "policy" / "model.safetensors")
        assert all(torch.equal(value, start[key]) for key, value in weights(folder).items())
        moments = load_file(folder / "checkpoints" / "step-000002" / "optimizer.safetensors")
        of_critic = "value_head" if critic == "shared" else "critic"
        assert {key.split(".")[0] for key in moments} == {of_critic}
        train_policy(tiny_config(models, folder, steps=3, **settings))
        assert any(not torch.equal(value, start[key]) for key, value in weights(folder).items())


RESUMED = {
    "root in the reward": IN_REWARD,
    "root in the loss": IN_LOSS,
    "forward KL and entropy": {"kl.forward_coef": 0.2, "kl.entropy_coef": 0.1},
    "critic first": {"optimizer.critic_warmup": 2},
    "texts": {"pretraining.batch_size": 2, "algorithm.minibatch_size": 2},
    "adapters": {"kl.forward_coef": 0.2, "lora.rank": 2, "pretraining.batch_size": 2},
}


@pytest.mark.parametrize("name", RESUMED)
def test_resumed_equals_uninterrupted(models, tmp_path, name):
    settings = {**RESUMED[name], "record.sample_every": 1}
    if "pretraining.batch_size" in settings:
        settings |= texts(models, batch_size=2)
    train_policy(tiny_config(models, tmp_path / "whole", steps=4, **settings))
    train_policy(tiny_config(models, tmp_path / "parts", steps=1, **settings))
    train_policy(tiny_config(models, tmp_path / "parts", steps=4, **settings))
    assert read_jsonl(tmp_path / "whole/samples.jsonl") == read_jsonl(
        tmp_path / "parts/samples.jsonl"
    )
    if "lora.rank" not in settings:
        assert_same_weights(tmp_path / "whole", tmp_path / "parts")


def test_two_processes_train_as_one_does(models, tmp_path):
    jobs = {
        "loss": {**CERTAIN, **IN_LOSS, "kl.entropy_coef": 0.1, **texts(models, batch_size=2)},
        "reward": {**CERTAIN, **IN_REWARD},
        "critic": {**CERTAIN, "optimizer.critic_warmup": 1},
    }
    for name, settings in jobs.items():
        train_policy(tiny_config(models, tmp_path / name, steps=2, **settings))
    job = {"models": str(models), "environment": {}, "steps": 2}
    finished(
        tmp_path,
        [{**job, **settings, "output": str(tmp_path / f"{n}-2")} for n, settings in jobs.items()],
    )
    for name in jobs:
        assert_same_training(tmp_path / name, tmp_path / f"{name}-2", 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kl.entropy_coef": -1.0}, r"kl\.entropy_coef is -1\.0; expected a finite"),
        ({"kl.forward_coef": float("nan")}, r"kl\.forward_coef is nan"),
        ({"kl.coef": -0.1}, r"kl\.coef is -0\.1"),
        ({"kl.penalty": "sqrt-chi-square", "kl.loss_coef": 0.1}, "not both"),
        ({"optimizer.critic_warmup": -1}, r"critic_warmup is -1"),
        (
            {"optimizer.critic_warmup": 1, "algorithm.name": "reinforce"},
            r"critic_warmup is 1 with algorithm\.name 'reinforce', which has no critic",
        ),
        ({"pretraining.batch_size": 0}, r"pretraining\.batch_size is 0"),
        ({"pretraining.tokens": 1}, r"pretraining\.tokens is 1"),
        ({"pretraining.coef": 0.0}, r"pretraining\.coef is 0"),
    ],
)
def test_what_makes_no_sense_is_refused(models, tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        tiny_config(models, tmp_path, **changes)


def test_texts_without_anything_to_predict_are_refused(models, tmp_path):
    file = tmp_path / "texts.jsonl"
    file.write_text(json.dumps({"text": "film"}) + "\n")
    config = tiny_config(models, tmp_path / "run", pretraining__data=str(file))
    tokenizer = toy_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A")
    with pytest.raises(DataError, match=r"none of the 1 texts of pretraining\.data .* 2 tokens"):
        pretraining_rows(config, Reading(tokenizer))


def test_texts_that_processes_cannot_share_are_refused(models, tmp_path):
    config = tiny_config(models, tmp_path, **texts(models, batch_size=3))
    with pytest.raises(ConfigError, match=r"pretraining\.batch_size is 3 on 2 processes"):
        require_shared_evenly(config, 2)
