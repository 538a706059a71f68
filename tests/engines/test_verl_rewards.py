"""Token credit in verl: its real classes and configuration, tiny models, the CPU, no cluster."""

import asyncio
import math

import pytest
import torch
from ending_models import write_models
from tiny_tokenizers import CHAT_TEMPLATE, byte_level

pytest.importorskip("verl", reason="verl is installed by make test-engines alone")

from saved_models import save_reward_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from verl.experimental.reward_loop.reward_manager.naive import NaiveRewardManager
from verl.trainer.ppo.reward import extract_reward
from verl_rollouts import ROWS, colocated, logit, rollout, unpadded, worker_of

from tokencredit.engines.hf_token_rewards import reward_model_token_rewards
from tokencredit.engines.verl_responses import placed_scores
from tokencredit.errors import DataError, NumericError
from tokencredit.scorers.texts import loaded_reward_model

CREDITS = ("terminal", "uniform", "attention", "prefix-difference")


@pytest.mark.parametrize("credit", CREDITS)
def test_every_token_is_paid_what_the_reward_model_says(
    credit, verl_config, verl_models, monkeypatch
):
    worker = worker_of(verl_config, credit=credit)
    data = rollout(worker.input_tokenizer, prompt_side="right")
    result = colocated(worker, data, monkeypatch)
    scores, extra = extract_reward(result)
    assert scores.shape == data.batch["responses"].shape
    model = AutoModelForSequenceClassification.from_pretrained(verl_models / "reward").eval()
    for row, (prompt, answer) in enumerate(unpadded(data)):
        end = len(answer)
        assert not scores[row, end:].any()
        # The model was not trained on an end of sequence: one that ended the response is not read.
        said = answer[: len(answer) - (row == 0)]
        whole, start = logit(model, prompt, said), logit(model, prompt)
        total = whole - start if credit == "prefix-difference" else whole
        assert scores[row].sum().item() == pytest.approx(total, rel=1e-3, abs=1e-5)
        assert extra["token_credit_sum"][row] == pytest.approx(total, rel=1e-3, abs=1e-5)
        if credit == "terminal":
            assert not scores[row, : end - 1].any()
        if credit == "uniform":
            expected = torch.full((end,), whole / end)
            torch.testing.assert_close(scores[row, :end], expected, rtol=1e-3, atol=1e-5)
        if credit == "prefix-difference":
            steps = [logit(model, prompt, said[: t + 1]) for t in range(end)]
            expected = torch.tensor([start, *steps]).diff()
            torch.testing.assert_close(scores[row, :end], expected, rtol=1e-3, atol=1e-5)
    assert set(extra) == {"token_credit_sum", "token_credit_last_share", "token_credit_entropy"}
    assert (extra["token_credit_last_share"] == 1).all() == (credit == "terminal")


