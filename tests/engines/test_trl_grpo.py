"""TRL's trainer with an advantage per token: tiny models, the CPU, TRL's own loop."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ending_models import write_models as write_ending_models
from tiny_policy import PROMPTS, write_models
from tiny_tokenizers import CHAT_TEMPLATE, byte_level
from torch import Tensor

pytest.importorskip("trl", reason="TRL is an extra")

from datasets import Dataset
from saved_models import save_reward_model
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from tokencredit.credit.redistribution import terminal_credit
from tokencredit.engines.hf_token_rewards import reward_model_token_rewards
from tokencredit.engines.trl_grpo import TokenCreditGRPOTrainer
from tokencredit.errors import ConfigError, NumericError, ShapeError
from tokencredit.policy.methods import ESTIMATOR_NAMES, named_advantages
from tokencredit.scorers.texts import loaded_reward_model

LOSS_TYPES = ("dapo", "grpo", "bnpo", "dr_grpo", "cispo", "sapo", "vespo", "luspo")
DATASET = Dataset.from_dict({"prompt": list(PROMPTS)})
ASKED_CHAT = [{"role": "user", "content": "rate this film"}]
TOOL = -77.0


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def ending(tmp_path_factory):
    """A policy of chats that declares its ends in three places."""
    return write_ending_models(tmp_path_factory.mktemp("ending"))


def settings(folder: Any, **changes: Any) -> GRPOConfig:
    """Four completions of two prompts per step, up to five tokens long."""
    plain: dict[str, Any] = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 4,
        "num_generations": 2,
        "max_completion_length": 5,
        "max_steps": 1,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "disable_tqdm": True,
    }
    return GRPOConfig(**{**plain, **changes})


def by_ids(prompt_ids: Tensor, prompt_mask: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """A reward that is another on every token, garbage where nothing counts."""
    return torch.where(mask.bool(), (ids % 7).float() - 3, math.nan)


def terminal_by_ids(prompt_ids: Tensor, prompt_mask: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    scores = by_ids(prompt_ids, prompt_mask, ids, mask).nan_to_num().sum(-1)
    return terminal_credit(scores, mask.bool())


def sum_by_ids(completion_ids: list[list[int]], **_: Any) -> list[float]:
    return [float(sum(token % 7 - 3 for token in ids)) for ids in completion_ids]


def trainer_of(models, folder, *, config: dict[str, Any] | None = None, **changes: Any):
    options: dict[str, Any] = {"token_rewards": by_ids, "train_dataset": DATASET}
    return TokenCreditGRPOTrainer(
        str(models / "policy"),
        args=settings(folder, **(config or {})),
        processing_class=AutoTokenizer.from_pretrained(models / "policy"),
        **{**options, **changes},
    )


def weights_of(trainer) -> Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


def one_batch(trainer, monkeypatch) -> tuple[dict[str, Any], Tensor]:
    """What one generation hands to the loss, and TRL's own advantages of the same."""
    own: list[Tensor] = []
    plain = GRPOTrainer._generate_and_score_completions

    def recorded(self, inputs):
        output = plain(self, inputs)
        own.append(output["advantages"].clone())
        return output

    monkeypatch.setattr(GRPOTrainer, "_generate_and_score_completions", recorded)
    trainer.model.train()
    rows = [{"prompt": prompt} for prompt in PROMPTS[:2] for _ in range(2)]
    return trainer._generate_and_score_completions(rows), own[0]


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_every_loss_of_trl_is_finite(level, models, tmp_path):
    trainer = trainer_of(
        models,
        tmp_path,
        config={
            "max_steps": len(LOSS_TYPES),
            "beta": 0.04,
            "importance_sampling_level": level,
            "top_entropy_quantile": 0.5,
            "off_policy_mask_threshold": 0.5,
        },
    )
    seen = []
    plain = trainer._compute_loss

    def one_type_after_the_other(model, inputs):
        assert inputs["advantages"].shape == inputs["completion_ids"].shape
        trainer.loss_type = LOSS_TYPES[trainer.state.global_step]
        loss = plain(model, inputs)
        seen.append((trainer.loss_type, bool(loss.isfinite()), loss.requires_grad))
        return loss

    trainer._compute_loss = one_type_after_the_other
    trainer.train()
    assert seen == [(name, True, True) for name in LOSS_TYPES]
    assert weights_of(trainer).isfinite().all()


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_terminal_credit_under_grpo_is_trl(scale, models, tmp_path, monkeypatch):
    trainer = trainer_of(
        models,
        tmp_path,
        token_rewards=terminal_by_ids,
        estimator="grpo",
        config={"scale_rewards": scale},
    )
    output, own = one_batch(trainer, monkeypatch)
    mask = output["completion_mask"].bool()
    expected = own[:, None].expand(mask.shape).masked_fill(~mask, 0.0)
    torch.testing.assert_close(output["advantages"], expected, rtol=1e-5, atol=1e-6)
    assert own.abs().max() > 0


