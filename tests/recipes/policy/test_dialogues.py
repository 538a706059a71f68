"""Dialogues of several turns: the toy's best policy is found, and what is kept of a run."""

import json

import ending_models
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from tiny_policy import by_command, write_models

from tokencredit.errors import ConfigError, DataError
from tokencredit.recipes.policy import opened_run
from tokencredit.recipes.policy import train_policy as recipe
from tokencredit.recipes.policy.dialogue_buffer import Utterance
from tokencredit.recipes.policy.dialogue_critic import critic_values, utterance_batch
from tokencredit.recipes.policy.dialogue_play import play_dialogues
from tokencredit.recipes.policy.dialogue_step import rollout_of_step
from tokencredit.recipes.policy.refusals import require_shared_evenly
from tokencredit.recipes.policy.settings import TrainPolicyConfig
from tokencredit.recipes.policy.train_policy import train_policy
from tokencredit.recipes.run.run_folder import read_jsonl
from tokencredit.recipes.settings import settings_from

FRANK = "tokencredit.toy.dialogues:frank_viewer"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return write_models(tmp_path_factory.mktemp("models"))


def talking(models, output, **changes) -> TrainPolicyConfig:
    """Two steps of dialogues of one word per turn with the viewer."""
    settings = {
        "policy": str(models / "policy"),
        "prompts": str(models / "prompts.jsonl"),
        "output": str(output),
        "dialogue.environment": FRANK,
        "dialogue.critic_updates": 2,
        "dialogue.critic_batch_size": 8,
        "dialogue.critic_learning_rate": 1e-2,
        "algorithm.name": "reinforce",
        "algorithm.epochs": 1,
        "steps": 2,
        "batch_size": 8,
        "sampling.max_new_tokens": 1,
        "sampling.response_lengths": "uniform",
        "optimizer.learning_rate": 1e-2,
        "kl.coef": 0.001,
        "record.checkpoint_every": 1,
        "record.progress": False,
        "record.figure": False,
        "machine.device": "cpu",
    }
    return settings_from(TrainPolicyConfig, {**settings, **changes})


def begun(models, output, **changes):
    config = talking(models, output, **changes)
    run, _ = opened_run.open_run(config, opened_run.accelerator_of(config), None)
    return run, recipe.seeded(config.seed, 0, 0)


def test_the_best_policy_is_found_beyond_what_pays_at_once(models, tmp_path):
    """Praise at once earns a tenth and ends the talk; praise when asked again earns 1."""
    more = {
        "steps": 25,
        "batch_size": 64,
        "algorithm.epochs": 2,
        "algorithm.minibatch_size": 64,
        "algorithm.whiten_advantages": True,
        "dialogue.critic_updates": 4,
        "dialogue.critic_batch_size": 64,
        "dialogue.critic_learning_rate": 2e-2,
        "dialogue.target_rate": 0.3,
        "optimizer.learning_rate": 2e-2,
        "optimizer.critic_warmup": 2,
        "kl.coef": 0.02,
        "record.checkpoint_every": 25,
        "record.sample_every": 25,
    }
    train_policy(talking(models, tmp_path, **more))
    returns = [row["return"] for row in read_jsonl(tmp_path / "metrics.jsonl")]
    assert sum(returns[:5]) / 5 < 0.3
    assert sum(returns[-5:]) / 5 > 0.8


@pytest.mark.parametrize("name", ["reinforce", "ppo"])
def test_resumed_equals_uninterrupted(models, tmp_path, name):
    more = {"algorithm.name": name, "dialogue.buffer_size": 20}
    for folder, parts in {"whole": [3], "parts": [1, 3]}.items():
        for steps in parts:
            train_policy(talking(models, tmp_path / folder, steps=steps, **more))
    ends = [tmp_path / one / "checkpoints" / "step-000003" for one in ("whole", "parts")]
    files = {file.relative_to(ends[0]) for file in ends[0].rglob("*.safetensors")}
    assert {"buffer.safetensors", "target.safetensors"} <= {str(file) for file in files}
    for file in files:
        one, other = (load_file(end / file) for end in ends)
        assert all(torch.equal(value, other[key]) for key, value in one.items()), file
    assert len(load_file(ends[0] / "buffer.safetensors")["reward"]) == 20


