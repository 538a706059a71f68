"""One text has one score, whoever asks for it.

Models of three kinds, prompts of three kinds, responses that ended and that were cut off, policies
with the reward model's vocabulary and with another one: every command gives the number that the
model's own forward gives for the ids that were written down here by hand.
"""

import json
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from readings import training_reading
from saved_models import save_reward_model
from tiny_server import listening, posted, served_model, tiny_app
from tiny_tokenizers import CHAT_TEMPLATE, byte_level, wordpiece

from tokencredit.batch import ResponseBatch
from tokencredit.credit.settings import CreditSettings
from tokencredit.engines.hf_token_rewards import reward_model_token_rewards
from tokencredit.errors import DataError
from tokencredit.recipes.credit.explain import ExplainConfig, explanation
from tokencredit.recipes.credit.score_tokens import ScoreTokensConfig, score_tokens
from tokencredit.recipes.reward_model.evaluate_reward_model import (
    EvaluateRewardModelConfig,
    evaluate_reward_model,
)
from tokencredit.recipes.run.run_folder import read_jsonl
from tokencredit.scorers.hf_local import LocalScorer
from tokencredit.scorers.served import served_reward_model
from tokencredit.scorers.texts import loaded_reward_model
from tokencredit.server.client import RewardServer
from tokencredit.text.hf_known_readings import written_by
from tokencredit.text.reading_settings import ReadingSettings

ASKED, ANSWER = "rate this film", " a good plot"
MESSAGES = [{"role": "user", "content": ASKED}]
TOKENIZERS = {
    "plain": byte_level(),
    "chat": byte_level(chat_template=CHAT_TEMPLATE),
    "pair": wordpiece(),
}
POLICIES = {"same": byte_level(), "other": byte_level(merges=0)}


@dataclass(frozen=True)
class Case:
    """A reward model in its folder, a prompt as a user has it, and whether the answer ended."""

    folder: str
    kind: str
    prompt: Any
    ended: bool
    score: float

    def __post_init__(self):
        assert abs(self.score) > 1e-3


def own_score(model, tokenizer, kind, ended):
    """The model's own forward of the ids that a reader of its template would write down."""
    if kind == "pair":
        return model(**tokenizer(ASKED, ANSWER, return_tensors="pt")).logits.item()
    text = ASKED + ANSWER + "<eos>" * ended
    if kind == "chat":
        text = f"<bos>user\n{ASKED}<eos>\n<bos>assistant\n{ANSWER}" + "<eos>\n" * ended
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    return model(input_ids=ids).logits.item()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    for kind, tokenizer in TOKENIZERS.items():
        model = save_reward_model(root / kind, tokenizer, "bert" if kind == "pair" else "gpt2")
        if kind == "plain":
            model.config.reading = {"template": "plain", "append_eos": True}
            model.save_pretrained(root / kind)
    return root


CASES = [
    (kind, prompt, ended)
    for kind in TOKENIZERS
    for prompt in ("text", "messages", "rendered")
    for ended in (True, False)
    if (kind, prompt) not in (("plain", "messages"), ("plain", "rendered"), ("pair", "rendered"))
]


# Texts with the marks of turns in them, or of a model that knows none.
WHOLE_TEXTS = (("plain", "text"), ("chat", "rendered"))


def name_of(case):
    kind, prompt, ended = case
    return f"{kind}-{prompt}-{'ended' if ended else 'cut'}"


def cases(applies=lambda kind, prompt, ended: True):
    """Parametrizes a test with the cases that a command can be given."""
    chosen = [case for case in CASES if applies(*case)]
    return pytest.mark.parametrize("case", chosen, ids=map(name_of, chosen), indirect=True)


@pytest.fixture
def case(request, folders):
    kind, form, ended = request.param
    model, reading = loaded_reward_model(str(folders / kind))
    rendered = f"<bos>user\n{ASKED}<eos>\n<bos>assistant\n"
    prompt = {"text": ASKED, "messages": MESSAGES, "rendered": rendered}[form]
    score = own_score(model, reading.tokenizer, kind, ended)
    return Case(str(folders / kind), kind, prompt, ended, score)


def close(case):
    return pytest.approx(case.score, abs=1e-4)


def written(case, policy):
    """The answer in a policy's tokens, behind a prompt of one token that says nothing."""
    ids = policy(ANSWER, add_special_tokens=False)["input_ids"]
    ids += [policy.eos_token_id] * case.ended
    return ResponseBatch.of_rows([[policy.bos_token_id or 0]], [ids], pad_token_id=0)


@cases()
def test_score_tokens(case, tmp_path):
    row = {"prompt": case.prompt, "response": ANSWER, "ended": case.ended}
    (tmp_path / "data.jsonl").write_text(json.dumps(row) + "\n")
    settings = ScoreTokensConfig(
        str(tmp_path / "data.jsonl"), case.folder, output=str(tmp_path / "o.jsonl"), progress=False,
        credit=CreditSettings("terminal"),
    )  # fmt: skip
    (found,) = read_jsonl(score_tokens(settings))
    assert found["sequence_score"] == close(case)


