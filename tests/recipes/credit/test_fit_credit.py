import json

import pytest
import torch
from saved_models import save_reward_model
from tiny_tokenizers import byte_level, wordpiece

from tokencredit.errors import ConfigError, ModelError, RunFolderError
from tokencredit.recipes.credit.fit_credit import FitCreditConfig, fit_credit
from tokencredit.recipes.credit.score_tokens import ResponseColumns
from tokencredit.reward_model.hf_loading import load_reward_model
from tokencredit.scorers.hf_credit_models import FittedCredit
from tokencredit.text.segments import SegmentSettings

ROWS = [
    {"prompt": "the film is", "completion": " a good plot"},
    {"prompt": "one slow scene , then", "completion": " bad"},
    {"prompt": "a", "completion": " very good film , then a bad one"},
]


@pytest.fixture
def settings(tmp_path):
    save_reward_model(tmp_path / "model", byte_level())
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return {
        "reward_model": str(tmp_path / "model"),
        "data": str(data),
        "columns": ResponseColumns(response="completion"),
        "output": str(tmp_path / "new" / "fitted.json"),
    }


def scores_of_prefixes(folder):
    """Of each response the model's score of the prompt with 0, 1, 2, ... of its tokens."""
    model, tokenizer = load_reward_model(folder)
    found = []
    for row in ROWS:
        ids = tokenizer(row["prompt"] + row["completion"], return_tensors="pt")["input_ids"]
        start = len(tokenizer(row["prompt"])["input_ids"])
        ends = range(start, ids.shape[1] + 1)
        found.append([model(input_ids=ids[:, :end]).logits.item() for end in ends])
    return found


@pytest.mark.parametrize("batch_size", [1, 16])
def test_means_are_those_of_the_models_own_scores(settings, batch_size):
    path = fit_credit(FitCreditConfig(**settings, batch_size=batch_size))
    fitted = FittedCredit.read(path)
    prefixes = scores_of_prefixes(settings["reward_model"])
    for length in range(min(map(len, prefixes))):
        expected = sum(row[length] for row in prefixes) / len(prefixes)
        assert float(fitted.length_means[length]) == pytest.approx(expected, abs=1e-4)
    assert fitted.location is None


def test_segments_are_fitted_by_their_location(settings):
    cut = SegmentSettings("ngram", length=2)
    fitted = FittedCredit.read(fit_credit(FitCreditConfig(**settings, segments=cut)))
    assert fitted.location is not None
    alone = FittedCredit.read(fit_credit(FitCreditConfig(**settings)))
    assert torch.equal(alone.length_means, fitted.length_means)


def test_a_model_that_scores_no_prefixes(settings, tmp_path):
    save_reward_model(tmp_path / "encoder", wordpiece(), "bert")
    encoder = {**settings, "reward_model": str(tmp_path / "encoder")}
    with pytest.raises(ModelError, match="expected a causal one"):
        fit_credit(FitCreditConfig(**encoder))


def test_texts_without_prompts(settings):
    with pytest.raises(ConfigError, match="expected prompts and responses"):
        FitCreditConfig(**{**settings, "columns": ResponseColumns(text="text")})


def test_a_folder_that_cannot_be_made(settings, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="cannot be written"):
        fit_credit(FitCreditConfig(**{**settings, "output": str(tmp_path / "file" / "x.json")}))
