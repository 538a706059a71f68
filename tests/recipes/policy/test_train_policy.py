import json
import math
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from forked import ForkedCommand
from safetensors.torch import load_file, save_file
from tiny_policy import tiny_config, write_models
from transformers import AutoModelForCausalLM

from tokencredit.batch import ResponseBatch
from tokencredit.errors import (
    ConfigError,
    DataError,
    ModelError,
    NumericError,
    RunFolderError,
    TokenCreditWarning,
)
from tokencredit.logprobs import drawn_entropies
from tokencredit.recipes.policy import models as policy_models
from tokencredit.recipes.policy import train_policy as recipe
from tokencredit.recipes.policy import update as ppo_update
from tokencredit.recipes.policy import views as policy_views
from tokencredit.recipes.policy.after_step import warn_of_farmed_kl
from tokencredit.recipes.policy.processes import explain_lost_processes
from tokencredit.recipes.policy.refusals import require_shared_evenly
from tokencredit.recipes.policy.train_policy import TrainPolicyConfig, train_policy
from tokencredit.recipes.run.run_folder import read_jsonl
from tokencredit.recipes.settings import flat_settings

TIMES = ("seconds_rollout", "seconds_score", "seconds_update", "tokens_per_second")
CREDITS = (
    "terminal",
    "uniform",
    "attention",
    "generator-attention",
    "last-generator-attention",
    "prefix-difference",
)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return write_models(tmp_path_factory.mktemp("models"))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def rows_without_times(folder: Path) -> list[dict]:
    rows = read_jsonl(folder / "metrics.jsonl")
    return [{k: v for k, v in row.items() if k not in TIMES} for row in rows]


def assert_same_run(first: Path, second: Path) -> None:
    for name, value in weights(first / "policy").items():
        assert torch.equal(value, weights(second / "policy")[name]), name
    assert rows_without_times(first) == rows_without_times(second)
    assert read_jsonl(first / "samples.jsonl") == read_jsonl(second / "samples.jsonl")