def test_terminal_credit_under_grpo_trains_as_trl_does(models, tmp_path):
    """Two steps from the same seed end in the same weights, whole-sequence credit or dense."""
    config = {"max_steps": 2, "seed": 3}
    ours = trainer_of(models, tmp_path, token_rewards=by_ids, estimator="grpo", config=config)
    ours.train()
    theirs = GRPOTrainer(
        str(models / "policy"),
        reward_funcs=sum_by_ids,
        args=settings(tmp_path, **config),
        train_dataset=DATASET,
        processing_class=AutoTokenizer.from_pretrained(models / "policy"),
    )
    theirs.train()
    torch.testing.assert_close(weights_of(ours), weights_of(theirs), rtol=1e-5, atol=1e-7)
    rows = [[row for row in t.state.log_history if "reward" in row] for t in (ours, theirs)]
    assert [row["reward"] for row in rows[0]] == pytest.approx([row["reward"] for row in rows[1]])


@pytest.mark.parametrize("estimator", ESTIMATOR_NAMES)
def test_every_estimator_by_its_name(estimator, models, tmp_path, monkeypatch):
    trainer = trainer_of(models, tmp_path, estimator=estimator)
    output, _ = one_batch(trainer, monkeypatch)
    mask, ids = output["completion_mask"].bool(), output["completion_ids"]
    rewards = by_ids(ids, mask, ids, mask)
    groups = torch.tensor([0, 0, 1, 1])
    expected = named_advantages(estimator, rewards, mask, groups)
    torch.testing.assert_close(output["advantages"], expected)


def test_training_moves_the_policy_towards_the_reward(models, tmp_path):
    """Paid for tokens of the first half of the vocabulary, fined for the others."""

    def first_half(prompt_ids, prompt_mask, ids, mask):
        return torch.where(ids < 48, 1.0, -1.0)

    config = {"max_steps": 8, "per_device_train_batch_size": 12, "lr_scheduler_type": "constant"}
    trainer = trainer_of(models, tmp_path, token_rewards=first_half, config=config)
    trainer.train()
    rewards = [row["reward"] for row in trainer.state.log_history if "reward" in row]
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 1


def test_what_is_logged(models, tmp_path):
    trainer = trainer_of(models, tmp_path, config={"log_completions": True})
    trainer.train()
    (row,) = [row for row in trainer.state.log_history if "reward" in row]
    assert row["reward"] == pytest.approx(row["rewards/token_reward_sums/mean"])
    assert 0 <= row["token_credit/last_token_share"] <= 1
    assert 0 <= row["token_credit/entropy"] <= math.log(5) + 1e-6
    rows = trainer._logs["extra"]["token_rewards"]
    sums = trainer._logs["rewards"]["token_reward_sums"]
    assert [sum(row) for row in rows] == pytest.approx(list(sums))
    tokens = torch.tensor([reward for row in rows for reward in row])
    assert row["token_credit/reward_mean"] == pytest.approx(tokens.mean().item(), abs=1e-5)
    assert row["token_credit/reward_std"] == pytest.approx(
        tokens.std(correction=0).item(), abs=1e-5
    )


def test_reward_functions_of_trl_are_paid_on_the_last_token(models, tmp_path, monkeypatch):
    trainer = trainer_of(
        models,
        tmp_path,
        estimator="reinforce",
        reward_funcs=[lambda completion_ids, **_: [float(len(ids)) for ids in completion_ids]],
        config={"reward_weights": [2.0, 0.5]},
    )
    output, _ = one_batch(trainer, monkeypatch)
    mask, ids = output["completion_mask"].bool(), output["completion_ids"]
    rewards = 2 * by_ids(ids, mask, ids, mask) + terminal_credit(mask.sum(-1) / 2, mask)
    expected = named_advantages("reinforce", rewards, mask, torch.arange(4))
    torch.testing.assert_close(output["advantages"], expected)


