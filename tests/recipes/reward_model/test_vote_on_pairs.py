import json
import random
from collections import Counter
from pathlib import Path

import pytest
import torch
from named_settings import configured
from saved_models import save_reward_model
from tiny_tokenizers import CHAT_TEMPLATE, byte_level

from tokencredit.cli import main
from tokencredit.errors import ConfigError, DataError, RunFolderError
from tokencredit.evaluation.agreement import token_auroc
from tokencredit.recipes.reward_model.evaluate_reward_model import (
    EvaluateRewardModelConfig,
    evaluate_reward_model,
)
from tokencredit.recipes.reward_model.vote_on_pairs import VoteOnPairsConfig, vote_on_pairs
from tokencredit.recipes.run.run_folder import read_jsonl
from tokencredit.reward_model.losses.pairs import bradley_terry_loss
from tokencredit.toy.reviews import sample_pairs, split_words

FUNCTIONS = """
ASKED = []

def length(prompts, responses):
    ASKED.extend(responses)
    return [len(one) for one in responses]

def vowels(prompts, responses):
    ASKED.extend(responses)
    return [sum(letter in "aeiou" for letter in one) for one in responses]

def stopped(prompts, responses):
    if any("dd" in one for one in responses):
        raise KeyboardInterrupt
    return length(prompts, responses)

def picky(prompts, responses):
    return [float("nan") if "dd" in one else len(one) for one in responses]
"""
PAIRS = [
    {"prompt": "Q:", "chosen": " aaa", "rejected": " b"},
    {"prompt": "Q:", "chosen": " c", "rejected": " bbbb"},
    {"prompt": "Q:", "chosen": " eeee", "rejected": " dd"},
    {"prompt": "Q:", "chosen": " o", "rejected": " bb"},
]
MEANS = [(2 + 3) / 2, (-3 + 0) / 2, (2 + 4) / 2, (-1 + 1) / 2]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    write(tmp_path / "pairs.jsonl", PAIRS)
    (tmp_path / "voters.py").write_text(FUNCTIONS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "voters", raising=False)
    yield tmp_path
    __import__("sys").modules.pop("voters", None)


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def config(folder: Path, output: str = "votes", **settings):
    usual = {"reward_models": ("voters:length", "voters:vowels"), "progress": False}
    return configured(
        VoteOnPairsConfig,
        output=str(folder / output),
        **({"data": str(folder / "pairs.jsonl")} | usual | settings),
    )


def asked() -> list[str]:
    import voters

    found = list(voters.ASKED)
    voters.ASKED.clear()
    return found


def test_rows_say_what_the_models_say_together(folder):
    output = vote_on_pairs(config(folder, flip=0.25, drop=0.25, soft_label="votes"))
    rows = read_jsonl(output / "pairs.jsonl")
    assert [row["row"] for row in rows] == [1, 2, 3]
    assert [(row["chosen"], row["flipped"]) for row in rows] == [
        (" aaa", False), (" bbbb", True), (" eeee", False),
    ]  # fmt: skip
    assert [row["lead_mean"] for row in rows] == [MEANS[0], -MEANS[1], MEANS[2]]
    assert [row["lead_std"] for row in rows] == [0.5, 1.5, 1.0]
    assert [row["margin"] for row in rows] == [2.5, 1.5, 3.0]
    assert [row["preferred"] for row in rows] == [1.0, 0.75, 1.0]
    found = json.loads((output / "votes.json").read_text())
    assert (found["pairs"], found["flipped"], found["dropped"], found["written"]) == (4, 1, 1, 3)
    assert found["share_of_negative_mean_leads"] == 0.25
    assert found["models"]["voters:length"]["accuracy"] == 0.5
    assert found["models"]["voters:vowels"]["accuracy"] == (1 + 0.5 + 1 + 1) / 4


def test_other_shares_ask_no_model_again_and_other_models_need_another_folder(folder):
    vote_on_pairs(config(folder))
    assert len(asked()) == 16
    output = vote_on_pairs(config(folder, drop=0.5))
    assert asked() == []
    assert len(read_jsonl(output / "pairs.jsonl")) == 2
    with pytest.raises(RunFolderError, match="holds another run"):
        vote_on_pairs(config(folder, reward_models=("voters:length",)))


