"""`train-policy` against a reward model that is served, and against a server that dies."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file
from tiny_policy import tiny_config, write_models

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")

from tiny_server import listening

from tokencredit.cli import main
from tokencredit.errors import ConfigError, RunFolderError, ServerError
from tokencredit.recipes.policy.models import reward_server_of
from tokencredit.recipes.policy.train_policy import train_policy
from tokencredit.recipes.run.run_folder import read_jsonl
from tokencredit.recipes.serving.serve import ServeConfig, application_of
from tokencredit.text.reading_settings import ReadingSettings

TIMES = ("seconds_rollout", "seconds_score", "seconds_update", "tokens_per_second")
TOKEN = "open-sesame-42"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return write_models(tmp_path_factory.mktemp("models"))


class Mortal:
    """An application that answers so many requests for scores and then only that it stops."""

    def __init__(self, app):
        self.app, self.left = app, None

    async def __call__(self, scope, receive, send):
        if scope["type"] == "http" and scope["path"] == "/score" and self.left is not None:
            self.left -= 1
            if self.left < 0:
                await send({"type": "http.response.start", "status": 503, "headers": []})
                await send({"type": "http.response.body", "body": b""})
                return
        await self.app(scope, receive, send)


@pytest.fixture(scope="module")
def server(models):
    config = ServeConfig(str(models / "reward"), reading=ReadingSettings("auto"))
    app = Mortal(application_of(config, token=TOKEN))
    with listening(app) as address:
        yield address, app


@pytest.fixture
def served_config(models, tmp_path, server, monkeypatch):
    monkeypatch.setenv("REWARD_TOKEN", TOKEN)
    address, app = server
    app.left = None

    def config(name="served", **changes):
        settings = {"reward_model": address, "server.token_variable": "REWARD_TOKEN"}
        return tiny_config(models, tmp_path / name, **{**settings, **changes})

    return config


def rows_of(folder):
    rows = read_jsonl(folder / "metrics.jsonl")
    return [{k: v for k, v in row.items() if k not in TIMES} for row in rows]


def assert_alike(first, second):
    for row, other in zip(rows_of(first), rows_of(second), strict=True):
        assert row == pytest.approx(other, rel=1e-3, abs=1e-4)
    one, other = (load_file(folder / "policy" / "model.safetensors") for folder in (first, second))
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "settings",
    [
        {"credit.method": "prefix-difference", "score.normalization": "running", "score.clip": 1.0},
        {
            "credit.method": "attention",
            "credit.terminal_share": 0.25,
            "machine.offload_frozen": True,
        },
        {
            "credit.method": "smoothed-prefix-difference",
            "segments.kind": "ngram",
            "segments.length": 2,
        },
        {
            "credit.method": "generator-attention",
            "algorithm.critic": "separate",
            "sampling.force_eos": True,
        },
    ],
    ids=lambda settings: settings["credit.method"],
)
def test_a_run_is_that_with_the_model_in_this_process(models, tmp_path, served_config, settings):
    train_policy(tiny_config(models, tmp_path / "local", **settings))
    train_policy(served_config(**settings))
    assert len(rows_of(tmp_path / "local")) == 2
    assert_alike(tmp_path / "local", tmp_path / "served")


def test_a_server_that_dies_stops_the_run_and_its_return_lets_it_go_on(
    tmp_path, served_config, server, capsys
):
    train_policy(served_config("whole", steps=3))
    server[1].left = 2
    config = served_config("broken", steps=3, server__retries=0)
    with pytest.raises(ServerError, match=r"asked 1 time in 0 s and did not answer.*503"):
        train_policy(config)
    folder = tmp_path / "broken"
    assert [path.name for path in sorted((folder / "checkpoints").iterdir())] == [
        "step-000001",
        "step-000002",
    ]
    assert [row["step"] for row in rows_of(folder)] == [0, 1]
    assert not (folder / "policy").exists()
    server[1].left = None
    # How patient a run is may change from one time to the next.
    server_settings = dataclasses.replace(config.server, retries=4, timeout=9.0)
    train_policy(dataclasses.replace(config, server=server_settings))
    assert_alike(tmp_path / "whole", folder)
    said = (folder / "config.yaml").read_text()
    assert "token_variable: REWARD_TOKEN" in said
    assert TOKEN not in said + capsys.readouterr().out


def test_another_address_is_another_run(served_config):
    config = served_config(steps=1)
    train_policy(config)
    elsewhere = dataclasses.replace(config, reward_model="http://127.0.0.1:1")
    with pytest.raises(RunFolderError, match="holds another run"):
        train_policy(elsewhere)


def test_nobody_there_leaves_no_folder(models, tmp_path, capsys):
    settings = {"reward_model": "http://127.0.0.1:1", "server.retries": 0}
    with pytest.raises(ServerError, match="refused"):
        train_policy(tiny_config(models, tmp_path / "run", **settings))
    assert not (tmp_path / "run").exists()
    arguments = ["--policy", str(models / "policy"), "--prompts", str(models / "prompts.jsonl")]
    arguments += ["--output", str(tmp_path / "run"), "--machine.device", "cpu"]
    for name, value in settings.items():
        arguments += [f"--{name}", str(value)]
    assert main(["train-policy", *arguments]) == 1
    said = capsys.readouterr().err
    assert said.startswith("tokencredit train-policy: ServerError: the reward server at http://127")
    assert said.count("\n") == 1


def test_the_wrong_token(served_config, monkeypatch):
    monkeypatch.setenv("REWARD_TOKEN", "another-word")
    with pytest.raises(ConfigError, match="does not take the token") as caught:
        train_policy(served_config())
    assert "another-word" not in str(caught.value)


def test_a_token_that_is_not_set(served_config, monkeypatch):
    monkeypatch.setenv("REWARD_TOKEN", " ")
    config = served_config()
    with pytest.raises(ConfigError, match="'REWARD_TOKEN', which is not set"):
        reward_server_of(config.reward_model, config.server)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"algorithm.critic": "reward-model"},
            "algorithm.critic is 'reward-model' and the rewards are",
        ),
        ({"held_out_reward_model": "http://host"}, "held_out_reward_model is an address"),
        ({"reward_model": "ftp://host"}, "'ftp://host' is no address"),
        ({"server.timeout": 0.0}, "timeout is 0"),
        ({"server.retries": -1}, "retries -1"),
        ({"reward_model": "my/model", "server.token_variable": "X"}, "which is no address"),
    ],
)
def test_settings_that_a_server_does_not_allow(tmp_path, changes, message):
    settings = {"reward_model": "http://host:9000", **changes}
    with pytest.raises(ConfigError, match=message):
        tiny_config(tmp_path, tmp_path, **settings)


def test_another_layer_than_the_servers(served_config):
    with pytest.raises(ConfigError, match=r"credit\.layer is 0"):
        train_policy(served_config(credit__method="attention", credit__layer=0))


def test_samples_hold_what_was_paid(tmp_path, served_config):
    train_policy(served_config(steps=1, record__sample_every=1))
    row = json.loads((tmp_path / "served" / "samples.jsonl").read_text().splitlines()[0])
    assert len(row["tokens"]) == len(row["token_scores"])
    assert any(row["token_scores"])
