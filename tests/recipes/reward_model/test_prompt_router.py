"""A mixture whose router reads the prompt: causal, adding up, and of one head plain training."""

import json

import pytest
import torch
from safetensors.torch import load_file
from tiny_reward_training import config, write_inputs

from tokencredit.batch import ResponseBatch
from tokencredit.credit.prefixes import prefix_difference_credit
from tokencredit.errors import ConfigError, DataError
from tokencredit.recipes.reward_model.examples import JudgedRow, judgements_of, reward_batch
from tokencredit.recipes.reward_model.head_settings import BoundSettings, MixtureSettings
from tokencredit.recipes.reward_model.mixtures import PromptRouter
from tokencredit.recipes.reward_model.train_reward_model import train_reward_model
from tokencredit.reward_model.hf_loading import load_reward_model
from tokencredit.reward_model.hf_scores import score_responses
from tokencredit.reward_model.objectives import LossSettings, objective_row
from tokencredit.text.hf_token_rows import EncodedText, read_every_token

ROW = objective_row("bradley-terry", "every", LossSettings())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def trained(folder):
    settings = MixtureSettings(3, layers=1, width=8)
    return train_reward_model(config(folder, folder / "rm", mixture=settings, device="cpu"))


def pair_losses(judged):
    return ROW.pair_losses(judged, LossSettings())


def pairs():
    def text(prompt, response):
        mask = [False] * len(prompt) + [True] * len(response)
        return EncodedText([*prompt, *response], mask)

    return [
        JudgedRow((text([5, 6], [7, 8, 9]), text([5, 6], [10])), 0.0, 2.0),
        JudgedRow((text([9, 5, 6], [11]), text([9, 5, 6], [7, 12])), 0.0),
    ]


def test_the_loss_is_the_loop_over_pairs_and_heads(trained):
    """Prompt states by passes over prompts alone; likelihoods by exponentials."""
    model, _ = load_reward_model(f"{trained}#head-1=1,head-2=1,head-3=1")
    model.set_submodule("score", model.score.rows)
    model.num_labels = model.config.num_labels = 3
    model.config.id2label = dict(enumerate("abc"))
    router = PromptRouter(model, MixtureSettings(3, entropy_coef=0.25), pair_losses)
    batch = reward_batch(pairs(), pad_id=0, read_at=read_every_token)
    batch |= router.columns(pairs(), [0, 1])
    names = ("input_ids", "attention_mask", "counted", "prompt_ends")
    scores, log_weights = router(model, *(batch[name] for name in names))
    total = 0.0
    losses = torch.stack(
        [pair_losses(judgements_of(one, batch)) for one in scores.unbind(-1)], dim=-1
    )
    for at, pair in enumerate(pairs()):
        text = pair.responses[0]
        ids = torch.tensor([text.input_ids[: text.start]])
        state = model.model(input_ids=ids).last_hidden_state[0, -1]
        weights = router.gate.network(state).softmax(-1)
        torch.testing.assert_close(log_weights[at].exp(), weights, rtol=1e-4, atol=1e-5)
        likelihood = sum(w * torch.exp(-one) for w, one in zip(weights, losses[at], strict=True))
        total += -pair.strength * likelihood.log() / 2
        total += 0.25 * (weights * weights.log()).sum() / 2
    torch.testing.assert_close(
        router.loss((scores, log_weights), batch), total, rtol=1e-4, atol=1e-5
    )


def test_token_scores_add_up_and_are_causal(trained):
    model, _ = load_reward_model(trained)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 200, (4, 9), generator=generator)
    mask = torch.ones_like(ids, dtype=torch.bool)
    batch = ResponseBatch(ids[:, :3], mask[:, :3], ids[:, 3:], mask[:, 3:])
    scores = score_responses(model, batch)
    weights = torch.stack([one.weights for one in scores.objectives.values()], dim=-1)
    torch.testing.assert_close(weights.sum(-1), torch.ones(4))
    assert weights.std(0).max() > 1e-5
    parts = [
        one.weights[:, None]
        * prefix_difference_credit(one.scores.prefix_scores, batch.response_mask)
        for one in scores.objectives.values()
    ]
    total = prefix_difference_credit(scores.prefix_scores, batch.response_mask)
    torch.testing.assert_close(sum(parts), total)
    later = ids.clone()
    later[:, 6:] = later[:, 6:].flip(0)
    other = ResponseBatch(later[:, :3], mask[:, :3], later[:, 3:], mask[:, 3:])
    changed = score_responses(model, other)
    torch.testing.assert_close(changed.prefix_scores[:, :4], scores.prefix_scores[:, :4])


def test_a_mixture_of_one_is_bradley_terry_bit_for_bit(folder, tmp_path):
    one = config(folder, tmp_path / "one", mixture=MixtureSettings(1))
    plain = config(folder, tmp_path / "plain")
    mine, theirs = (
        load_file(train_reward_model(settings) / "model.safetensors") for settings in (one, plain)
    )
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)


def test_the_loss_of_one_head_is_bradley_terry_bit_for_bit(trained):
    model, _ = load_reward_model(f"{trained}#head-2")
    router = PromptRouter(model, MixtureSettings(1), pair_losses)
    batch = reward_batch(pairs(), pad_id=0, read_at=read_every_token)
    batch |= router.columns(pairs(), [0, 1])
    names = ("input_ids", "attention_mask", "counted", "prompt_ends")
    scores, log_weights = router(model, *(batch[name] for name in names))
    alone = ROW.loss(judgements_of(scores[..., 0], batch), LossSettings())
    assert torch.equal(router.loss((scores, log_weights), batch), alone)


def test_what_is_written_says_how_good_the_weighted_sum_is(trained):
    metrics = json.loads((trained / "metrics.json").read_text())
    assert 0 <= metrics["held_out_accuracy"] <= 1
    assert (trained / "gate.safetensors").is_file()
    said = json.loads((trained / "config.json").read_text())
    assert list(said["id2label"].values()) == ["head-1", "head-2", "head-3"]
    assert said["score_gate"]["temperature"] == 1.0


def test_what_cannot_be(folder, tmp_path):
    with pytest.raises(ConfigError, match=r"mixture.heads is 2 and bound.ridge is 1"):
        config(folder, tmp_path / "a", mixture=MixtureSettings(2), bound=BoundSettings(1.0))
    router = PromptRouter(
        load_reward_model(write_plain(folder))[0], MixtureSettings(1), pair_losses
    )
    text = EncodedText([5, 6], [True, True])
    with pytest.raises(DataError, match=r"mixture.heads needs one"):
        router.columns([JudgedRow((text, text), 0.0)], [0])


def write_plain(folder):
    return train_reward_model(config(folder, folder / "plain", max_steps=1, device="cpu"))