def test_a_run_that_was_stopped_goes_on(folder):
    """The third pair stops it; the first two are in one chunk, and written."""
    path = folder / "voters.py"
    models, chunks = ("voters:stopped", "voters:vowels"), {"batch_size": 1, "limit": 9}
    write(folder / "pairs.jsonl", PAIRS[:2] * 4 + PAIRS[2:])  # 8 pairs of one chunk, 2 of the next
    with pytest.raises(KeyboardInterrupt):
        vote_on_pairs(config(folder, reward_models=models, **chunks))
    leads = folder / "votes" / "leads.jsonl"
    assert not leads.exists() or read_jsonl(leads) == []  # equal pairs are asked for once
    path.write_text(FUNCTIONS.replace("raise KeyboardInterrupt", "pass"))
    __import__("sys").modules.pop("voters")
    whole = vote_on_pairs(config(folder, "whole", reward_models=models, **chunks))
    text = (whole / "leads.jsonl").read_text()
    asked()
    leads.write_text(text[:-20])  # a kill in the middle of the last line
    output = vote_on_pairs(config(folder, reward_models=models, **chunks))
    assert asked() == [" eeee", " dd"]
    for name in ("pairs.jsonl", "votes.json", "leads.jsonl"):
        assert (output / name).read_text() == (whole / name).read_text()


def test_leads_are_kept_chunk_by_chunk(folder):
    many = [{"prompt": f"{row}:", "chosen": " aaa", "rejected": " b"} for row in range(8)]
    write(folder / "pairs.jsonl", many + PAIRS[2:])
    with pytest.raises(KeyboardInterrupt):
        vote_on_pairs(config(folder, reward_models=("voters:stopped",), batch_size=1))
    assert len(read_jsonl(folder / "votes" / "leads.jsonl")) == 8


def test_rows_that_a_model_cannot_score_are_left_out_for_all(folder):
    write(folder / "pairs.jsonl", [*PAIRS, {"prompt": "Q:", "chosen": " x", "rejected": " x"}])
    models = ("voters:picky", "voters:length")
    output = vote_on_pairs(config(folder, reward_models=models))
    assert [row["row"] for row in read_jsonl(output / "pairs.jsonl")] == [1, 2, 4]
    reasons = [row["reason"] for row in read_jsonl(output / "skipped.jsonl")]
    assert len(reasons) == 2
    assert "both answers are the same" in reasons[0]
    assert "voters:picky gives 2 scores for 2 responses" in reasons[1]
    assert " dd" not in asked()
    with pytest.raises(DataError, match="expected one finite number for each"):
        vote_on_pairs(config(folder, "strict", reward_models=models, bad_rows="error", limit=4))


def test_models_of_folders_give_the_scores_of_an_evaluation(folder):
    save_reward_model(folder / "rm", byte_level(bos=True))
    output = vote_on_pairs(config(folder, reward_models=(str(folder / "rm"), "voters:length")))
    evaluated = evaluate_reward_model(
        EvaluateRewardModelConfig(
            str(folder / "rm"), str(folder / "pairs.jsonl"), str(folder / "evaluation"),
            progress=False,
        )
    )  # fmt: skip
    margins = [row["margin"] for row in read_jsonl(evaluated / "pairs.jsonl")]
    leads = [row["lead"] for row in read_jsonl(output / "leads.jsonl")][:4]
    assert leads == pytest.approx(margins, abs=1e-6)
    assert any(abs(lead) > 1e-4 for lead in leads)