def counted(dialogues):
    """An environment that says how often it has heard, and pays for the turn."""
    said = [sum(one["role"] == "assistant" for one in dialogue) for dialogue in dialogues]
    assert all(dialogue[-1]["role"] == "assistant" for dialogue in dialogues)
    return [(None if turns == 3 else " the cast is", float(turns)) for turns in said]


@pytest.mark.parametrize("turns", [2, 5])
def test_dialogues_are_those_of_the_environment(models, tmp_path, turns):
    run, rng = begun(models, tmp_path, **{"dialogue.turns": turns, "batch_size": 2})
    played = play_dialogues(run, counted, 0, rng)
    length = min(turns, 3)
    assert played.returns == [sum(range(1, length + 1))] * 2
    by_state = sorted(played.utterances, key=lambda one: len(one.state))
    assert [one.is_last for one in by_state] == [len(one.following) == 0 for one in by_state]
    assert sum(one.is_last for one in by_state) == 2
    tokenizer = run.models.tokenizer
    for one in played.utterances:
        assert len(one.said) == 1
        if one.following:
            text = tokenizer.decode(one.state) + tokenizer.decode(one.said) + " the cast is"
            assert one.following == tokenizer.encode(text.replace("<bos>", ""))
            assert any(other.state == one.following for other in played.utterances)


def test_a_chat_policy_reads_the_turns_by_its_template(tmp_path):
    folder = ending_models.write_models(tmp_path / "models")
    more = {"batch_size": 4, "sampling.max_new_tokens": 4, "sampling.response_lengths": "eos"}
    run, rng = begun(folder, tmp_path / "run", **more)
    played = play_dialogues(run, lambda heard: [("why ?", 0.5)] * len(heard), 0, rng)
    assert played.returns == [2.0] * 4

    def text(ids, **options):
        return run.models.tokenizer.decode(ids, clean_up_tokenization_spaces=False, **options)

    ends = run.models.reading.turn_ends
    for one in played.utterances:
        assert one.has_ended == (one.said[-1] in ends)
        if one.following:
            # Neither special tokens nor a character that was cut off stand for anything.
            said = text(one.said, skip_special_tokens=True).rstrip("\ufffd")
            expected = f"{text(one.state)}{said}<eot>\nuser why ?<eot>\nassistant "
            assert text(one.following) == expected


def test_a_dialogue_ends_where_the_policy_could_read_no_more(models, tmp_path):
    run, rng = begun(models, tmp_path, batch_size=1)

    def talkative(dialogues):
        return [(" the plot" * 40, 0.0)] * len(dialogues)

    assert [one.is_last for one in play_dialogues(run, talkative, 0, rng).utterances] == [True]


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ([], "gives 0 answers to 1 dialogues"),
        ([" yes"], "gives ' yes'; expected an answer, or None at the end"),
        ([(None, float("nan"))], "expected a text or None, and a finite number"),
        ([(3, 1.0)], "expected a text or None, and a finite number"),
        ([(None, "much")], "expected an answer, or None at the end"),
    ],
)
def test_what_an_environment_must_give(models, tmp_path, answers, message):
    run, rng = begun(models, tmp_path, batch_size=1)
    with pytest.raises(DataError, match=message):
        play_dialogues(run, lambda _: answers, 0, rng)