def test_tool_tokens_earn_nothing_and_learn_nothing(models, tmp_path, monkeypatch):
    """The environment speaks at index 1, where the callable answers with garbage."""

    def rollout(prompts, trainer):
        completions = [[5, 6, 7, 2 + i] for i in range(len(prompts))]
        return {
            "prompt_ids": [[1, 5] for _ in prompts],
            "completion_ids": completions,
            "logprobs": [[0.0] * 4 for _ in prompts],
            "env_mask": [[1, 0, 1, 1] for _ in prompts],
        }

    def rewards(prompt_ids, prompt_mask, ids, mask):
        assert mask.tolist() == [[1, 0, 1, 1]] * 4
        return torch.where(mask.bool(), ids.float(), TOOL)

    trainer = trainer_of(
        models, tmp_path, token_rewards=rewards, estimator="reinforce", rollout_func=rollout
    )
    output, _ = one_batch(trainer, monkeypatch)
    assert output["advantages"][0].tolist() == [14.0, 0.0, 9.0, 2.0]
    assert trainer._metrics["train"]["reward"] == [14.0 + 1.5]


def test_completions_that_were_cut_off_and_masked_are_in_no_baseline(models, tmp_path, monkeypatch):
    def rollout(prompts, trainer):
        eos = trainer.processing_class.eos_token_id
        completions = [[5, eos], [6, 7], [5, 6, eos], [7, eos]]
        return {
            "prompt_ids": [[1, 5] for _ in prompts],
            "completion_ids": completions,
            "logprobs": [[0.0] * len(ids) for ids in completions],
        }

    trainer = trainer_of(
        models,
        tmp_path,
        rollout_func=rollout,
        estimator="group-mean-to-go",
        config={"mask_truncated_completions": True, "num_generations": 4},
    )
    output, _ = one_batch(trainer, monkeypatch)
    assert output["advantages"][1].eq(0).all()
    mask, ids = output["completion_mask"].bool(), output["completion_ids"]
    mean = by_ids(ids, mask, ids, mask).nan_to_num().sum(-1)[[0, 2, 3]].mean()
    first = by_ids(ids, mask, ids, mask)[0, :2].sum()
    torch.testing.assert_close(output["advantages"][0, 0], first - mean)


def test_groups_reach_over_processes():
    """Each of two processes holds three completions, so that one group of two lies on both."""
    first, own = torch.tensor([[1.0], [2.0], [3.0]]), torch.randn(3, 2)
    gathered = torch.cat([torch.nn.functional.pad(first, (0, 1)), own])
    masks = torch.tensor([[1, 0]] * 3 + [[1, 1]] * 3)
    answers = iter([gathered, masks])
    trainer = object.__new__(TokenCreditGRPOTrainer)
    vars(trainer).update(
        accelerator=SimpleNamespace(
            process_index=1,
            pad_across_processes=lambda values, dim: values,
            gather=lambda values: next(answers),
        ),
        reward_weights=torch.ones(1),
        _rewards_per_func=gathered.sum(-1, keepdim=True),
        _token_rewards=own,
        num_generations=2,
        model=torch.nn.Identity().train(),
        estimator="leave-one-out-to-go",
        gamma=1.0,
        scale_rewards="group",
    )
    advantages = trainer._token_advantages(torch.ones(3, 2, dtype=torch.bool))
    returns = own.sum(-1)
    baselines = torch.stack([torch.tensor(3.0), returns[2], returns[1]])
    to_go = torch.stack([returns, own[:, 1]], dim=-1)
    torch.testing.assert_close(advantages, to_go - baselines[:, None])


def test_lora_trains_its_adapters_alone(models, tmp_path):
    peft = pytest.importorskip("peft", reason="PEFT is an extra")
    trainer = trainer_of(
        models,
        tmp_path,
        peft_config=peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"]),
        config={"beta": 0.04},
    )
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    moved = {n for n, p in trainer.model.named_parameters() if not torch.equal(p, before[n])}
    assert moved
    assert all("lora_" in name for name in moved)


def test_evaluation(models, tmp_path):
    config = {"per_device_eval_batch_size": 2, "num_generations_eval": 1}
    trainer = trainer_of(models, tmp_path, config=config, eval_dataset=DATASET.select(range(2)))
    metrics = trainer.evaluate()
    assert math.isfinite(metrics["eval_loss"])
    assert "eval_token_credit/entropy" in metrics


