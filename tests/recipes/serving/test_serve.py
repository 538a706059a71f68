"""The command: its settings, and a server of its own process on the machine's loopback."""

import json
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from http.client import HTTPConnection
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
import torch
from credit_names import ONE_PASS_ALONE
from saved_models import save_reward_model
from serve_process import TOKEN, Server
from tiny_tokenizers import CHAT_TEMPLATE, byte_level, word_level, wordpiece

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")

from tiny_server import break_model, tiny_served
from tiny_server import posted as post_in_process

from tokencredit.errors import ConfigError, ModelError, NumericError, TokenCreditWarning
from tokencredit.recipes.run.run_folder import resolved_yaml
from tokencredit.recipes.serving.serve import (
    LimitSettings,
    ServeConfig,
    application_of,
    bearer_token,
    serve,
)
from tokencredit.scorers.source_settings import RewardSource

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "serve.md").read_text()
WAIT_MS = 700


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served") / "model"
    save_reward_model(folder, byte_level(bos=True))
    return str(folder)


@pytest.fixture(scope="module")
def server(model):
    settings = ("--token_variable", "REWARD_TOKEN", "--access_log", "true")
    running = Server(model, *settings, "--limits.max_wait_ms", str(WAIT_MS))
    yield running
    if running.process.returncode is None:
        running.stop()


def posted(server, path, body):
    headers = {"Authorization": f"Bearer {TOKEN}"}
    with urlopen(Request(server.address + path, json.dumps(body).encode(), headers)) as answer:
        return json.load(answer)


def documented(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, flags=re.M | re.S)


def test_the_curl_lines_of_the_page_are_answered(server):
    lines = [line for block in documented("bash") for line in block.splitlines()]
    commands = [shlex.split(line) for line in lines if line.startswith("curl ")]
    assert len(commands) == 8
    answers = []
    for command in commands:
        here = [part.replace("http://127.0.0.1:8000", server.address) for part in command]
        here += ["--header", f"Authorization: Bearer {TOKEN}"]
        run = subprocess.run(here, capture_output=True, text=True, timeout=60)
        assert run.returncode == 0, run.stdout
        answers.append(run.stdout)
    ready, texts, ids, details, about, rewards, health, numbers = answers
    assert json.loads(ready) == {"ready": True}
    assert [list(row["token_scores"]) for row in json.loads(texts)["scores"]] == [
        ["prefix-difference"]
    ] * 2
    assert len(json.loads(ids)["scores"][0]["token_scores"]["attention"]) == 3
    (row,) = json.loads(details)["scores"]
    assert len(row["prefix_scores"]) == len(row["attention"]) + 1
    assert json.loads(about)["details"] == ["prefix-scores", "attention"]
    assert len(json.loads(rewards)["rewards"]) == 1
    assert json.loads(health) == {"alive": True}
    assert "tokencredit_requests_total" in numbers


def test_the_functions_of_the_page_reach_the_server(server, monkeypatch):
    """Its client, and the file that OpenRLHF loads."""
    monkeypatch.setenv("REWARD_ADDRESS", server.address)
    monkeypatch.setenv("REWARD_TOKEN", TOKEN)
    names: dict = {}
    for block in documented("python"):
        exec(block, names)
    (paid,) = names["token_scores"](server.address, ["the film"], [" is good"], token=TOKEN)
    text = {"prompt": "the film", "response": " is good"}
    (row,) = posted(server, "/score", {"texts": [text], "credit": ["prefix-difference"]})["scores"]
    assert paid == pytest.approx(row["token_scores"]["prefix-difference"], abs=1e-5)
    answer = names["reward_func"](["the film is good<eos>"], ["the film"], [None])
    assert set(answer) == {"rewards", "scores", "extra_logs"}
    assert answer["rewards"].tolist() == pytest.approx([row["sequence_score"]], abs=1e-5)


