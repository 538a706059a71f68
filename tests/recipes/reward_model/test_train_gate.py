"""The gate over objectives: learnt from pairs, known at the prompt, adding up token by token."""

import json
from dataclasses import replace

import pytest
import torch
from saved_models import save_reward_model
from tiny_reward_training import lines
from tiny_tokenizers import CHAT_TEMPLATE, byte_level

from tokencredit.batch import ResponseBatch
from tokencredit.credit.prefixes import prefix_difference_credit
from tokencredit.credit.settings import CreditSettings
from tokencredit.errors import ConfigError, ModelError
from tokencredit.evaluation.agreement import spearman_correlation
from tokencredit.models.heads import debiased
from tokencredit.models.hf_gates import PromptGate, write_gate
from tokencredit.models.hf_objectives import joined_scores
from tokencredit.recipes.reward_model.evaluate_reward_model import (
    EvaluateRewardModelConfig,
    evaluate_reward_model,
)
from tokencredit.recipes.reward_model.gate_settings import DebiasSettings, GateSettings
from tokencredit.recipes.reward_model.train_gate import TrainGateConfig, train_gate
from tokencredit.recipes.settings import HeldOutSettings, TrainingSettings
from tokencredit.reward_model.debiasing import GRID, objective_penalties
from tokencredit.reward_model.hf_loading import load_reward_model
from tokencredit.reward_model.hf_scores import reward_model_output, score_responses
from tokencredit.scorers.source_settings import RewardSource
from tokencredit.scorers.text_rewards import loaded_text_rewards, paid_texts
from tokencredit.text.segments import SegmentSettings