@pytest.mark.parametrize("credit", CREDITS)
def test_every_credit_trains_and_reports(models, tmp_path, credit):
    held_out = str(models / "held-out")
    config = tiny_config(models, tmp_path, credit__method=credit, held_out_reward_model=held_out)
    policy = train_policy(config)
    rows = read_jsonl(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [0, 1]
    assert all(isinstance(value, int | float) for row in rows for value in row.values())
    expected = {"score", "score_std", "held_out_score", "last_token_share", "credit_entropy", "kl"}
    expected |= {"clip_fraction", "explained_variance", "value_loss", "policy_loss", "entropy"}
    expected |= {"length", "truncated_share", "gradient_norm", "kl_coef", *TIMES}
    assert expected <= set(rows[0])
    trained, start = weights(policy), weights(models / "policy")
    assert any(not torch.equal(trained[name], start[name]) for name in start)
    AutoModelForCausalLM.from_pretrained(policy)


@pytest.mark.parametrize("credit", CREDITS)
def test_token_scores_sum_to_the_score_before_kl(models, tmp_path, credit):
    train_policy(tiny_config(models, tmp_path, credit__method=credit, steps=1, credit__beta=0.7))
    row = read_jsonl(tmp_path / "metrics.jsonl")[0]
    if credit == "prefix-difference":
        assert row["token_score_sum"] != pytest.approx(row["score"], rel=1e-3)
    else:
        assert row["token_score_sum"] == pytest.approx(row["score"], rel=1e-4)


def test_the_first_step_starts_at_the_reference(models, tmp_path):
    train_policy(tiny_config(models, tmp_path, steps=1, algorithm__epochs=1))
    row = read_jsonl(tmp_path / "metrics.jsonl")[0]
    assert row["kl"] == pytest.approx(0.0, abs=1e-5)
    assert row["clip_fraction"] == 0.0


def test_resumed_equals_uninterrupted(models, tmp_path):
    settings = {"kl.target": 1.0, "score.normalization": "running", "record.sample_every": 1}
    train_policy(tiny_config(models, tmp_path / "whole", steps=4, **settings))
    train_policy(tiny_config(models, tmp_path / "halves", steps=2, **settings))
    train_policy(tiny_config(models, tmp_path / "halves", steps=4, **settings))
    assert_same_run(tmp_path / "whole", tmp_path / "halves")


@pytest.mark.parametrize("critic", ["separate", "reward-model"])
def test_resumed_equals_uninterrupted_with_a_critic_apart(models, tmp_path, critic):
    train_policy(tiny_config(models, tmp_path / "whole", steps=3, algorithm__critic=critic))
    train_policy(tiny_config(models, tmp_path / "halves", steps=1, algorithm__critic=critic))
    train_policy(tiny_config(models, tmp_path / "halves", steps=3, algorithm__critic=critic))
    assert_same_run(tmp_path / "whole", tmp_path / "halves")


def test_killed_at_any_moment_it_goes_on_to_the_same_end(models, tmp_path):
    steps = 6
    train_policy(tiny_config(models, tmp_path / "whole", steps=steps))
    command = ["train-policy"]
    settings = asdict(tiny_config(models, tmp_path / "killed", steps=steps))
    for name, value in flat_settings(TrainPolicyConfig, settings).items():
        if value is not None and value != ():
            command += [f"--{name}", value if isinstance(value, str) else json.dumps(value)]
    process = ForkedCommand(*command)
    metrics = tmp_path / "killed" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while len(read_jsonl(metrics)) < 2 and process.returncode is None:
        assert time.monotonic() < deadline, "the run never reached its second step"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL, process.stderr
    train_policy(tiny_config(models, tmp_path / "killed", steps=steps))
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


def test_a_checkpoint_cut_short_is_not_taken_for_whole(models, tmp_path):
    train_policy(tiny_config(models, tmp_path / "whole", steps=3))
    train_policy(tiny_config(models, tmp_path / "cut", steps=2))
    cut = tmp_path / "cut" / "checkpoints" / ".writing-step-000003"
    cut.mkdir()
    (cut / "state.json").write_text('{"step": 3')
    train_policy(tiny_config(models, tmp_path / "cut", steps=3))
    assert_same_run(tmp_path / "whole", tmp_path / "cut")
    assert not cut.exists()


def test_only_the_newest_checkpoints_stay(models, tmp_path):
    train_policy(tiny_config(models, tmp_path, steps=4, record__keep_checkpoints=2))
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-000003", "step-000004"]
    files = {path.suffix for path in tmp_path.rglob("*") if path.is_file()}
    assert not files & {".bin", ".pt", ".pth", ".pkl"}


@pytest.mark.parametrize("minibatch_size", [4, 2])
def test_accumulated_gradient_equals_the_whole_batch(models, tmp_path, minibatch_size):
    settings = {
        "algorithm.minibatch_size": minibatch_size,
        "sampling.truncated": "mask",
        "optimizer.adam_epsilon": 1e-3,
    }
    for size in (1, minibatch_size):
        train_policy(
            tiny_config(models, tmp_path / str(size), algorithm__micro_batch_size=size, **settings)
        )
    ones, whole = (
        weights(tmp_path / "1" / "policy"),
        weights(tmp_path / str(minibatch_size) / "policy"),
    )
    for name, value in whole.items():
        torch.testing.assert_close(ones[name], value, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("settings", [{}, {"sampling.top_k": 4}, {"credit.method": "attention"}])
def test_scoring_some_responses_at_a_time_says_the_same(models, tmp_path, monkeypatch, settings):
    rows_at_a_time = []

    def counted(logits, *arguments, **options):
        rows_at_a_time.append(len(logits))
        return drawn_entropies(logits, *arguments, **options)

    monkeypatch.setattr(policy_views, "drawn_entropies", counted)
    found = []
    for size in (None, 1):
        output = tmp_path / str(size)
        changes = {
            "steps": 1,
            "algorithm.micro_batch_size": size,
            "algorithm.epochs": 1,
            **settings,
        }
        train_policy(
            tiny_config(models, output, held_out_reward_model=str(models / "held-out"), **changes)
        )
        found.append(read_jsonl(output / "metrics.jsonl")[0])
    assert rows_at_a_time == [4, 1, 1, 1, 1]
    for name in ("score", "held_out_score", "kl", "entropy", "token_score_sum", "credit_entropy"):
        assert found[1][name] == pytest.approx(found[0][name], rel=1e-4, abs=1e-5)


def test_lora_trains_adapters_alone_and_the_base_is_its_reference(models, tmp_path):
    settings = {"lora.rank": 2, "credit.method": "attention"}
    policy = train_policy(tiny_config(models, tmp_path / "whole", steps=3, **settings))
    rows = read_jsonl(tmp_path / "whole" / "metrics.jsonl")
    assert rows[0]["kl"] == pytest.approx(0.0, abs=1e-5)
    assert rows[-1]["kl"] != 0.0
    assert {path.name for path in policy.iterdir()} >= {
        "adapter_model.safetensors",
        "adapter_config.json",
    }
    assert not (policy / "model.safetensors").exists()
    train_policy(tiny_config(models, tmp_path / "halves", steps=1, **settings))
    train_policy(tiny_config(models, tmp_path / "halves", steps=3, **settings))
    assert rows_without_times(tmp_path / "halves") == rows_without_times(tmp_path / "whole")


def test_frozen_weights_that_are_rounded_once_change_no_number(models, tmp_path, monkeypatch):
    """Two steps under autocast, adapters, their checkpoint and values among them."""
    settings = {"lora.rank": 2, "credit.method": "attention", "machine.mixed_precision": "bf16"}
    for name, rounds in (("once", None), ("every time", lambda *_, **__: False)):
        if rounds is not None:
            monkeypatch.setattr(policy_models, "_is_called_under_autocast_alone", rounds)
        train_policy(tiny_config(models, tmp_path / name, steps=2, **settings))
    once, every_time = (tmp_path / name for name in ("once", "every time"))
    assert rows_without_times(once) == rows_without_times(every_time)
    adapters = [
        load_file(one / "policy" / "adapter_model.safetensors") for one in (once, every_time)
    ]
    assert adapters[0].keys() == adapters[1].keys()
    assert all(torch.equal(adapters[0][name], adapters[1][name]) for name in adapters[0])


def test_rounded_weights_are_asked_under_autocast_alone(models, tmp_path):
    """By a credit that reads the policy, and by segments that read the reference."""
    train_policy(
        tiny_config(
            models,
            tmp_path,
            steps=1,
            lora__rank=2,
            machine__mixed_precision="bf16",
            credit__method="generator-attention",
            segments__kind="entropy",
        )
    )
    assert math.isfinite(read_jsonl(tmp_path / "metrics.jsonl")[0]["policy_loss"])


def test_a_token_scorer_of_the_caller_pays(models, tmp_path):
    def pays_length(batch: ResponseBatch) -> torch.Tensor:
        return batch.response_mask.float()

    train_policy(tiny_config(models, tmp_path, steps=1), token_scorer=pays_length)
    row = read_jsonl(tmp_path / "metrics.jsonl")[0]
    assert row["score"] == pytest.approx(row["length"])
    sample = read_jsonl(tmp_path / "samples.jsonl")[0]
    assert set(sample["token_scores"]) == {1.0}


def test_true_credit_is_learnt_and_shuffled_credit_is_not(models, tmp_path):
    tokenizer_ids = json.loads((models / "policy" / "tokenizer.json").read_text())["model"]["vocab"]
    good = tokenizer_ids["good"]

    def pays_good(batch: ResponseBatch) -> torch.Tensor:
        return ((batch.response_ids == good) & batch.response_mask).float()

    def pays_a_random_token(batch: ResponseBatch) -> torch.Tensor:
        return pays_good(batch)[torch.randperm(len(batch))].masked_fill(~batch.response_mask, 0.0)

    settings = {
        "steps": 30,
        "batch_size": 16,
        "optimizer.learning_rate": 1e-2,
        "kl.coef": 0.0,
        "algorithm.gae_lambda": 0.0,
        "algorithm.epochs": 4,
        "sampling.min_new_tokens": 5,
        "record.checkpoint_every": 30,
    }
    shares = {}
    for name, scorer in {"true": pays_good, "shuffled": pays_a_random_token}.items():
        output = tmp_path / name
        train_policy(tiny_config(models, output, **settings), token_scorer=scorer)
        rows = read_jsonl(output / "metrics.jsonl")
        shares[name] = sum(row["score"] / row["length"] for row in rows[-5:]) / 5
    assert shares["true"] > 0.5
    assert shares["shuffled"] < 0.25


def test_truncated_responses_are_paid_as_asked(models, tmp_path):
    rows = {}
    for truncated in ("ended", "penalty", "replace", "bootstrap", "mask"):
        penalty = 3.0 if truncated in ("penalty", "replace") else 0.0
        config = tiny_config(
            models,
            tmp_path / truncated,
            steps=1,
            sampling__min_new_tokens=5,
            sampling__truncated=truncated,
            sampling__truncation_penalty=penalty,
            credit__method="uniform",
            algorithm__critic="reward-model",
            record__sample_every=1,
        )
        train_policy(config)
        sample = read_jsonl(tmp_path / truncated / "samples.jsonl")[0]
        rows[truncated] = (sample, read_jsonl(tmp_path / truncated / "metrics.jsonl")[0])
    assert rows["ended"][1]["truncated_share"] == 1.0
    plain, fined = rows["ended"][0]["token_rewards"], rows["penalty"][0]["token_rewards"]
    assert fined[-1] == pytest.approx(plain[-1] - 3.0, abs=1e-4)
    assert fined[:-1] == pytest.approx(plain[:-1], abs=1e-4)
    scores = rows["ended"][0]["token_scores"]
    kl = [reward - score for reward, score in zip(plain, scores, strict=True)]
    replaced = rows["replace"][0]["token_rewards"]
    assert replaced == pytest.approx([*kl[:-1], kl[-1] - 3.0], abs=1e-4)
    assert rows["bootstrap"][1]["value_loss"] != rows["ended"][1]["value_loss"]
    assert rows["mask"][1]["policy_loss"] == 0.0


def test_score_clip_acts_before_the_score_is_spread(models, tmp_path):
    config = tiny_config(
        models, tmp_path, steps=1, credit__method="attention", score__clip=0.01, kl__coef=0.0
    )
    train_policy(config)
    row = read_jsonl(tmp_path / "metrics.jsonl")[0]
    assert abs(row["score"]) > 0.01
    for sample in read_jsonl(tmp_path / "samples.jsonl"):
        clipped = max(-0.01, min(0.01, sample["score"]))
        assert sum(sample["token_scores"]) == pytest.approx(clipped, abs=1e-4)


@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_kl_in_the_loss_moves_the_policy_back(models, tmp_path, estimator):
    kls = {}
    for coefficient in (0.0, 5.0):
        config = tiny_config(
            models, tmp_path / str(coefficient), steps=4, kl__coef=0.0, kl__estimator=estimator,
            kl__loss_coef=coefficient,
        )  # fmt: skip
        train_policy(config)
        kls[coefficient] = abs(read_jsonl(Path(config.output) / "metrics.jsonl")[-1]["kl"])
    assert kls[5.0] < kls[0.0]


def test_a_kl_negative_beyond_noise_warns_once(models, tmp_path):
    config = tiny_config(models, tmp_path, batch_size=16)
    state = recipe.RunState()
    farmed = {"step": 3, "kl": -5.0, "kl_std": 2.0}
    with pytest.warns(TokenCreditWarning, match="-5.00 nats at step 3, negative beyond its noise"):
        warn_of_farmed_kl(config, state, farmed)
    warn_of_farmed_kl(config, state, farmed)


def test_a_kl_negative_within_noise_does_not_warn(models, tmp_path):
    config = tiny_config(models, tmp_path, batch_size=16)
    row = {"step": 3, "kl": -1.0, "kl_std": 2.0}
    warn_of_farmed_kl(config, recipe.RunState(), row)


def test_a_negative_kl_of_a_handful_of_responses_does_not_warn(models, tmp_path):
    """Two responses can be alike by chance, and their spread is then no measure of the noise."""
    config = tiny_config(models, tmp_path, batch_size=2)
    row = {"step": 3, "kl": -0.07, "kl_std": 0.005}
    warn_of_farmed_kl(config, recipe.RunState(), row)


def test_logprobs_know_what_was_suppressed(models, tmp_path):
    """The suppressed end of sequence has no probability, so the rest has more than it had."""
    rewards = {}
    for logprobs_of in ("sampled", "unmasked"):
        config = tiny_config(
            models, tmp_path / logprobs_of, steps=1, sampling__response_lengths="uniform",
            sampling__logprobs_of=logprobs_of,
        )  # fmt: skip
        train_policy(config)
        rewards[logprobs_of] = read_jsonl(Path(config.output) / "metrics.jsonl")[0]["entropy"]
    assert rewards["sampled"] != rewards["unmasked"]


def test_top_k_logprobs_are_those_of_the_truncated_distribution(models, tmp_path):
    config = tiny_config(
        models,
        tmp_path,
        steps=1,
        sampling__top_k=1,
        sampling__max_new_tokens=3,
        algorithm__epochs=1,
    )
    train_policy(config)
    row = read_jsonl(tmp_path / "metrics.jsonl")[0]
    assert row["entropy"] == pytest.approx(0.0, abs=1e-5)


def test_a_nan_in_the_reward_model_stops_and_keeps_the_checkpoint(models, tmp_path):
    train_policy(tiny_config(models, tmp_path / "run", steps=1))
    broken = write_models(tmp_path / "broken") / "reward" / "model.safetensors"
    tensors = load_file(broken)
    tensors["score.weight"].fill_(float("nan"))
    save_file(tensors, broken, metadata={"format": "pt"})
    config = tiny_config(tmp_path / "broken", tmp_path / "run2", steps=1)
    with pytest.raises(NumericError, match="NaN"):
        train_policy(config)
    assert (tmp_path / "run" / "checkpoints" / "step-000001").exists()
    assert not (tmp_path / "run2" / "policy").exists()


def test_a_nan_in_the_loss_stops_before_the_weights(models, tmp_path, monkeypatch):
    train_policy(tiny_config(models, tmp_path, steps=1))
    losses = ppo_update.clipped_policy_losses
    monkeypatch.setattr(
        ppo_update, "clipped_policy_losses", lambda *a, **k: losses(*a, **k) * float("nan")
    )
    with pytest.raises(NumericError, match="the loss is nan"):
        train_policy(tiny_config(models, tmp_path, steps=2))
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-000001"]
    assert len(read_jsonl(tmp_path / "metrics.jsonl")) == 1


def test_a_mistyped_model_leaves_no_folder_behind(models, tmp_path):
    config = tiny_config(models, tmp_path / "run", reward_model=str(tmp_path / "nowhere"))
    with pytest.raises(ModelError, match="nowhere"):
        train_policy(config)
    assert not (tmp_path / "run").exists()


def test_batches_that_processes_cannot_share_are_refused(models, tmp_path):
    with pytest.raises(ConfigError, match="3 processes"):
        require_shared_evenly(tiny_config(models, tmp_path), 3)


def test_another_run_in_the_folder_is_refused(models, tmp_path):
    train_policy(tiny_config(models, tmp_path, steps=1))
    with pytest.raises(RunFolderError, match="credit"):
        train_policy(tiny_config(models, tmp_path, steps=1, credit__method="terminal"))


def test_empty_prompts_are_refused(models, tmp_path):
    (tmp_path / "none.jsonl").write_text("")
    with pytest.raises(DataError):
        train_policy(tiny_config(models, tmp_path / "run", prompts=str(tmp_path / "none.jsonl")))


def test_prompts_longer_than_the_context_are_refused(models, tmp_path):
    (tmp_path / "long.jsonl").write_text(json.dumps({"prompt": "the film " * 40}) + "\n")
    with pytest.raises(DataError, match="reads at most 64"):
        train_policy(tiny_config(models, tmp_path / "run", prompts=str(tmp_path / "long.jsonl")))


def test_two_processes_train(models, tmp_path):
    """Launched as users launch them; other tests of several processes fork theirs."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path\n"
        "from tiny_policy import tiny_config\n"
        "from tokencredit.recipes.policy.train_policy import train_policy\n"
        "train_policy(tiny_config(Path(sys.argv[2]), Path(sys.argv[3])))\n"
    )
    script = tmp_path / "run.py"
    script.write_text(code)
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    finished = subprocess.run(
        [*launch, str(script), str(Path(__file__).parents[2]), str(models), str(tmp_path / "run")],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
        timeout=240,
    )
    assert finished.returncode == 0, finished.stderr[-2000:]
    rows = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    assert [row["step"] for row in rows] == [0, 1]
    assert rows[0]["kl"] == pytest.approx(0.0, abs=1e-5)


def train_as(rank: int, port: int, config: TrainPolicyConfig, said: Path) -> None:
    """One process of two; what it ends with stands in a file."""
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port), ACCELERATE_USE_CPU="true",
    )  # fmt: skip
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        train_policy(config)
    except Exception as error:
        said.write_text(f"{type(error).__name__}: {error}")
    os._exit(1)


@pytest.mark.parametrize("stroke", [signal.SIGKILL, signal.SIGSTOP], ids=["dies", "is silent"])
def test_a_process_that_is_lost_stops_the_others_and_the_run_goes_on(models, tmp_path, stroke):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    output, said = tmp_path / "run", tmp_path / "said.txt"
    config = tiny_config(models, output, steps=10_000, machine__process_timeout=10.0)
    fork = multiprocessing.get_context("fork")
    first, second = (
        fork.Process(target=train_as, args=(rank, port, config, said)) for rank in (0, 1)
    )
    first.start()
    second.start()
    try:
        while len(read_jsonl(output / "metrics.jsonl")) < 3:
            assert first.is_alive(), said.read_text()
            time.sleep(0.05)
        os.kill(second.pid, stroke)
        first.join(60)
        assert not first.is_alive(), "it waits for ever"
    finally:
        first.kill()
        second.kill()
    assert re.match("ProcessError: another process of this run died or did not", said.read_text())
    done = len(read_jsonl(output / "metrics.jsonl"))
    train_policy(tiny_config(models, output, steps=done + 1))
    assert [row["step"] for row in read_jsonl(output / "metrics.jsonl")] == list(range(done + 1))


def test_other_errors_are_not_taken_for_lost_processes():
    with pytest.raises(RuntimeError, match="the shapes"), explain_lost_processes():
        raise RuntimeError("the shapes do not fit")


def test_bfloat16_is_that_of_policy_and_reference_alike(models, tmp_path):
    rows = {}
    for precision in ("no", "bf16"):
        config = tiny_config(
            models, tmp_path / precision, steps=1, machine__mixed_precision=precision
        )
        train_policy(config)
        rows[precision] = read_jsonl(tmp_path / precision / "metrics.jsonl")[0]
    assert rows["bf16"]["kl"] == pytest.approx(0.0, abs=1e-5)
    assert rows["bf16"]["entropy"] != rows["no"]["entropy"]


def test_metrics_reach_the_tracker(models, tmp_path):
    train_policy(tiny_config(models, tmp_path, record__trackers=("tensorboard",)))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (event_file,) = (tmp_path / "tokencredit").glob("events.*")
    events = EventAccumulator(str(event_file)).Reload()
    logged = [event.value for event in events.Scalars("score")]
    rows = read_jsonl(tmp_path / "metrics.jsonl")
    assert logged == pytest.approx([row["score"] for row in rows], rel=1e-5)


def test_chats_are_rendered_for_policy_and_reward_model_by_their_own_templates(tmp_path):
    models = write_models(tmp_path / "models")
    templates = {
        "policy": "{% for m in messages %}{{ m['content'] }} ; {% endfor %}",
        "reward": "{% for m in messages %}{{ m['content'] }} . {% endfor %}",
    }
    for name, template in templates.items():
        (models / name / "chat_template.jinja").write_text(template)
    chat = [{"role": "user", "content": "the plot"}]
    (models / "chats.jsonl").write_text(json.dumps({"prompt": chat}) + "\n")
    config = tiny_config(
        models,
        tmp_path / "run",
        prompts=str(models / "chats.jsonl"),
        credit__method="attention",
        steps=1,
    )
    train_policy(config)
    sample = read_jsonl(tmp_path / "run" / "samples.jsonl")[0]
    assert sample["prompt"].strip().endswith("the plot;")
    assert sum(sample["token_scores"]) == pytest.approx(sample["score"], abs=1e-3)


def test_chats_are_not_cut(models, tmp_path):
    (tmp_path / "chats.jsonl").write_text(
        json.dumps({"prompt": [{"role": "user", "content": "the plot"}]}) + "\n"
    )
    config = tiny_config(
        models,
        tmp_path / "run",
        prompts=str(tmp_path / "chats.jsonl"),
        data__tokens=[1, 2],
        policy_reading__chat_template="{% for m in messages %}{{ m['content'] }}{% endfor %}",
    )
    with pytest.raises(ConfigError, match="whole prompts"):
        train_policy(config)


def test_a_chat_that_the_policys_template_refuses_is_refused(tmp_path):
    models = write_models(tmp_path / "models")
    template = "{{ raise_exception('no such role') }}"
    (models / "policy" / "chat_template.jinja").write_text(template)
    chat = [{"role": "tool", "content": "the plot"}]
    (models / "chats.jsonl").write_text(json.dumps({"prompt": chat}) + "\n")
    config = tiny_config(models, tmp_path / "run", prompts=str(models / "chats.jsonl"))
    with pytest.raises(DataError, match=r"chats.jsonl.* with the roles \['tool'\]: no such role"):
        train_policy(config)