@pytest.mark.parametrize("credit", ["attention", "prefix-difference"])
def test_as_the_callable_of_the_other_adapters(credit, verl_config, verl_models, monkeypatch):
    worker = worker_of(verl_config, credit=credit)
    data = rollout(worker.input_tokenizer)
    width = data.batch["prompts"].shape[1]
    masks = data.batch["attention_mask"]
    expected = reward_model_token_rewards(
        str(verl_models / "reward"), worker.input_tokenizer, credit=credit
    )(data.batch["prompts"], masks[:, :width], data.batch["responses"], masks[:, width:])
    result = colocated(worker, data, monkeypatch)
    torch.testing.assert_close(result.batch["rm_scores"], expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("prompt_side", ["left", "right"])
def test_terminal_credit_is_verls_own_placement(prompt_side, verl_config, monkeypatch):
    worker = worker_of(verl_config, credit="terminal")
    data = rollout(worker.input_tokenizer, prompt_side=prompt_side)
    ours = colocated(worker, data, monkeypatch).batch["rm_scores"]
    naive = NaiveRewardManager.assemble_rm_scores(data, ours.sum(-1).tolist())
    torch.testing.assert_close(ours, naive)
    torch.testing.assert_close(placed_scores(data, ours.sum(-1).tolist()), naive)


def test_the_mask_of_the_batch_counts_too(verl_config, monkeypatch):
    worker = worker_of(verl_config, credit="uniform")
    data = rollout(worker.input_tokenizer)
    width = data.batch["prompts"].shape[1]
    mask = data.batch["attention_mask"][:, width:].clone()
    mask[:, 1] = 0
    data.batch["response_mask"] = mask
    scores = colocated(worker, data, monkeypatch).batch["rm_scores"]
    assert torch.equal(scores != 0, mask.bool())


def test_a_reward_model_with_another_tokenizer_reads_the_messages(
    verl_config, tmp_path, monkeypatch
):
    tokenizer = byte_level(chat_template=CHAT_TEMPLATE)
    model = save_reward_model(tmp_path / "other", tokenizer, "llama").eval()
    worker = worker_of(
        verl_config, reward_model=str(tmp_path / "other"), credit="prefix-difference"
    )
    data = rollout(worker.input_tokenizer)
    scores = colocated(worker, data, monkeypatch).batch["rm_scores"]
    policy = AutoTokenizer.from_pretrained(verl_config.actor_rollout_ref.model.path)
    for row, (prompt, answer) in enumerate(unpadded(data)):
        content = policy.decode(answer, skip_special_tokens=True)
        messages = data.non_tensor_batch["raw_prompt"][row]
        text = tokenizer.apply_chat_template(
            [*messages, {"role": "assistant", "content": content}], tokenize=False
        )
        if row > 0:  # cut off, and left open
            text = text.removesuffix("<eos>\n")
        asked = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        whole, start = (
            logit(model, torch.tensor(tokenizer(t, add_special_tokens=False)["input_ids"]))
            for t in (text, asked)
        )
        assert len(prompt)
        assert scores[row].sum().item() == pytest.approx(whole - start, rel=1e-3, abs=1e-4)
        assert (scores[row] != 0).sum() > 1 or len(answer) <= 2


def test_verls_own_score_is_paid_on_the_last_token_besides(verl_config, monkeypatch):
    asked: list[str] = []

    def rule(data_source, solution_str, ground_truth, extra_info):
        asked.append(solution_str)
        return {"score": 2.0, "exact": ground_truth}

    fields = {"data_source": "mine", "reward_model": {"ground_truth": "x"}, "extra_info": {}}
    plain = worker_of(verl_config.copy(), credit="uniform")
    data = rollout(plain.input_tokenizer, **fields)
    without = colocated(plain, data, monkeypatch).batch["rm_scores"]
    assert not asked
    paid = worker_of(verl_config, credit="uniform", outcome_weight=0.5)
    paid.reward_manager.compute_score = rule
    result = colocated(paid, data, monkeypatch)
    added = NaiveRewardManager.assemble_rm_scores(data, [1.0] * len(ROWS))
    torch.testing.assert_close(result.batch["rm_scores"], without + added)
    assert result.non_tensor_batch["exact"].tolist() == ["x"] * len(ROWS)
    assert "dull" in asked[0]


def test_responses_asked_for_at_once_share_a_forward_pass(verl_config):
    worker = worker_of(verl_config, micro_batch_size=2)
    sizes: list[int] = []
    scored = worker.reward_manager.token_rewards

    def counted(prompt_ids, *others, prompts):
        sizes.append(len(prompt_ids))
        return scored(prompt_ids, *others, prompts=prompts)

    worker.reward_manager.token_rewards = counted
    data = rollout(worker.input_tokenizer)
    together = asyncio.run(worker.compute_score_batch(data))
    assert sizes == [2, 1]
    alone = [asyncio.run(worker.compute_score(data[i : i + 1])) for i in range(len(ROWS))]
    for one, other in zip(together, alone, strict=True):
        assert one["reward_score"] == pytest.approx(other["reward_score"], rel=1e-3, abs=1e-5)


def test_a_response_that_cannot_be_scored_fails_alone(verl_config):
    worker = worker_of(verl_config)
    data = rollout(worker.input_tokenizer)
    scored, bad = worker.reward_manager.token_rewards, data.batch["responses"][1, 0]

    def picky(prompt_ids, prompt_mask, responses, response_mask, prompts):
        if (responses[:, 0] == bad).any():
            raise DataError("not this one")
        return scored(prompt_ids, prompt_mask, responses, response_mask, prompts=prompts)

    worker.reward_manager.token_rewards = picky

    async def all_of_them():
        runs = [worker.compute_score(data[i : i + 1]) for i in range(len(ROWS))]
        return await asyncio.gather(*runs, return_exceptions=True)

    first, second, third = asyncio.run(all_of_them())
    assert isinstance(second, DataError)
    assert math.isfinite(first["reward_score"])
    assert math.isfinite(third["reward_score"])


def test_a_score_that_is_no_number_stops(verl_config):
    worker = worker_of(verl_config)
    worker.reward_manager.token_rewards = lambda p, pm, ids, mask, prompts: ids * math.nan
    with pytest.raises(NumericError, match="NaN or infinite"):
        asyncio.run(worker.compute_score(rollout(worker.input_tokenizer)[:1]))


@pytest.mark.parametrize("end", ["<eos>", "<eot>", "<end>", "<unk>", None])
def test_every_end_that_the_policy_declares_closes_a_response(
    end, verl_config, tmp_path, monkeypatch
):
    folder = write_models(tmp_path)
    verl_config.actor_rollout_ref.model.path = str(folder / "policy")
    verl_config.actor_rollout_ref.model.tokenizer_path = str(folder / "policy")
    worker = worker_of(
        verl_config,
        reward_model=str(folder / "reward"),
        credit="terminal",
        turn_ends=["<unk>"],
    )
    tokenizer = worker.input_tokenizer
    data = rollout(tokenizer)[1:2]
    said = tokenizer(" good", add_special_tokens=False)["input_ids"]
    ids = said if end is None else [*said, tokenizer.convert_tokens_to_ids(end)]
    width = data.batch["prompts"].shape[1]
    data.batch["responses"][0, : len(ids)] = torch.tensor(ids)
    data.batch["attention_mask"][0, width:] = 0
    data.batch["attention_mask"][0, width : width + len(ids)] = 1
    paid = colocated(worker, data, monkeypatch).batch["rm_scores"].sum().item()
    model, reading = loaded_reward_model(str(folder / "reward"))
    messages = list(data.non_tensor_batch["raw_prompt"][0])
    scores = []
    for ended in (True, False):
        read = reading.encoded([messages], [" good"], ended=ended)
        scores.append(
            model(input_ids=read.batch.input_ids, attention_mask=read.attention_mask).logits.item()
        )
    assert abs(scores[0] - scores[1]) > 0.01
    assert paid == pytest.approx(scores[end is None], abs=1e-4)
