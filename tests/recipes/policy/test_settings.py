"""Settings of `train-policy`: groups, names of the flat layout, what contradicts what."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from tiny_policy import tiny_config, write_models

from tokencredit.cli import _parsed, main
from tokencredit.errors import ConfigError, RunFolderError, TokenCreditWarning
from tokencredit.recipes.policy.train_policy import TrainPolicyConfig, train_policy
from tokencredit.recipes.run.run_folder import resolved_yaml
from tokencredit.recipes.settings import all_settings, flat_settings

NEEDED = {"policy": "p", "reward_model": "r", "prompts": "p.jsonl", "output": "run"}
SHORTEST = [text for name, value in NEEDED.items() for text in (f"--{name}", value)]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return write_models(tmp_path_factory.mktemp("models"))


def parsed(*arguments: str) -> TrainPolicyConfig:
    return _parsed("train-policy", TrainPolicyConfig, [*SHORTEST, *arguments])


def test_the_shortest_command_has_all_defaults():
    assert parsed() == TrainPolicyConfig(**NEEDED)


def test_groups_are_set_by_dots_and_in_yaml(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("credit: {method: attention, beta: 0.5}\nalgorithm:\n  epochs: 2\n")
    config = parsed("--config", str(file), "--credit.beta", "0.7", "--kl.coef", "0")
    assert (config.credit.method, config.credit.beta) == ("attention", 0.7)
    assert (config.algorithm.epochs, config.kl.coef) == (2, 0.0)


def test_what_is_written_is_read_again(tmp_path, models):
    config = tiny_config(models, tmp_path, credit__method="uniform", data__tokens=[1, 2])
    file = tmp_path / "config.yaml"
    file.write_text(resolved_yaml(config))
    assert _parsed("train-policy", TrainPolicyConfig, ["--config", str(file)]) == config


def test_a_group_has_at_most_fifteen_settings():
    inside = [name.rpartition(".")[0] for name, _ in all_settings(TrainPolicyConfig)]
    assert max(map(inside.count, inside)) <= 15


def test_every_setting_is_explained_by_help(capsys):
    with pytest.raises(SystemExit):
        main(["train-policy", "--help"])
    said = capsys.readouterr().out
    for name, _ in all_settings(TrainPolicyConfig):
        text = said.split(f"--{name} ", 1)[1].split("\n  --", 1)[0]
        assert len(text.split(") ")[0].split()) > 3, name


OLD = {
    "credit": "credit.method",
    "credit_beta": "credit.beta",
    "credit_dpo_beta": "credit.dpo_beta",
    "attention_layer": "credit.layer",
    "terminal_share": "credit.terminal_share",
    "segments": "segments.kind",
    "segment_use": "segments.use",
    "score_clip": "score.clip",
    "prompt_column": "data.column",
    "prompt_tokens": "data.tokens",
    "max_prompts": "data.limit",
    "reward_server_retries": "server.retries",
    "max_new_tokens": "sampling.max_new_tokens",
    "ppo_epochs": "algorithm.epochs",
    "gae_lambda": "algorithm.gae_lambda",
    "learning_rate": "optimizer.learning_rate",
    "kl_coef": "kl.coef",
    "kl_loss_coef": "kl.loss_coef",
    "lora_rank": "lora.rank",
    "dtype": "loading.dtype",
    "device": "machine.device",
    "process_timeout": "machine.process_timeout",
    "checkpoint_every": "record.checkpoint_every",
    "progress": "record.progress",
}


@pytest.mark.parametrize(("old", "new"), OLD.items())
def test_a_name_of_the_flat_layout_names_the_new_one(tmp_path, old, new):
    file = tmp_path / "old.yaml"
    file.write_text(yaml.safe_dump({old: "x"}))
    for arguments in (["--config", str(file)], [f"--{old}", "x"]):
        with pytest.raises(ConfigError) as caught:
            parsed(*arguments)
        assert f"The setting {old!r} is now {new!r}" in str(caught.value)


def test_a_misspelt_setting_names_the_nearest():
    with pytest.raises(ConfigError, match=r"Did you mean 'optimizer\.learning_rate'"):
        parsed("--learning_rte", "1")


def test_the_flat_layout_in_a_folder_is_refused_with_the_section_of_the_changelog(models, tmp_path):
    config = tiny_config(models, tmp_path / "run", steps=1)
    (tmp_path / "run").mkdir()
    old = {name.rpartition(".")[2]: v for name, v in flat_settings_of(config).items()}
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump({**old, "credit": "uniform"}))
    with pytest.raises(RunFolderError, match="have no groups") as caught:
        train_policy(config)
    section = str(caught.value).split('"')[1]
    changelog = Path(__file__).parents[3] / "CHANGELOG.md"
    assert f"# {section}\n" in changelog.read_text()


def flat_settings_of(config: TrainPolicyConfig) -> dict:
    return flat_settings(TrainPolicyConfig, yaml.safe_load(resolved_yaml(config)))


def test_a_folder_older_than_a_setting_of_a_group_has_it_at_its_default(models, tmp_path):
    config = tiny_config(models, tmp_path / "run", steps=1)
    train_policy(config)
    file = tmp_path / "run" / "config.yaml"
    kept = yaml.safe_load(file.read_text())
    del kept["algorithm"]["clip_eps"], kept["score"]
    file.write_text(yaml.safe_dump(kept))
    other = replace(config, algorithm=replace(config.algorithm, clip_eps=0.3))
    with pytest.raises(RunFolderError, match=r"algorithm\.clip_eps: 0\.2 -> 0\.3"):
        train_policy(other)
    train_policy(config)


def test_free_settings_may_change_when_a_run_goes_on(models, tmp_path):
    train_policy(tiny_config(models, tmp_path, steps=1))
    changes = {
        "record.checkpoint_every": 2,
        "record.sample_count": 1,
        "server.retries": 3,
        "machine.process_timeout": 60.0,
        "machine.offload_frozen": True,
    }
    train_policy(tiny_config(models, tmp_path, steps=2, **changes))
    with pytest.raises(RunFolderError, match=r"machine\.mixed_precision: 'no' -> 'bf16'"):
        train_policy(tiny_config(models, tmp_path, machine__mixed_precision="bf16"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kl.coef": 0.1, "kl.loss_coef": 0.1}, "not both"),
        ({"kl.coef": 0.0, "kl.loss_coef": 0.1}, "zero on average"),
        ({"kl.target": 6.0, "kl.coef": 0.0}, "adaptive"),
        ({"batch_size": 6, "algorithm.minibatch_size": 4}, "multiple"),
        ({"batch_size": 4, "algorithm.micro_batch_size": 3}, "multiple"),
        ({"sampling.truncation_penalty": 1.0}, "truncated='penalty' or 'replace', or no penalty"),
        ({"sampling.truncated": "mask", "sampling.truncation_penalty": 1.0}, "is 'mask'; expected"),
        (
            {"algorithm.value_pooling": "mean"},
            r"value_pooling is 'mean' and segments\.use 'pay-at-end'; expected segments",
        ),
        (
            {"algorithm.value_pooling": "last", "segments.kind": "ngram"},
            r"value_pooling is 'last' and segments\.use 'pay-at-end'",
        ),
        ({"sampling.response_lengths": "uniform", "sampling.truncated": "mask"}, "forbids the end"),
        ({"sampling.min_new_tokens": 9, "sampling.max_new_tokens": 8}, "0 <= min <= max"),
        (
            {
                "sampling.min_new_tokens": 9,
                "sampling.max_new_tokens": 8,
                "sampling.response_lengths": "uniform",
            },
            "0 <= min <= max",
        ),
        ({"data.tokens": [4, 2]}, "least <= most"),
        ({"algorithm.gamma": 0.0}, "gamma"),
        ({"algorithm.epochs": 0}, "epochs is 0; expected at least 1"),
        ({"steps": 0}, "steps is 0; expected at least 1"),
        ({"record.keep_checkpoints": 0}, "keep_checkpoints is 0"),
        ({"machine.process_timeout": 0.0}, "process_timeout"),
        (
            {"machine.vllm_server": "http://x", "lora.rank": 2},
            r"lora\.rank 2; expected lora\.rank 0",
        ),
        ({"credit.method": "attenton"}, "did you mean 'attention'"),
    ],
)
def test_contradictory_settings_are_refused(models, tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        tiny_config(models, tmp_path, **changes)


def test_discounting_a_redistribution_warns(models, tmp_path):
    with pytest.warns(TokenCreditWarning, match=r"gamma is 0\.9"):
        tiny_config(models, tmp_path, algorithm__gamma=0.9, credit__method="attention")