@cases(lambda kind, prompt, ended: prompt != "messages")
def test_explain(case):
    found = explanation(
        ExplainConfig(
            ANSWER, case.folder, prompt=case.prompt, methods=("terminal",), ended=case.ended
        )
    )
    assert found.sequence_score == close(case)


@cases(lambda kind, prompt, ended: ended)
def test_evaluate_reward_model(case, tmp_path):
    row = {"prompt": case.prompt, "chosen": ANSWER, "rejected": " bad"}
    (tmp_path / "data.jsonl").write_text(json.dumps(row) + "\n")
    output = evaluate_reward_model(
        EvaluateRewardModelConfig(
            case.folder, str(tmp_path / "data.jsonl"), str(tmp_path / "out"), progress=False
        )
    )
    (found,) = read_jsonl(output / "pairs.jsonl")
    assert found["chosen_scores"][-1] == close(case)


def served(case):
    model, reading = loaded_reward_model(case.folder)
    return served_model(model, reading.tokenizer)


@cases()
def test_the_server_by_texts(case):
    text = {"prompt": case.prompt, "response": ANSWER, "ended": case.ended}
    (row,) = posted(tiny_app(served(case)), "/score", {"texts": [text]}).json()["scores"]
    assert row["sequence_score"] == close(case)


@cases(lambda kind, prompt, ended: kind != "pair")
def test_the_server_by_ids(case):
    ids = TOKENIZERS[case.kind](ANSWER, add_special_tokens=False)["input_ids"]
    text = {"prompt": case.prompt, "response_ids": ids, "ended": case.ended}
    (row,) = posted(tiny_app(served(case)), "/score", {"ids": [text]}).json()["scores"]
    assert row["sequence_score"] == close(case)


@cases(lambda kind, prompt, ended: ended and (kind, prompt) in WHOLE_TEXTS)
def test_the_server_in_the_shape_of_openrlhf(case):
    for text in (case.prompt + ANSWER, case.prompt + ANSWER + "<eos>"):
        answer = posted(tiny_app(served(case)), "/get_reward", {"query": [text]}).json()
        assert answer["rewards"] == [close(case)]


@cases()
@pytest.mark.parametrize("vocabulary", POLICIES)
def test_a_policy_in_training_and_the_report_of_generate(case, vocabulary):
    policy = POLICIES[vocabulary]
    local = LocalScorer(*loaded_reward_model(case.folder), written_by(policy))
    scores = local(written(case, policy), conversations=[case.prompt])
    assert scores.sequence_scores.item() == close(case)
    if scores.prefix_scores is not None:
        last = written(case, policy).lengths.item()
        assert scores.prefix_scores[0, last].item() == close(case)


@cases()
@pytest.mark.parametrize("vocabulary", POLICIES)
def test_a_policy_whose_reward_model_is_served(case, vocabulary):
    policy = POLICIES[vocabulary]
    with listening(tiny_app(served(case))) as address:
        model = served_reward_model(RewardServer(address, retries=0), written_by(policy))
        scores = model(written(case, policy), conversations=[case.prompt])
    assert scores.sequence_scores.item() == close(case)


@cases(lambda kind, prompt, ended: prompt == "messages")
@pytest.mark.parametrize("vocabulary", POLICIES)
def test_the_adapters(case, vocabulary):
    policy = POLICIES[vocabulary]
    pay = reward_model_token_rewards(case.folder, policy, credit="terminal")
    batch = written(case, policy)
    paid = pay(
        batch.prompt_ids, batch.prompt_mask.long(), batch.response_ids, batch.response_mask.long(),
        prompts=[case.prompt],
    )  # fmt: skip
    assert paid.sum().item() == close(case)


@cases(lambda kind, prompt, ended: ended)
def test_the_rows_of_training(case):
    """What a model is trained on is what it is asked about afterwards."""
    model, reading = loaded_reward_model(case.folder)
    (row,) = reading.rows([case.prompt], [ANSWER])
    types = torch.tensor([[0] * row.start + [1] * (len(row) - row.start)])
    segments = {"token_type_ids": types} if row.two_segments else {}
    score = model(input_ids=torch.tensor([row.input_ids]), **segments).logits.item()
    assert score == close(case)


def test_conversations_are_refused_where_texts_are_joined(folders):
    _, reading = loaded_reward_model(str(folders / "plain"))
    with pytest.raises(DataError, match="prompts are conversations"):
        reading.encoded([MESSAGES], [ANSWER])


def test_what_was_trained_is_what_is_read():
    class Settings:
        reading = ReadingSettings("plain")

    reading = training_reading(Settings, TOKENIZERS["chat"])
    assert (reading.template, reading.append_eos) == ("plain", True)
