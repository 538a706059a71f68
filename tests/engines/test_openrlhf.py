"""OpenRLHF's own agent executor, which asks for rewards there, against `tokencredit serve`.

The engine that draws responses is a stand-in. Its trainer needs GPUs and flash attention.
"""

import asyncio
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("openrlhf", reason="OpenRLHF is installed by make test-engines alone")

import torch
from openrlhf.utils import agent
from openrlhf.utils.agent import SingleTurnAgentExecutor
from serve_process import TOKEN, Server
from tiny_policy import write_models
from transformers import AutoModelForSequenceClassification, AutoTokenizer

PAGE = Path(__file__).resolve().parents[2] / "docs" / "serve.md"
PROMPTS = {" the plot is": [30, 40, 2], " a": [25, 2], " this film": [50, 60, 70]}
"""What is asked, and the tokens that are answered; the last answer is cut off."""


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return write_models(tmp_path_factory.mktemp("openrlhf"))


@pytest.fixture(scope="module")
def tokenizer(models):
    return AutoTokenizer.from_pretrained(models / "policy")


class Engine:
    """Answers as OpenRLHF's vLLM does."""

    def __init__(self, tokenizer):
        self.answers = {tuple(ids_of(tokenizer, one)): ids for one, ids in PROMPTS.items()}

    async def generate(self, prompt_ids, params, multi_modal_data=None):
        answer = SimpleNamespace(
            token_ids=self.answers[tuple(prompt_ids)], finish_reason="stop", logprobs=None
        )
        return SimpleNamespace(outputs=[answer])


def ids_of(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def executed(endpoint, tokenizer):
    """What OpenRLHF's trainer is given for each prompt, all of them asked at once."""
    executor, engine = SingleTurnAgentExecutor(endpoint), Engine(tokenizer)
    params = SimpleNamespace(max_tokens=6, logprobs=None)

    async def all_at_once():
        asked = [executor.execute(one, "", params, 64, tokenizer, engine) for one in PROMPTS]
        return await asyncio.gather(*asked)

    return asyncio.run(all_at_once())


def expected_rewards(models, rows):
    model = AutoModelForSequenceClassification.from_pretrained(models / "reward").eval()
    with torch.no_grad():
        return [model(torch.tensor([row])).logits[0, 0].item() for row in rows]


def test_its_executor_is_given_the_reward_of_every_text(models, tokenizer):
    server = Server(str(models / "reward"))
    try:
        found = executed(f"{server.address}/get_reward", tokenizer)
    finally:
        server.stop()
    rows = [ids_of(tokenizer, one) + ids for one, ids in PROMPTS.items()]
    for one, row, reward in zip(found, rows, expected_rewards(models, rows), strict=True):
        assert one["observation_tokens"] == row
        assert one["reward"] == one["scores"] == [pytest.approx(reward, abs=1e-5)]
        assert one["extra_logs"] == {"reward_tokens": [float(len(row))]}


def test_a_server_with_a_token_is_asked_by_the_file_of_the_page(
    models, tokenizer, tmp_path, monkeypatch
):
    """Its own client sends no token, and gives up without an error: the reward is missing.

    The file leaves the beginning and the end of a text to the reward model.
    """
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), flags=re.M | re.S)
    (file,) = (block for block in blocks if block.startswith("# reward_func.py"))
    (tmp_path / "reward_func.py").write_text(file)
    monkeypatch.setenv("REWARD_TOKEN", TOKEN)
    server = Server(str(models / "reward"), "--token_variable", "REWARD_TOKEN")
    monkeypatch.setenv("REWARD_ADDRESS", server.address)
    monkeypatch.setattr(agent.asyncio, "sleep", at_once)
    try:
        refused = executed(f"{server.address}/get_reward", tokenizer)
        found = executed(str(tmp_path / "reward_func.py"), tokenizer)
    finally:
        server.stop()
    assert [one["reward"] for one in refused] == [None] * len(PROMPTS)
    bos, eos = [tokenizer.bos_token_id], tokenizer.eos_token_id
    rows = [
        bos + ids_of(tokenizer, one) + [token for token in ids if token != eos]
        for one, ids in PROMPTS.items()
    ]
    for one, reward in zip(found, expected_rewards(models, rows), strict=True):
        assert one["reward"].tolist() == [pytest.approx(reward, abs=1e-5)]


async def at_once(seconds):
    """OpenRLHF waits a second after each of its tries."""
