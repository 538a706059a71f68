"""Every command of the documentation runs, on tiny models and with less work than it asks for."""

import json
import lzma
import re
import shutil
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import pytest
import torch
from forked import ForkedCommand
from saved_models import save_reward_model
from test_docs import blocks, commands_in, page_ids, pages, prepare
from tiny_endpoint import answering, completion, first_token
from tiny_policy import write_models
from tiny_tokenizers import wordpiece
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForTokenClassification

from tokencredit.cli import COMMANDS, _parsed, main, recipe_of
from tokencredit.toy.hf_tokenizer import toy_tokenizer

LESS = {
    "train-policy": (
        "--steps 1 --sampling.max_new_tokens 8 --record.progress false --machine.device cpu"
    ),
    "compare-learning": "--processes 1 --seeds 1 --tuning_seeds 1 --learning_rates [0.001] "
    "--gae_lambdas [0.95] --progress false",
    "generate": "--sampling.max_new_tokens 6 --data.limit 2 --progress false --device cpu",
    "compare-credit": "--faithfulness_documents 1 --resamples 20 --heatmaps 1 --progress false "
    "--credit.probe.samples 2 --credit.probe.steps 2",
    "merge-weights": "--ama.groups 2",
    "train-gate": "--training.max_steps 2 --gate.width 8 --device cpu --progress false",
    "test-safety": "--threshold 1000 --sampling.max_new_tokens 6",
    "train-preferences": "--training.max_steps 2 --device cpu --progress false",
    "iterate-preferences": "--rounds 1 --samples 2 --data.limit 4 --prompts_per_round 4 "
    "--sampling.max_new_tokens 6 --training.max_steps 1 --max_length 64 --device cpu "
    "--progress false",
    "score-tokens": "--limit 6",
}
"""Added to a command, so that it takes seconds."""
LEFT_OUT = {
    "quickstart": "it takes minutes: `make quickstart`",
    "vllm": "it needs a vLLM server: tests/engines",
    "--loading.dtype bfloat16 --device cuda": "it needs a GPU",
}
"""Parts of the commands that are not run here, and why."""
INSTEAD = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": "my/policy",
    "lvwerra/gpt2-imdb": "my/policy",
    "XanderJC/gpt2-rm-imdb": "my/reward",
    "prompts: prompts.jsonl": "prompts: my/prompts.jsonl",
    "my/held-out.jsonl": "my/prompts.jsonl",
    "<|endoftext|>": "<pad>",
    "output/imdb/language-model": "my/policy",
    "DATA": "pairs.jsonl",
    "OUT": "trained",
}
"""What a page says that is not here, and what stands in for it."""


def save_rows(folder: Path, name: str, rows: list[dict]) -> None:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


FILM = """
from tokencredit.judge.setups import JudgeSetup
from tokencredit.judge.verdicts import two_way_verdict


def film():
    read = lambda reply, _count: [two_way_verdict(reply, "good", "bad")]
    return JudgeSetup("a film", "", "each", "{responses} this film is", read, ("good", "bad"))
"""
"""A set-up of a judge in the words of the built-in task."""