def test_values_are_read_at_the_last_token_of_state_and_utterance(models, tmp_path):
    run, _ = begun(models, tmp_path)
    critic = run.dialogues.critic
    rows = [
        Utterance([1, 5, 6], [7, 8], 0.0, False, [1, 5]),
        Utterance([1, 9], [10], 0.0, True, []),
    ]
    q, v = critic_values(critic, utterance_batch(rows, pad=0, device=torch.device("cpu")))
    after = utterance_batch(rows, pad=0, device=torch.device("cpu"), said=False)
    _, next_values = critic_values(critic, after)

    def outputs(ids):
        hidden = critic.base_model(input_ids=torch.tensor([ids])).last_hidden_state
        return critic.score(hidden)[0]

    for row, one in enumerate(rows):
        whole = outputs([*one.state, *one.said])
        torch.testing.assert_close(q[row], whole[-1, :2], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(v[row], whole[len(one.state) - 1, 2:], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(next_values[0], outputs([1, 5])[-1, 2:], rtol=1e-4, atol=1e-5)
    assert not torch.equal(q[:, 0], q[:, 1])


def test_every_token_of_an_utterance_is_paid_its_advantage(models, tmp_path):
    more = {"sampling.max_new_tokens": 3, "kl.coef": 0.0, "credit.method": "uniform"}
    run, rng = begun(models, tmp_path, **more)
    drawing = rollout_of_step(run, 0, rng)
    batch = drawing.rollout.batch
    experience = recipe.experience_of(
        run.models,
        run.model,
        drawing.rollout,
        run.config,
        run.accelerator,
        kl_coef=0.0,
        moments={},
        token_scorer=drawing.token_scorer,
    )
    q, v = critic_values(run.dialogues.critic, batch)
    worth = q.amin(-1) - v.amin(-1)
    expected = worth[:, None] * batch.response_mask
    torch.testing.assert_close(experience.advantages, expected)
    assert batch.lengths.max() > 1


def test_in_half_precision_the_critic_is_read_as_it_has_learnt(models, tmp_path):
    """A weight that is cast once and kept would be that before its updates, and its slow copy's."""
    run, rng = begun(models, tmp_path, **{"machine.mixed_precision": "bf16"})
    drawing = rollout_of_step(run, 0, rng)
    batch = drawing.rollout.batch
    with torch.no_grad(), run.accelerator.autocast():
        q, v = critic_values(run.dialogues.critic, batch)
    paid = drawing.token_scorer(batch).sum(-1)
    torch.testing.assert_close(paid, q.amin(-1) - v.amin(-1), rtol=0, atol=0)


def test_from_the_command_line_with_text_that_ends_itself(models, tmp_path):
    config = {"dialogue": {"environment": FRANK, "critic_updates": 1, "critic_batch_size": 4}}
    (tmp_path / "run.yaml").write_text(json.dumps(config))
    arguments = {
        "reward_model": None,
        "config": tmp_path / "run.yaml",
        "algorithm.name": "reinforce",
        "optimizer.critic_warmup": 1,
        "sampling.max_new_tokens": 3,
        "lora.rank": 2,
    }
    (row,) = by_command(models, tmp_path / "run", **arguments)
    assert {"return", "turns", "utterance_q_loss", "utterance_v_loss"} <= set(row)
    assert row["gradient_norm"] == 0  # the critic of utterances alone has learnt
    assert row["utterance_q_loss"] > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reward_model": "a/b"}, r"reward_model is 'a/b' with dialogue\.environment"),
        ({"score.clip": 1.0}, r"score is ScoreSettings.*expected ScoreSettings"),
        ({"algorithm.name": "likelihood"}, r"algorithm\.name is 'likelihood'.*'reinforce'"),
        ({"algorithm.name": "remax"}, r"algorithm\.name is 'remax'"),
        ({"data.tokens": [1, 2]}, r"data\.tokens is \[1, 2\]"),
        ({"dialogue.environment": "viewer"}, "expected module:function, a Python function"),
        ({"dialogue.turns": 0}, r"dialogue\.turns is 0"),
        ({"dialogue.discount": 0.0}, r"dialogue\.discount is 0\.0"),
        ({"dialogue.critic_learning_rate": 0.0}, r"dialogue\.critic_learning_rate is 0\.0"),
    ],
)
def test_contradictions_are_refused(models, tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        talking(models, tmp_path, **changes)


def test_an_environment_that_is_not_there_is_refused(models, tmp_path):
    with pytest.raises(ConfigError, match="there is no function no_such_module:answer"):
        train_policy(talking(models, tmp_path, **{"dialogue.environment": "no_such_module:answer"}))


def test_several_processes_are_refused(models, tmp_path):
    Accelerator(cpu=True)
    with pytest.raises(ConfigError, match="on 2 processes; expected one process: dialogues differ"):
        require_shared_evenly(talking(models, tmp_path), 2)