@pytest.mark.parametrize("credit", ["terminal", "uniform", "attention", "prefix-difference"])
def test_two_steps_with_a_reward_model(credit, models, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(models / "policy")
    rewards = reward_model_token_rewards(str(models / "reward"), tokenizer, credit=credit)
    trainer = trainer_of(models, tmp_path, token_rewards=rewards, config={"max_steps": 2})
    start = AutoModelForCausalLM.from_pretrained(models / "policy")
    trainer.train()
    share = trainer.state.log_history[-2]["token_credit/last_token_share"]
    assert (share == pytest.approx(1.0)) == (credit == "terminal")
    assert not torch.equal(trainer.model.lm_head.weight, start.lm_head.weight)


def test_a_reward_model_with_another_tokenizer_and_messages(models, tmp_path, monkeypatch):
    """Prompts are messages: each side renders them by its own template."""
    reward_tokenizer = byte_level(chat_template=CHAT_TEMPLATE)
    save_reward_model(tmp_path / "other", reward_tokenizer, "llama")
    tokenizer = AutoTokenizer.from_pretrained(models / "policy")
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
    rewards = reward_model_token_rewards(str(tmp_path / "other"), tokenizer, credit="terminal")
    seen: list[Any] = []

    def recorded(prompt_ids, prompt_mask, ids, mask, prompts):
        seen.extend(prompts)
        return rewards(prompt_ids, prompt_mask, ids, mask, prompts=prompts)

    trainer = TokenCreditGRPOTrainer(
        str(models / "policy"),
        token_rewards=recorded,
        args=settings(tmp_path),
        train_dataset=Dataset.from_dict(
            {"prompt": [[{"role": "user", "content": prompt}] for prompt in PROMPTS]}
        ),
        processing_class=tokenizer,
    )
    trainer.train()
    assert seen[0][0]["role"] == "user"
    (row,) = [row for row in trainer.state.log_history if "reward" in row]
    assert row["token_credit/last_token_share"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        (lambda p, m, ids, mask: ids[:, 0].float(), ShapeError, r"shape \(4,\) .* \(4, \d\)"),
        (lambda p, m, ids, mask: ids.float() * math.nan, NumericError, "NaN or infinity"),
    ],
)
def test_answers_that_cannot_be_used(answer, error, message, models, tmp_path):
    with pytest.raises(error, match=message):
        trainer_of(models, tmp_path, token_rewards=answer).train()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"estimator": "remax"}, "estimator is 'remax'; expected one of"),
        ({"estimator": "rloo", "gamma": 0.9}, "gamma is 0.9 with estimator 'rloo'"),
        (
            {"config": {"multi_objective_aggregation": "normalize_then_sum"}},
            "multi_objective_aggregation is 'normalize_then_sum'",
        ),
    ],
)
def test_settings_that_cannot_be(changes, message, models, tmp_path):
    with pytest.raises(ConfigError, match=message):
        trainer_of(models, tmp_path, **changes)


ANSWERED = " good"


def read_as(models, reward, *, ended):
    """The reward model's own score of a question and its answer, rendered by its own template."""
    model, reading = loaded_reward_model(str(models / reward))
    batch = reading.encoded([ASKED_CHAT], [ANSWERED], ended=ended)
    return model(input_ids=batch.batch.input_ids, attention_mask=batch.attention_mask).logits.item()


@pytest.mark.parametrize("end", ["<eos>", "<eot>", "<end>", "<unk>", None])
@pytest.mark.parametrize("reward", ["reward", "other-tokens"])
def test_every_end_that_the_policy_declares_closes_a_completion(ending, reward, end):
    """<eos> is the tokenizer's, <eot> the template's, <end> of the files, <unk> of the setting."""
    tokenizer = AutoTokenizer.from_pretrained(ending / "policy")
    pay = reward_model_token_rewards(
        str(ending / reward),
        tokenizer,
        credit="terminal",
        policy=str(ending / "policy"),
        turn_ends=["<unk>"],
    )
    said = tokenizer(ANSWERED, add_special_tokens=False)["input_ids"]
    ids = torch.tensor([said if end is None else [*said, tokenizer.convert_tokens_to_ids(end)]])
    prompt = torch.tensor([[5]])
    paid = pay(prompt, torch.ones_like(prompt), ids, torch.ones_like(ids), prompts=[ASKED_CHAT])
    scores = [read_as(ending, reward, ended=ended) for ended in (True, False)]
    assert abs(scores[0] - scores[1]) > 0.01
    assert paid.sum().item() == pytest.approx(scores[end is None], abs=1e-4)


def test_token_rewards_that_know_too_few_ends(ending, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(ending / "policy")
    options = {
        "args": settings(tmp_path),
        "train_dataset": DATASET,
        "processing_class": tokenizer,
    }
    few = reward_model_token_rewards(str(ending / "reward"), tokenizer)
    with pytest.raises(ConfigError, match=r"also ends its completions with \['<end>'\].*policy="):
        TokenCreditGRPOTrainer(str(ending / "policy"), token_rewards=few, **options)
    model = AutoModelForCausalLM.from_pretrained(ending / "policy")
    all_of_them = reward_model_token_rewards(str(ending / "reward"), tokenizer, policy=model)
    TokenCreditGRPOTrainer(str(ending / "policy"), token_rewards=all_of_them, **options)