def write_data(folder: Path) -> None:
    """Every file that a command of the documentation reads."""
    (folder / "my_judges.py").write_text(FILM)
    (folder / "my_features.py").write_text(
        "def counts(prompts, responses):\n"
        '    return [[text.count("good"), len(text.split())] for text in responses]\n'
    )
    (folder / "judge_lessons.py").write_text(
        "from tokencredit.scorers.judge_correctness import correctness_reward\n"
        'reward = correctness_reward("questions.jsonl")\n'
    )
    pairs, rated = [], []
    for row in range(60):
        prompt, ending = f"the {('slow', 'new', 'first')[row % 3]} film", " it is" * (row // 3)
        chosen = f" is a good film . the plot is good .{ending}"
        rejected = f" is bad . the plot is slow .{ending}"
        pairs.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
        response = (rejected, chosen)[row % 2]
        rated.append({"prompt": prompt, "response": response, "text": prompt + response})
        rated[-1] |= {"label": row % 2, "rating": row % 5 + 0.5}
        rated[-1] |= {"helpfulness": row % 5, "verbosity": row % 3 if row % 7 else None}
    save_rows(folder, "pairs.jsonl", pairs)
    asked = map(json.loads, (folder / "my/prompts.jsonl").read_text().splitlines())
    references = [{"prompt": row["prompt"], "response": pairs[0]["chosen"]} for row in asked]
    save_rows(folder / "my", "references.jsonl", references)
    save_rows(folder, "answers.jsonl", rated)
    exchanged = {"chosen": "rejected", "rejected": "chosen", "prompt": "prompt"}
    ben = [
        {name: row[other] for name, other in exchanged.items()} | {"user": "ben"} for row in pairs
    ]
    save_rows(folder, "users.jsonl", [row | {"user": "anna"} for row in pairs] + ben)
    save_rows(folder, "new-users.jsonl", [row | {"user": "zoe"} for row in pairs])
    lists = [[row["rejected"], row["chosen"], " is slow ."] for row in pairs]
    ranked = zip(pairs, lists, strict=True)
    ranked_rows = [{"prompt": row["prompt"], "responses": texts} for row, texts in ranked]
    save_rows(folder, "rankings.jsonl", [row | {"scores": [0, 1, 0]} for row in ranked_rows])
    for name in ("texts", "reviews", "labels", "ratings", "labelled"):
        kept = ("text", "label", "rating", "helpfulness", "verbosity")
        texts = [{key: row[key] for key in kept} for row in rated]
        save_rows(folder, f"{name}.jsonl", texts)

    marked = [("a very good film", [7, 11], 1), ("the plot is bad", [12, 15], 0)]
    errors = [{"text": text, "spans": [span]} for text, span, _ in marked]
    labels = [{"label": label} for _, _, label in marked]
    save_rows(folder, "errors.jsonl", errors)
    save_rows(folder, "marked.jsonl", [row | at for row, at in zip(errors, labels, strict=True)])

    changed = [
        {"prompt": row["prompt"], "original": row["rejected"], "edited": row["chosen"]}
        for row in pairs
    ]
    save_rows(folder, "changed.jsonl", [{**row, "attribute": "praise"} for row in changed])
    edits = [{**row, "edited": row["chosen"]} for row in pairs]
    save_rows(folder, "edits.jsonl", edits)
    spans = [{"start": 4, "end": 7, "label": "major"}, {"start": 22, "end": 26, "label": "minor"}]
    spanned = [{"text": row["rejected"].strip(), "spans": spans} for row in pairs]
    save_rows(folder, "translations.jsonl", spanned)
    severities = zip(("major", "critical", "minor"), (4, 10, 22), strict=True)
    found = [
        {"severity": name, "start": at, "end": at + 3, "confidence": 0.5} for name, at in severities
    ]
    judged = [{"src": row["prompt"], "mt": row["rejected"], "errors": found} for row in pairs]
    (folder / "errors.json").write_text(json.dumps({"system.txt": judged}, indent=4))
    steps = [
        {"prompt": row["prompt"], "completions": [row["chosen"], row["rejected"]]} for row in pairs
    ]
    save_rows(folder, "solutions.jsonl", [row | {"labels": [True, False]} for row in steps])
    compared = [
        {
            "input": row["prompt"],
            "output_1": row["chosen"],
            "output_2": row["rejected"],
            "label": 1 + at % 2,
        }
        for at, row in enumerate(pairs)
    ]
    for name in ("natural", "adv_Neighbor"):
        (folder / f"{name}.json.xz").write_bytes(lzma.compress(json.dumps(compared).encode()))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """What `my/` holds: a policy, reward models, one trained by DPO, classifiers, an encoder."""
    folder = write_models(tmp_path_factory.mktemp("documented") / "my")
    tokenizer, shape = toy_tokenizer(), LlamaConfig.from_pretrained(folder / "policy").to_dict()
    classes = {"num_labels": 2}
    for name, kind, extra in [
        ("dpo", LlamaForCausalLM, {}),
        *((name, LlamaForTokenClassification, classes) for name in ("judge", "relevance", "facts")),
    ]:
        torch.manual_seed(len(name))
        model = kind(LlamaConfig(**{**shape, **extra}))
        model.config.dpo_reference, model.config.dpo_beta = str(folder / "policy"), 0.1
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    save_reward_model(folder / "encoder", wordpiece(), "bert")
    shutil.copytree(folder / "reward", folder / "chat-reward")
    (folder / "chat-reward" / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m['content'] }} <eos> {% endfor %}"
    )
    for config in folder.glob("*/config.json"):  # as many positions as the commands expect
        text = config.read_text()
        config.write_text(
            text.replace('"max_position_embeddings": 64', '"max_position_embeddings": 1024')
        )
    return folder