NAMES = ("helpful", "verbose", "true")
HEAD = {
    "num_labels": 3,
    "id2label": dict(enumerate(NAMES)),
    "label2id": {name: output for output, name in enumerate(NAMES)},
    "problem_type": "regression",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gates")
    save_reward_model(folder / "rm", byte_level(chat_template=CHAT_TEMPLATE), "llama", **HEAD)
    rows = [
        {"prompt": f"rate {row}:", "chosen": f" a good film {row}", "rejected": " a bad one" * 2}
        for row in range(24)
    ]
    lines(folder / "pairs.jsonl", rows)
    return folder


def config(folder, output, **settings):
    given = {
        "data": str(folder / "pairs.jsonl"),
        "reward_model": str(folder / "rm"),
        "output": str(output),
        "gate": GateSettings(width=16, layers=1),
        "max_length": 128,
        "training": TrainingSettings(epochs=2.0, batch_size=8),
        "evaluation": HeldOutSettings(share=0.2),
        "device": "cpu",
        "progress": False,
    }
    return TrainGateConfig(**(given | settings))


@pytest.fixture(scope="module")
def gated(folder):
    return train_gate(config(folder, folder / "gated", debias=DebiasSettings("verbose")))


def drawn(seed=1):
    ids = torch.randint(3, 200, (4, 9), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[1, 6:] = False
    mask[2, :1] = False
    return ids, mask


def batch_of(ids, mask):
    return ResponseBatch(ids[:, :3], mask[:, :3], ids[:, 3:], mask[:, 3:])


def test_token_scores_of_objectives_add_up_and_are_causal(gated):
    model, _ = load_reward_model(gated)
    ids, mask = drawn()
    batch = batch_of(ids, mask)
    scores = score_responses(model, batch)
    weights = torch.stack([one.weights for one in scores.objectives.values()], dim=-1)
    assert weights.std(0).max() > 1e-4  # another prompt weighs otherwise
    total = prefix_difference_credit(scores.prefix_scores, batch.response_mask)
    parts = [
        one.weights[:, None]
        * prefix_difference_credit(one.scores.prefix_scores, batch.response_mask)
        for one in scores.objectives.values()
    ]
    torch.testing.assert_close(sum(parts), total)
    # Another future changes neither the weights nor what was paid before it.
    later = ids.clone()
    later[:, 6:] = later[:, 6:].flip(0)
    changed = score_responses(model, batch_of(later, mask))
    torch.testing.assert_close(changed.prefix_scores[:, :4], scores.prefix_scores[:, :4])
    for name, one in changed.objectives.items():
        torch.testing.assert_close(one.weights, scores.objectives[name].weights)


def test_the_gate_reads_the_last_token_of_the_prompt(gated):
    """By a loop over rows: states of each prompt alone, through the gate, over the raw head."""
    model, _ = load_reward_model(gated)
    gate, rows = model.score.gate, model.score.rows
    ids, mask = drawn()
    scores = score_responses(model, batch_of(ids, mask))
    for row in range(4):
        prompt, whole = ids[row, :3][mask[row, :3]], ids[row][mask[row]]
        with torch.no_grad():
            at_prompt = model.model(input_ids=prompt[None]).last_hidden_state[0, -1]
            at_end = model.model(input_ids=whole[None]).last_hidden_state[0, -1]
            expected = (gate(at_prompt) * rows(at_end)).sum()
        torch.testing.assert_close(scores.sequence_scores[row], expected, atol=1e-4, rtol=1e-4)


def test_padding_and_batches_change_nothing(gated):
    model, _ = load_reward_model(gated)
    ids, mask = drawn()
    whole = score_responses(model, batch_of(ids, mask))
    noise = torch.randint(3, 200, ids.shape, generator=torch.Generator().manual_seed(5))
    for other in (
        score_responses(model, batch_of(ids.where(mask, noise), mask)),
        score_responses(model, batch_of(ids, mask), micro_batch_size=1),
    ):
        torch.testing.assert_close(other.prefix_scores, whole.prefix_scores)


def written(folder, output, weights, penalties=None, against=None):
    """A gate that gives the same weights to every prompt."""
    model, tokenizer = load_reward_model(f"{folder / 'rm'}#helpful")
    torch.manual_seed(0)
    save_reward_model(output, tokenizer, "llama", **HEAD)
    gate = PromptGate(model.config.hidden_size, 3, width=4, layers=0)
    with torch.no_grad():
        gate.network[0].weight.zero_()
        gate.network[0].bias.copy_(10 * torch.tensor(weights).log())
    own = torch.zeros(3) if penalties is None else torch.tensor(penalties)
    from transformers import AutoModelForSequenceClassification

    saved = AutoModelForSequenceClassification.from_pretrained(output)
    write_gate(gate, own, saved, output, against=against)
    saved.config.save_pretrained(output)
    return output


def test_a_gate_that_is_one_hot_is_that_head(folder, tmp_path):
    output = written(folder, tmp_path / "hot", [1e-30, 1e-30, 1.0])
    batch = batch_of(*drawn())
    found = score_responses(load_reward_model(output)[0], batch)
    alone = score_responses(load_reward_model(f"{output}#true")[0], batch)
    torch.testing.assert_close(found.prefix_scores, alone.prefix_scores)


def test_penalties_take_one_objective_out_of_the_others(folder, tmp_path):
    shares, penalties = [0.5, 0.2, 0.3], [0.25, 1.0, 0.5]
    output = written(folder, tmp_path / "rm", shares, penalties, "verbose")
    batch = batch_of(*drawn())
    found = score_responses(load_reward_model(output)[0], batch)
    raw = [score_responses(load_reward_model(f"{output}#{n}")[0], batch) for n in NAMES]
    raw = torch.stack([one.prefix_scores for one in raw], dim=-1)
    expected = debiased(raw, torch.tensor(penalties), against=1)
    each = torch.stack([one.scores.prefix_scores for one in found.objectives.values()], dim=-1)
    torch.testing.assert_close(each, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(each[..., 1], torch.zeros_like(each[..., 1]))
    torch.testing.assert_close(
        found.prefix_scores, expected @ torch.tensor(shares), atol=1e-5, rtol=1e-4
    )


def spearman(a, b):
    return float(spearman_correlation(a[None], b[None], torch.ones(1, len(a)).bool()))


def test_penalties_are_the_least_that_are_enough():
    generator = torch.Generator().manual_seed(0)
    other = torch.randn(200, generator=generator)
    noise = torch.randn(200, 3, generator=generator)
    scores = torch.stack(
        [0.4 * other + noise[:, 0], other, noise[:, 1], 5 * other + 0.01 * noise[:, 2]], dim=-1
    )
    scores[:, 2] -= 0.5 * other  # what already falls with it stays
    found = objective_penalties(scores, against=1, correlation=spearman)
    assert found[2] == 0
    assert found[1] == 1
    assert found[3] == 1  # no penalty of the grid is enough
    assert 0 < found[0] < 0.95
    left = debiased(scores.double(), found.double(), against=1)
    assert spearman(left[:, 0], other) <= 0.03
    step = float(GRID[1])
    less = debiased(scores.double(), found.double() - step, against=1)
    assert spearman(less[:, 0], other) > 0.03


def test_it_learns_which_objective_a_prompt_asks_for(folder, tmp_path):
    """Two kinds of prompts that want opposite things: no fixed weights can serve both."""
    model, tokenizer = load_reward_model(f"{folder / 'rm'}#helpful")
    texts = [f" film {row} {'a ' * (row % 4)}" for row in range(40)]
    rows = []
    for kind, name in (("kindly", "helpful"), ("truly", "true")):
        one = load_reward_model(f"{folder / 'rm'}#{name}")[0]
        prompt = f"say {kind}:"
        start = len(tokenizer(prompt)["input_ids"])
        for a, b in zip(texts[::2], texts[1::2], strict=True):
            ids = [tokenizer(prompt + text)["input_ids"] for text in (a, b)]
            found = [
                float(reward_model_output(one, torch.tensor([row]), torch.ones(1, len(row)).bool())
                .sequence_scores.detach())
                for row in ids
            ]  # fmt: skip
            assert all(len(row) > start for row in ids)
            chosen, rejected = (a, b) if found[0] > found[1] else (b, a)
            rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    lines(tmp_path / "pairs.jsonl", rows)
    settings = config(
        folder,
        tmp_path / "gated",
        evaluation=HeldOutSettings(share=0.0),
        training=TrainingSettings(epochs=40.0, batch_size=16, learning_rate=3e-2),
        gate=GateSettings(width=16, layers=1, dropout=0.0, temperature=1.0),
    )
    settings = replace(settings, data=str(tmp_path / "pairs.jsonl"))
    settings = replace(settings, reading=replace(settings.reading, template="plain"))
    output = train_gate(settings)
    model, _ = load_reward_model(output)
    weights = {}
    for kind in ("kindly", "truly"):
        ids = torch.tensor([tokenizer(f"say {kind}: film")["input_ids"]])
        start = len(tokenizer(f"say {kind}:")["input_ids"])
        mask = torch.ones_like(ids, dtype=torch.bool)
        batch = ResponseBatch(ids[:, :start], mask[:, :start], ids[:, start:], mask[:, start:])
        found = score_responses(model, batch).objectives
        weights[kind] = {name: float(one.weights[0]) for name, one in found.items()}
    assert weights["kindly"]["helpful"] > 2 * weights["kindly"]["true"]
    assert weights["truly"]["true"] > 2 * weights["truly"]["helpful"]


def test_what_is_written_and_who_can_read_it(gated, folder):
    metrics = json.loads((gated / "metrics.json").read_text())
    assert 0 <= metrics["held_out_accuracy"] <= 1
    assert metrics["penalty/verbose"] == 1.0
    assert set(NAMES) == {key.removeprefix("weight/") for key in metrics if "weight/" in key}
    assert (gated / "gate.safetensors").is_file()
    before, after = (load_reward_model(f"{place}#true")[0] for place in (folder / "rm", gated))
    torch.testing.assert_close(before.score.weight, after.score.weight)
    evaluate_reward_model(
        EvaluateRewardModelConfig(
            data=str(folder / "pairs.jsonl"),
            reward_model=str(gated),
            output=str(folder / "evaluated"),
            device="cpu",
            progress=False,
        )
    )
    rewards = loaded_text_rewards(
        [RewardSource(str(gated))], CreditSettings("leave-one-out"), SegmentSettings()
    )
    found = paid_texts([rewards], ["rate 3:"], [" a good film"])
    assert found.token_scores[0].abs().max() > 0


def test_what_cannot_be(gated, folder, tmp_path):
    model, _ = load_reward_model(gated)
    assert joined_scores(model) is not None
    with pytest.raises(ModelError, match="a gate that reads the end of the prompt"):
        reward_model_output(model, *drawn())
    with pytest.raises(ConfigError, match=r"debias.against is 'long'; expected one of helpful"):
        train_gate(config(folder, tmp_path / "a", debias=DebiasSettings("long")))
    save_reward_model(tmp_path / "one", byte_level(), "llama")
    with pytest.raises(ModelError, match=r"with 1 output\(s\); expected a causal reward model"):
        train_gate(config(folder, tmp_path / "b", reward_model=str(tmp_path / "one")))
