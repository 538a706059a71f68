"""A pessimistic score: less where the pairs of the training say little, prefix by prefix."""

import pytest
import torch
from tiny_reward_training import config, write_inputs

from tokencredit.batch import ResponseBatch
from tokencredit.errors import ConfigError, ModelError
from tokencredit.models.bounds import difference_covariance, elliptical_norms
from tokencredit.recipes.reward_model.head_settings import BoundSettings
from tokencredit.recipes.reward_model.train_reward_model import train_reward_model
from tokencredit.reward_model.hf_loading import load_reward_model
from tokencredit.reward_model.hf_scores import score_responses
from tokencredit.scorers.texts import loaded_reward_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def trained(folder):
    bound = BoundSettings(0.5)
    return train_reward_model(
        config(folder, folder / "rm", bound=bound, held_out=0.0, device="cpu")
    )


def batch():
    ids = torch.randint(3, 200, (3, 8), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids, dtype=torch.bool)
    return ResponseBatch(ids[:, :2], mask[:, :2], ids[:, 2:], mask[:, 2:])


def test_it_is_the_score_less_the_norm_by_the_pairs_of_the_training(folder, trained):
    """The covariance by a loop over the file, each text read alone."""
    import json

    model, reading = loaded_reward_model(str(trained))
    states = []
    for line in (folder / "bradley-terry.jsonl").read_text().splitlines():
        row = json.loads(line)
        for side in ("chosen", "rejected"):
            (text,) = reading.rows(
                [row["prompt"]], [row[side]], ended=[True], max_length=64, truncation="prompt-start"
            )
            with torch.no_grad():
                ids = torch.tensor([text.input_ids])
                states.append(model.model(input_ids=ids).last_hidden_state[0, -1])
    chosen, rejected = torch.stack(states[::2]), torch.stack(states[1::2])
    covariance = difference_covariance(chosen, rejected, ridge=0.5)
    with torch.no_grad():
        at = model.model(input_ids=batch().input_ids).last_hidden_state[:, 1:]
    norms = elliptical_norms(at - torch.stack(states).mean(0), covariance).float()
    plain = score_responses(model, batch())
    cautious = score_responses(loaded_reward_model(f"{trained}#pessimistic=0.3")[0], batch())
    expected = plain.prefix_scores - 0.3 * norms
    torch.testing.assert_close(cautious.prefix_scores, expected, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(cautious.sequence_scores, cautious.prefix_scores[:, -1])
    nothing = score_responses(load_reward_model(f"{trained}#pessimistic=0")[0], batch())
    assert torch.equal(nothing.prefix_scores, plain.prefix_scores)


def test_what_cannot_be(folder, trained, tmp_path):
    for asked in ("pessimistic", "pessimistic=-1", "pessimistic=much"):
        with pytest.raises(ConfigError, match="expected 'pessimistic=' and a number from 0"):
            load_reward_model(f"{trained}#{asked}")
    plain = train_reward_model(config(folder, tmp_path / "rm", max_steps=1, device="cpu"))
    with pytest.raises(ModelError, match=r"covariance.safetensors is not there; expected"):
        load_reward_model(f"{plain}#pessimistic=1")
    with pytest.raises(ConfigError, match="ridge is 0"):
        BoundSettings(0.0)
    with pytest.raises(ConfigError, match=r"bound.ridge is 1.0 with objective 'regression'"):
        config(folder, tmp_path / "b", "regression", bound=BoundSettings(1.0))