@contextmanager
def served(arguments: list[str], port: int) -> Iterator[None]:
    """A server of the command line, once it answers."""
    process = ForkedCommand(*arguments, "--port", str(port))
    try:
        for _ in range(600):
            assert process.returncode is None, process.stderr[-2000:]
            try:
                assert urlopen(f"http://127.0.0.1:{port}/health", timeout=5).status == 200
                break
            except URLError:
                time.sleep(0.1)
        else:
            pytest.fail("the server does not answer")
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


JUDGE = "http://localhost:8000/v1"


@pytest.fixture(scope="module")
def judge():
    """Where an endpoint answers the questions of a judge, with a token or by criteria."""

    def reply(body: dict[str, Any]) -> dict[str, Any]:
        asked = len(str(body)) % 7
        criteria = re.findall(r"^- (\w+)", body["messages"][0]["content"], flags=re.M)
        if criteria:
            said = {name: {"score": asked - 3, "quotes": ["film"]} for name in criteria}
            return completion(body, json.dumps(said))
        return first_token(body, {"Yes": -0.1 - asked, "No": -2.0, "A": -1.0 - asked, "B": -2.5})

    with answering(reply) as endpoint:
        yield endpoint.address


def run(name: str, arguments: list[str], port: int, judge: str) -> None:
    """One command, with less work; a folder that it would write to again is emptied."""
    here = {**INSTEAD, "http://reward-host:9000": f"http://127.0.0.1:{port}"}
    arguments = [here.get(one, one).replace(JUDGE, judge) for one in arguments]
    if "--output" in arguments:
        shutil.rmtree(arguments[arguments.index("--output") + 1], ignore_errors=True)
    elif "--config" in arguments:  # that names its folder
        shutil.rmtree("runs", ignore_errors=True)
    if arguments == ["--help"]:
        assert name in COMMANDS
        return
    assert main([name, *arguments, *LESS.get(name, "").split()]) == 0, (name, arguments)


def without(arguments: list[str], option: str) -> list[str]:
    at = arguments.index(option) if option in arguments else len(arguments)
    return arguments[:at] + arguments[at + 2 :]


@pytest.mark.parametrize("page", page_ids("bash"))
def test_commands_run(page, models, judge, tmp_path, monkeypatch):
    for other in ("docs/compare-learning.md", page):  # ppo.yaml is used on two pages
        (tmp_path / "my").unlink(missing_ok=True)
        prepare(other, tmp_path, models)
    (tmp_path / "my").unlink()
    shutil.copytree(models, tmp_path / "my")
    write_data(tmp_path)
    monkeypatch.chdir(tmp_path)
    for name in [name for name in sys.modules if name.startswith("my_")]:
        monkeypatch.delitem(sys.modules, name)  # a page that ran before had a module of that name
    monkeypatch.setenv("REWARD_TOKEN", "secret")
    for settings in tmp_path.glob("*.yaml"):
        text = re.sub(r"^(steps): \d+$", r"\1: 1", settings.read_text(), flags=re.M)
        for named, stand_in in INSTEAD.items():
            text = text.replace(named, stand_in)
        settings.write_text(text.replace(JUDGE, judge))
    port, done = free_port(), []
    for _, text in blocks(page, "bash"):
        for name, *arguments in commands_in(text):
            written = " ".join([name, *arguments])
            if any(part in written for part in LEFT_OUT) or (name, arguments) in done:
                continue
            done.append((name, arguments))
            if name == "serve" and arguments != ["--help"]:
                with served([name, *without(arguments, "--port")], free_port()):
                    pass
            elif "http://reward-host:9000" in written:
                asked = ["serve", "--reward_model", "my/reward", "--token_variable", "REWARD_TOKEN"]
                with served(asked, port):
                    run(name, arguments, port, judge)
            else:
                run(name, arguments, port, judge)


@pytest.mark.parametrize("page", page_ids("bash"))
def test_commands_that_are_left_out_parse(page, models, tmp_path, monkeypatch):
    prepare(page, tmp_path, models)
    monkeypatch.chdir(tmp_path)
    for _, text in blocks(page, "bash"):
        for name, *arguments in commands_in(text):
            if any(part in " ".join([name, *arguments]) for part in LEFT_OUT):
                _parsed(name, recipe_of(name)[1], arguments)


def test_what_is_left_out_or_replaced_is_in_the_documentation():
    commands = [
        " ".join(command)
        for page in page_ids("bash")
        for _, text in blocks(page, "bash")
        for command in commands_in(text)
    ]
    assert [part for part in LEFT_OUT if not any(part in command for command in commands)] == []
    text = "\n".join(pages.values())
    assert [named for named in INSTEAD if named not in text] == []
