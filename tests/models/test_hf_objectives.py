import pytest
import torch
from tiny_models import tiny_model
from tiny_tokenizers import CORPUS

from tokencredit.batch import ResponseBatch
from tokencredit.credit.prefixes import prefix_difference_credit
from tokencredit.errors import ConfigError, ModelError
from tokencredit.models.hf_objectives import (
    keep_one_score,
    objective_weights,
    split_objectives,
)
from tokencredit.recipes.language_model.corpus import byte_level_tokenizer
from tokencredit.reward_model.hf_loading import load_reward_model
from tokencredit.reward_model.hf_scores import reward_model_output, score_responses

NAMES = ("helpful", "short", "true")
HEAD = {
    "num_labels": 3,
    "id2label": dict(enumerate(NAMES)),
    "label2id": {name: output for output, name in enumerate(NAMES)},
    "problem_type": "regression",
}


def several(architecture="llama", **more):
    torch.manual_seed(0)
    return tiny_model(architecture, **HEAD, **more).eval()


def drawn():
    ids = torch.randint(3, 30, (3, 6), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[1, 4:] = False
    return ids, mask


@pytest.mark.parametrize("architecture", ["bert", "distilbert", "gpt2", "llama", "roberta"])
@pytest.mark.parametrize(
    ("asked", "weights"),
    [("short", (0.0, 1.0, 0.0)), ("true=-2,helpful=0.5", (0.5, 0.0, -2.0))],
)
def test_one_score_is_the_weighted_sum_of_all(architecture, asked, weights):
    ids, mask = drawn()
    model = several(architecture)
    every = reward_model_output(model, ids, mask, every_output=True)
    keep_one_score(model, asked, name="rm")
    one = reward_model_output(model, ids, mask)
    weights = torch.tensor(weights)
    torch.testing.assert_close(one.sequence_scores, every.sequence_scores @ weights)
    if every.position_scores is not None:
        assert every.position_scores.shape == (3, 6, 3)
        assert every.position_scores[~mask].eq(0).all()
        torch.testing.assert_close(one.position_scores, every.position_scores @ weights)
    assert model.config.num_labels == 1


def test_token_scores_of_objectives_add_up_to_those_of_their_sum(tmp_path):
    """Differences of prefix scores commute with weights that are known before the response."""
    ids, mask = drawn()
    several(vocab_size=320).save_pretrained(tmp_path / "rm")
    byte_level_tokenizer(CORPUS, vocab_size=320).save_pretrained(tmp_path / "rm")
    batch = ResponseBatch(ids[:, :2], mask[:, :2], ids[:, 2:], mask[:, 2:])

    def token_scores(asked):
        model, _ = load_reward_model(f"{tmp_path / 'rm'}#{asked}", pad_token="<eos>")
        scores = score_responses(model, batch)
        return prefix_difference_credit(scores.prefix_scores, batch.response_mask)

    total = token_scores("helpful=0.5,short=-1,true=2")
    parts = 0.5 * token_scores("helpful") - token_scores("short") + 2 * token_scores("true")
    torch.testing.assert_close(total, parts)
    assert total.abs().max() > 0.001


def test_a_model_that_is_not_asked_for_an_objective_names_them(tmp_path):
    several(vocab_size=320).save_pretrained(tmp_path / "rm")
    byte_level_tokenizer(CORPUS, vocab_size=320).save_pretrained(tmp_path / "rm")
    with pytest.raises(ModelError, match=r"each of helpful, short, true; .*'folder#helpful'"):
        load_reward_model(tmp_path / "rm")
    with pytest.raises(ModelError, match="each of helpful, short, true"):
        reward_model_output(several(), *drawn())
    with pytest.raises(ConfigError, match=r"'kind' of .*; expected one of helpful, short, true"):
        load_reward_model(f"{tmp_path / 'rm'}#kind")


@pytest.mark.parametrize("asked", ["helpful,short", "helpful=1,helpful=2", "short=x", "true=nan"])
def test_weights_that_say_nothing(asked):
    with pytest.raises(ConfigError, match="expected one of helpful, short, true"):
        objective_weights(asked, NAMES)


def test_two_classes_are_one_score():
    with pytest.raises(ModelError, match="the two classes LABEL_0, LABEL_1"):
        keep_one_score(tiny_model("llama", num_labels=2), "LABEL_1", name="rm")


def test_a_folder_may_have_the_sign_in_its_name(tmp_path):
    folder = tmp_path / "rm#2"
    folder.mkdir()
    assert split_objectives(folder) == (folder, "")
    assert split_objectives(f"{folder}#short") == (str(folder), "short")