def test_answers_that_were_cut_off_are_read_open(folder):
    save_reward_model(folder / "chat", byte_level(chat_template=CHAT_TEMPLATE))
    pair = {"prompt": "a", "chosen": " good", "rejected": " bad"}
    cut = [pair, {**pair, "chosen_ended": False}, {**pair, "rejected_ended": False}]
    write(folder / "cut.jsonl", cut)
    models = (str(folder / "chat"), "voters:length")
    output = vote_on_pairs(
        config(folder, "cut", data=str(folder / "cut.jsonl"), reward_models=models)
    )
    leads = [row["lead"] for row in read_jsonl(output / "leads.jsonl")][:3]
    assert len({round(lead, 4) for lead in leads}) == 3
    rows = read_jsonl(output / "pairs.jsonl")
    assert [(row["chosen_ended"], row["rejected_ended"]) for row in rows] == [
        (True, True), (False, True), (True, False),
    ]  # fmt: skip


def test_settings_that_say_nothing(folder):
    for models in ((), ("voters:length", "voters:length")):
        with pytest.raises(ConfigError, match="expected at least one, each once"):
            config(folder, reward_models=models)
    with pytest.raises(ConfigError, match="expected shares of the pairs"):
        config(folder, flip=1.5)


def test_the_command(folder, capsys):
    arguments = ["--data", "pairs.jsonl", "--output", "voted", "--flip", "0.25"]
    assert main(["vote-on-pairs", "--reward_models", "[voters:length]", *arguments]) == 0
    assert "4 pairs with votes" in capsys.readouterr().out


LINEAR = """
import json
from pathlib import Path

from tokencredit.toy.reviews import split_words

WEIGHTS = json.loads((Path(__file__).parent / "weights.json").read_text())

def scored(weights, responses):
    return [sum(weights.get(word, 0.0) for word in split_words(one)) for one in responses]

def first(prompts, responses):
    return scored(WEIGHTS[0], responses)

def second(prompts, responses):
    return scored(WEIGHTS[1], responses)

def third(prompts, responses):
    return scored(WEIGHTS[2], responses)
"""


def word_weights(pairs: list[dict], seed: int) -> dict[str, float]:
    """A reward that is a sum over words, learnt by Bradley-Terry from pairs drawn with repeats."""
    counts = [[Counter(split_words(one[side])) for side in ("chosen", "rejected")] for one in pairs]
    words = sorted({word for both in counts for one in both for word in one})
    gaps = torch.tensor([[float(w[word] - v[word]) for word in words] for w, v in counts])
    drawn = torch.randint(len(pairs), (len(pairs),), generator=torch.Generator().manual_seed(seed))
    weights = torch.zeros(len(words), requires_grad=True)
    optimizer = torch.optim.Adam([weights], lr=0.05)
    for _ in range(150):
        loss = bradley_terry_loss(gaps[drawn] @ weights, torch.zeros(len(pairs)))
        optimizer.zero_grad()
        (loss + 0.01 * weights.square().sum()).backward()
        optimizer.step()
    return dict(zip(words, weights.tolist(), strict=True))


def test_exchanged_pairs_are_found_on_the_built_in_task(folder):
    """A fifth of the pairs is exchanged; three models learn from all of them and vote on them."""
    rng = random.Random(0)
    pairs = sample_pairs(rng, 2000)
    wrong = torch.tensor([rng.random() < 0.2 for _ in pairs])
    for pair, flip in zip(pairs, wrong.tolist(), strict=True):
        if flip:
            pair["chosen"], pair["rejected"] = pair["rejected"], pair["chosen"]
    write(folder / "pairs.jsonl", pairs)
    weights = [word_weights(pairs, seed) for seed in range(3)]
    (folder / "weights.json").write_text(json.dumps(weights))
    (folder / "voters.py").write_text(LINEAR)
    models = ("voters:first", "voters:second", "voters:third")
    output = vote_on_pairs(config(folder, reward_models=models))
    means = torch.tensor([row["lead_mean"] for row in read_jsonl(output / "pairs.jsonl")])
    found = token_auroc(-means[None], wrong[None], torch.ones_like(wrong)[None])
    assert found.item() > 0.6
    again = vote_on_pairs(config(folder, reward_models=models, flip=0.1))
    flipped = torch.tensor([row["flipped"] for row in read_jsonl(again / "pairs.jsonl")])
    assert int(flipped.sum()) == 200
    assert wrong[flipped].float().mean() > 1.7 * wrong.float().mean()