def test_a_connection_may_be_idle_for_a_while(server):
    """Uvicorn closes it after five seconds unless told otherwise."""
    connection = HTTPConnection(server.address.removeprefix("http://"))
    connection.request("GET", "/health")
    assert connection.getresponse().read()
    same = connection.sock
    time.sleep(6)
    connection.request("GET", "/health")
    assert connection.getresponse().status == 200
    assert connection.sock is same
    connection.close()


def test_told_to_stop_it_finishes_what_it_accepted(server):
    """The last test of this process: a request waits for others while it is told to stop."""
    answers = []
    body = {"texts": [{"prompt": "a secret", "response": " text"}]}
    request = threading.Thread(target=lambda: answers.append(posted(server, "/score", body)))
    request.start()
    end = time.monotonic() + 30
    while time.monotonic() < end:
        with urlopen(f"{server.address}/metrics") as numbers:
            if "tokencredit_waiting_rows 1.0" in numbers.read().decode():
                break
    said = server.stop()
    request.join(30)
    assert len(answers[0]["scores"]) == 1
    assert server.process.returncode == 0
    assert said.endswith("stopped\n")
    assert "POST /score" in said
    assert "token_variable: REWARD_TOKEN" in said
    assert TOKEN not in said
    assert "secret" not in said
    assert "Traceback" not in said


def test_told_to_stop_as_soon_as_it_serves(model):
    for number in (signal.SIGTERM, signal.SIGINT):
        server = Server(model)
        server.process.send_signal(number)
        assert server.process.wait(60) == 0
        assert server.process.stdout.partition(f"{server.address}\n")[2] == "stopped\n"


def test_told_to_stop_it_does_so_whatever_holds_it_up(tmp_path):
    loops = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    template = "{% if 'loop' in messages[0].content %}" + loops + "{% endif %}" + CHAT_TEMPLATE
    save_reward_model(tmp_path, byte_level(bos=True, chat_template=template))
    limits = ("--limits.encoding_timeout", "900", "--connections.stop_timeout", "1")
    server = Server(str(tmp_path), *limits)
    body = json.dumps({"texts": [{"prompt": "loop", "response": "a"}]}).encode()
    connection = HTTPConnection(server.address.removeprefix("http://"))
    connection.request("POST", "/score", body, {"Content-Type": "application/json"})
    end = time.monotonic() + 60
    while not _is_busy(server.address):
        assert time.monotonic() < end
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(60) == 1
    connection.close()


def _is_busy(address):
    try:
        urlopen(f"{address}/ready").close()
    except HTTPError as error:
        return error.code == 503
    return False


def test_all_methods_are_offered_unless_some_are_named(model):
    assert _offered(ServeConfig(model)) == ONE_PASS_ALONE
    assert _offered(ServeConfig(model, methods=("uniform",))) == ("uniform",)


def _offered(config):
    app = application_of(config)
    app.state.intake.close()
    return app.state.intake.scorer.credit_methods


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ("atention",)}, "did you mean 'attention'"),
        ({"limits": {"max_batch_tokens": 0}}, "max_batch_tokens is 0"),
        ({"limits": {"queue_size": 0}}, "queue_size is 0"),
        ({"limits": {"max_body_bytes": 0}}, "max_body_bytes is 0"),
        ({"limits": {"max_wait_ms": -1.0}}, "max_wait_ms is -1"),
        ({"limits": {"request_timeout": 0.0}}, "request_timeout is 0"),
        ({"port": 65536}, "port is 65536"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_settings_that_cannot_be(changes, message):
    kind, values = (LimitSettings, changes["limits"]) if "limits" in changes else (ServeConfig, {})
    values = values or {"reward_model": "m", **changes}
    with pytest.raises(ConfigError, match=message):
        kind(**values)


def test_the_token_comes_from_the_environment_and_is_not_printed(monkeypatch):
    config = ServeConfig("m", host="0.0.0.0", token_variable="MY_TOKEN")
    monkeypatch.setenv("MY_TOKEN", f" {TOKEN}\n")
    assert bearer_token(config) == TOKEN
    assert TOKEN not in resolved_yaml(config)
    for value in (None, " "):
        monkeypatch.delenv("MY_TOKEN", raising=False)
        if value is not None:
            monkeypatch.setenv("MY_TOKEN", value)
        with pytest.raises(ConfigError, match="'MY_TOKEN', which is not set or empty"):
            bearer_token(config)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_this_machine_alone_needs_no_token(host):
    assert bearer_token(ServeConfig("m", host=host)) is None


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "rewards.example"])
def test_a_server_for_everyone_without_a_token_is_warned_about(host):
    with pytest.warns(TokenCreditWarning, match="asks for no token"):
        assert bearer_token(ServeConfig("m", host=host)) is None


def test_a_port_that_is_taken(model):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ConfigError, match="nothing can listen at 127"):
            serve(ServeConfig(model, port=taken.getsockname()[1]))


def test_without_the_extra_it_says_what_to_install(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "fastapi", None)
    monkeypatch.delitem(sys.modules, "tokencredit.server.app", raising=False)
    with pytest.raises(ConfigError, match=r"fastapi is not installed.*tokencredit\[serve\]"):
        serve(ServeConfig(model))


def test_a_model_that_gives_nan_is_not_served(tmp_path):
    served = tiny_served()
    break_model(served, " a")
    served.model.save_pretrained(tmp_path)
    served.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(NumericError, match="NaN"):
        serve(ServeConfig(str(tmp_path)))


def test_a_model_that_lacks_what_a_method_needs_is_not_served(tmp_path):
    save_reward_model(tmp_path, wordpiece(), "bert")
    with pytest.raises(ModelError, match="needs the score of every prefix"):
        serve(ServeConfig(str(tmp_path), methods=("prefix-difference",)))
    assert _offered(ServeConfig(str(tmp_path))) == ("terminal", "uniform", "attention")


def test_no_model(tmp_path):
    with pytest.raises(ModelError, match="there is no folder"):
        serve(ServeConfig(str(tmp_path / "nowhere")))


def test_several_rewards_are_served_as_one(model, tmp_path):
    torch.manual_seed(5)
    save_reward_model(tmp_path / "other", word_level())
    rewards = (RewardSource(model, name="own"), RewardSource(str(tmp_path / "other"), weight=2.0))
    text = {"prompt": "the film is", "response": " a good plot"}
    body = {"texts": [text], "credit": ["uniform", "prefix-difference"]}

    def row(**settings):
        app = application_of(ServeConfig(**settings))
        return post_in_process(app, "/score", body).json()["scores"][0]

    both, own = row(rewards=rewards), row(reward_model=model)
    other = row(reward_model=str(tmp_path / "other"))
    score = own["sequence_score"] + 2.0 * other["sequence_score"]
    assert both["sequence_score"] == pytest.approx(score, abs=1e-4)
    assert both["tokens"] == own["tokens"]
    for name in body["credit"]:
        total = sum(own["token_scores"][name]) + 2.0 * sum(other["token_scores"][name])
        assert sum(both["token_scores"][name]) == pytest.approx(total, abs=1e-4)
    assert "attention" not in _offered(ServeConfig(rewards=rewards))
    tokenizer = byte_level(bos=True)
    prompt = tokenizer(text["prompt"])["input_ids"]
    response = tokenizer(text["prompt"] + text["response"])["input_ids"][len(prompt) :]
    app = application_of(ServeConfig(rewards=rewards))
    ids = {"prompt_ids": prompt, "response_ids": response}
    (found,) = post_in_process(app, "/score", {"ids": [ids], "credit": []}).json()["scores"]
    assert found["sequence_score"] == pytest.approx(score, abs=1e-4)


def test_the_first_reward_is_a_model_of_this_process():
    with pytest.raises(ConfigError, match="the first reward is 'module:function'"):
        ServeConfig(rewards=(RewardSource("module:function"),))
