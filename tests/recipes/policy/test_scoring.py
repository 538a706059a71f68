"""What is paid for responses that cannot be scored, that were cut off, or that a critic reads."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from forked import run_in_processes, run_script
from safetensors.torch import load_file
from tiny_models import tiny_model
from tiny_policy import tiny_config, write_models
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaForSequenceClassification,
)

from tokencredit.batch import ResponseBatch
from tokencredit.credit.evidence import Evidence
from tokencredit.credit.methods import CREDIT_METHODS, credit_method
from tokencredit.errors import ConfigError, DataError, TokenCreditWarning
from tokencredit.policy.advantages import gae_advantages
from tokencredit.recipes.policy import train_policy as recipe
from tokencredit.recipes.policy.train_policy import train_policy
from tokencredit.recipes.run.run_folder import read_jsonl
from tokencredit.scorers.hf_token_scores import due_at_the_end
from tokencredit.toy.hf_tokenizer import toy_tokenizer


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture
def seen(monkeypatch):
    """The experiences of a training, in the order of its steps."""
    found = []
    make = recipe.experience_of

    def noted(*args, **keywords):
        found.append(make(*args, **keywords))
        return found[-1]

    monkeypatch.setattr(recipe, "experience_of", noted)
    return found


def fails(batch: ResponseBatch) -> torch.Tensor:
    """The responses on which scoring fails: those with one of a twentieth of all tokens."""
    return ((batch.response_ids % 20 == 7) & batch.response_mask).any(-1)


def pays_length(batch: ResponseBatch) -> torch.Tensor:
    return batch.response_mask.float()


def pays_length_or_fails(batch: ResponseBatch) -> torch.Tensor:
    if bool(fails(batch).any()):
        raise DataError("no word to score")
    return pays_length(batch)


def many(models, output, **changes):
    """One step of sixteen responses of one to twelve tokens."""
    settings = {
        "steps": 1,
        "batch_size": 16,
        "sampling.max_new_tokens": 12,
        "sampling.response_lengths": "uniform",
        "algorithm.epochs": 1,
    }
    return tiny_config(models, output, **{**settings, **changes})


def test_a_response_that_cannot_be_scored_is_left_out_and_the_run_goes_on(models, tmp_path, seen):
    config = many(models, tmp_path, steps=2, record__sample_every=1, record__sample_count=16)
    with pytest.warns(TokenCreditWarning, match="cannot be scored .*no word to score") as said:
        train_policy(config, token_scorer=pays_length_or_fails)
    assert len([one for one in said if "cannot be scored" in str(one.message)]) == 1
    batch = seen[0].batch
    first = int(fails(batch).nonzero()[0])
    text = toy_tokenizer().decode(batch.response_ids[first][batch.response_mask[first]])
    assert f": {text!r}." in str(said[0].message)
    rows = read_jsonl(tmp_path / "metrics.jsonl")
    for row, experience in zip(rows, seen, strict=True):
        bad = fails(experience.batch)
        assert 0 < int(bad.sum()) < 16
        assert torch.equal(experience.unscored, bad)
        assert not bool(experience.loss_mask[bad].any())
        assert torch.equal(experience.loss_mask[~bad], experience.batch.response_mask[~bad])
        assert row["unscored_share"] == pytest.approx(float(bad.float().mean()))
        lengths = experience.batch.lengths[~bad].float()
        assert row["score"] == pytest.approx(float(lengths.mean()))
        assert row["score_std"] == pytest.approx(float(lengths.std(correction=0)), rel=1e-5)
    samples = [row for row in read_jsonl(tmp_path / "samples.jsonl") if row["step"] == 0]
    bad = fails(seen[0].batch).tolist()
    assert [sample["score"] is None for sample in samples] == bad


def test_one_response_alone_that_cannot_be_scored_changes_nothing_of_the_others(models, tmp_path):
    """The update is that of a run in which those responses are masked."""

    def pays_nothing_for_the_word(batch: ResponseBatch) -> torch.Tensor:
        return pays_length(batch).masked_fill(fails(batch)[:, None], 0.0)

    make = recipe.experience_of
    outputs = {}
    for name, scorer in {
        "fails": pays_length_or_fails,
        "masked": pays_nothing_for_the_word,
    }.items():
        config = many(models, tmp_path / name, algorithm__whiten_advantages=False)

        def masked(*args, **keywords):
            experience = make(*args, **keywords)
            mask = experience.batch.response_mask & ~fails(experience.batch)[:, None]
            return replace(experience, loss_mask=mask)

        with pytest.MonkeyPatch.context() as patch:
            if name == "masked":
                patch.setattr(recipe, "experience_of", masked)
                outputs[name] = train_policy(config, token_scorer=scorer)
            else:
                with pytest.warns(TokenCreditWarning, match="cannot be scored"):
                    outputs[name] = train_policy(config, token_scorer=scorer)
    left_out, masked_out = (load_file(one / "model.safetensors") for one in outputs.values())
    for name, value in masked_out.items():
        assert torch.equal(left_out[name], value), name


def test_where_nothing_can_be_scored_at_first_the_run_says_why(models, tmp_path):
    def reads_nothing(_batch: ResponseBatch) -> torch.Tensor:
        raise DataError("the reward cannot read anything")

    with pytest.raises(DataError, match="cannot read anything"):
        train_policy(many(models, tmp_path), token_scorer=reads_nothing)
    assert not (tmp_path / "policy").exists()


def test_where_nothing_can_be_scored_later_the_policy_stays_and_the_run_goes_on(models, tmp_path):
    calls = []

    def fails_later(batch: ResponseBatch) -> torch.Tensor:
        calls.append(len(batch))
        if len(calls) > 1:
            raise ValueError("not this one either")
        return pays_length(batch)

    config = many(models, tmp_path, steps=2)
    with pytest.warns(TokenCreditWarning, match="ValueError: not this one either"):
        train_policy(config, token_scorer=fails_later)
    before, after = (
        load_file(tmp_path / f"checkpoints/step-00000{step}/policy/model.safetensors")
        for step in (1, 2)
    )
    for name, value in before.items():
        assert torch.equal(after[name], value), name
    row = read_jsonl(tmp_path / "metrics.jsonl")[1]
    assert (row["unscored_share"], row["score"], row["policy_loss"]) == (1.0, 0.0, 0.0)


def test_what_fails_only_together_is_no_fault_of_a_text(models, tmp_path):
    def fails_on_batches(batch: ResponseBatch) -> torch.Tensor:
        if len(batch) > 1:
            raise DataError("one at a time")
        return pays_length(batch)

    with pytest.raises(DataError, match="one at a time"):
        train_policy(many(models, tmp_path), token_scorer=fails_on_batches)


@pytest.mark.parametrize("error", [ConfigError("a setting"), RuntimeError("a device")])
def test_other_errors_end_the_run(models, tmp_path, error):
    def ends(batch: ResponseBatch) -> torch.Tensor:
        if bool(fails(batch).any()):
            raise error
        return pays_length(batch)

    with pytest.raises(type(error), match=str(error)):
        train_policy(many(models, tmp_path), token_scorer=ends)


def reward_model_of_ten_tokens(folder: Path) -> Path:
    tokenizer = toy_tokenizer()
    tiny_model(
        "llama",
        vocab_size=len(tokenizer),
        max_position_embeddings=10,
        pad_token_id=tokenizer.pad_token_id,
        num_labels=1,
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_response_longer_than_the_reward_model_reads_is_left_out(models, tmp_path, seen):
    short = reward_model_of_ten_tokens(tmp_path / "short")
    config = many(models, tmp_path / "run", reward_model=str(short), score__normalization="running")
    with pytest.warns(TokenCreditWarning, match="cannot be scored"):
        train_policy(config)
    (experience,) = seen
    long = experience.batch.attention_mask.sum(-1) > 10
    assert 0 < int(long.sum()) < 16
    assert torch.equal(experience.unscored, long)
    (moments,) = experience.moments.values()
    assert moments.count == int((~long).sum())
    expected = experience.sequence_scores[~long].double()
    assert moments.mean == pytest.approx(float(expected.mean()))
    assert moments.std == pytest.approx(float(expected.std(correction=0)))


def test_a_response_that_the_held_out_model_cannot_score_is_trained_on(models, tmp_path, seen):
    short = reward_model_of_ten_tokens(tmp_path / "short")
    config = many(models, tmp_path / "run", held_out_reward_model=str(short))
    with pytest.warns(TokenCreditWarning, match="cannot be scored"):
        train_policy(config)
    (experience,) = seen
    long = experience.batch.attention_mask.sum(-1) > 10
    assert torch.equal(experience.held_out_scores.isnan(), long)
    assert not bool(experience.unscored.any())
    row = read_jsonl(tmp_path / "run" / "metrics.jsonl")[0]
    assert row["held_out_score"] == pytest.approx(
        float(experience.held_out_scores[~long].mean()), rel=1e-5
    )


def test_a_group_with_a_response_that_cannot_be_scored_is_left_out(models, tmp_path, seen):
    settings = {"algorithm.name": "rloo", "algorithm.samples_per_prompt": 4}
    with pytest.warns(TokenCreditWarning, match="cannot be scored"):
        train_policy(many(models, tmp_path, **settings), token_scorer=pays_length_or_fails)
    (experience,) = seen
    whole = ~fails(experience.batch).view(4, 4).any(-1).repeat_interleave(4)
    assert 0 < int(whole.sum()) < 16
    assert torch.equal(experience.loss_mask.any(-1), whole)


def test_a_greedy_response_that_cannot_be_scored_is_a_baseline_of_zero(models, tmp_path, seen):
    def fails_on_greedy_responses(batch: ResponseBatch) -> torch.Tensor:
        if len(batch) in (1, 8):
            raise DataError("not this one")
        return pays_length(batch)

    settings = {"algorithm.name": "remax", "algorithm.samples_per_prompt": 2, "kl.coef": 0.0}
    train_policy(many(models, tmp_path, **settings), token_scorer=fails_on_greedy_responses)
    (experience,) = seen
    first = experience.advantages[:, 0]
    assert torch.equal(first, experience.batch.lengths.float())


# Cut off


@pytest.mark.parametrize("name", CREDIT_METHODS)
def test_what_is_due_at_the_end_is_what_hands_out_the_score_of_the_whole(name):
    mask = torch.tensor([[True, True, True, False]])
    whole = {
        "uniform", "attention", "generator-attention", "last-generator-attention", "likelihood",
        "gradient-times-input", "integrated-gradients", "leave-one-out", "window", "shapley",
        "exact-shapley", "quoted-evidence",
    }  # fmt: skip
    last = name in whole | {"terminal", "rto", "shaped-log-ratio"}
    expected = [name in whole, name in whole, last, False]
    assert due_at_the_end(credit_method(name), mask).tolist() == [expected]


def test_bootstrapping_puts_the_value_in_the_place_of_the_score():
    """A score of 1.086 and a value of 1.086 of the same text make a return of 1.086."""
    mask = torch.ones(1, 3, dtype=torch.bool)
    score = torch.tensor([1.086])
    credit = CREDIT_METHODS["terminal"].credit
    paid = credit(Evidence(mask, sequence_scores=score), None)
    paid = paid.masked_fill(due_at_the_end(credit_method("terminal"), mask), 0.0)
    _, returns = gae_advantages(
        paid, torch.zeros(1, 3), mask, gae_lambda=1.0, bootstrap_values=score
    )
    assert returns.tolist() == [[pytest.approx(1.086)] * 3]


@pytest.mark.parametrize("share", [0.0, 0.25])
@pytest.mark.parametrize("credit", ["terminal", "uniform", "attention", "prefix-difference"])
def test_the_return_of_a_cut_off_response_holds_its_score_once(
    models, tmp_path, seen, credit, share
):
    """With the reward model as critic, which knows the score of every text so far."""
    settings = {
        "steps": 1,
        "batch_size": 8,
        "sampling.truncated": "bootstrap",
        "algorithm.critic": "reward-model",
        "algorithm.gae_lambda": 1.0,
        "kl.coef": 0.0,
        "credit.method": credit,
        "credit.terminal_share": share,
    }
    train_policy(tiny_config(models, tmp_path, **settings))
    (experience,) = seen
    assert bool(experience.truncated.any())
    expected = experience.sequence_scores
    if credit == "prefix-difference":
        critic = LlamaForSequenceClassification.from_pretrained(models / "reward")
        with torch.no_grad():
            prompts = [
                critic(ids[mask][None]).logits[0, 0]
                for ids, mask in zip(
                    experience.batch.prompt_ids, experience.batch.prompt_mask, strict=True
                )
            ]
        expected = expected - (1 - share) * torch.stack(prompts)
    torch.testing.assert_close(experience.returns[:, 0], expected, rtol=1e-4, atol=1e-5)


# Critics


@pytest.mark.parametrize(
    ("share", "explained"), [(0.0, 0.0), (1.0, None)], ids=["differences", "all at the end"]
)
def test_a_critic_does_not_count_what_prefix_differences_have_paid(
    models, tmp_path, seen, share, explained
):
    config = many(
        models,
        tmp_path,
        batch_size=32,
        kl__coef=0.0,
        algorithm__critic="reward-model",
        credit__terminal_share=share,
    )
    train_policy(config)
    row = read_jsonl(tmp_path / "metrics.jsonl")[0]
    if explained is not None:
        assert row["explained_variance"] == pytest.approx(explained, abs=1e-6)
    else:
        ended = {"credit.method": "terminal", "algorithm.critic": "reward-model", "kl.coef": 0.0}
        train_policy(many(models, tmp_path / "terminal", batch_size=32, **ended))
        assert torch.equal(seen[0].old.values, seen[1].old.values)


def test_a_reward_model_of_another_vocabulary_is_no_critic(models, tmp_path):
    tokenizer = toy_tokenizer()
    tokenizer.add_tokens(["<extra>"])
    tiny_model(
        "llama",
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        num_labels=1,
    ).save_pretrained(tmp_path / "reward")
    tokenizer.save_pretrained(tmp_path / "reward")
    config = many(
        models,
        tmp_path / "run",
        reward_model=str(tmp_path / "reward"),
        algorithm__critic="reward-model",
    )
    with pytest.raises(ConfigError, match=r"another vocabulary than .*expected one vocabulary"):
        train_policy(config)
    assert not (tmp_path / "run").exists()


def test_a_reward_model_that_reads_ahead_is_no_critic(models, tmp_path):
    tokenizer = toy_tokenizer()
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    BertForSequenceClassification(
        BertConfig(
            vocab_size=len(tokenizer),
            num_attention_heads=2,
            num_labels=1,
            pad_token_id=tokenizer.pad_token_id,
            **shape,
        )
    ).save_pretrained(tmp_path / "reward")
    tokenizer.save_pretrained(tmp_path / "reward")
    config = many(
        models,
        tmp_path / "run",
        reward_model=str(tmp_path / "reward"),
        credit__method="terminal",
        algorithm__critic="reward-model",
    )
    with pytest.raises(ConfigError, match="reads in both directions"):
        train_policy(config)


# Numbers


def test_the_reference_has_a_number_type_of_its_own(models, tmp_path):
    kls = {}
    for name, settings in {
        "reward model": {"loading.dtype": "bfloat16"},
        "reference": {"kl.reference_dtype": "bfloat16"},
    }.items():
        train_policy(many(models, tmp_path / name, **settings))
        kls[name] = read_jsonl(tmp_path / name / "metrics.jsonl")[0]["kl"]
    assert kls["reward model"] == pytest.approx(0.0, abs=1e-5)
    assert abs(kls["reference"]) > 1e-3


def test_a_minibatch_without_a_token_that_counts_moves_nothing(models, tmp_path, monkeypatch):
    """Adam's moments of the step before would go on without a gradient."""
    make = recipe.experience_of
    calls = []

    def masked(*args, **keywords):
        experience = make(*args, **keywords)
        calls.append(experience)
        nothing = torch.zeros_like(experience.loss_mask)
        return experience if len(calls) == 1 else replace(experience, loss_mask=nothing)

    monkeypatch.setattr(recipe, "experience_of", masked)
    train_policy(many(models, tmp_path, steps=2))
    for name in ("policy/model.safetensors", "optimizer.safetensors", "value_head.safetensors"):
        before, after = (
            load_file(tmp_path / f"checkpoints/step-00000{step}/{name}") for step in (1, 2)
        )
        for key, value in before.items():
            assert torch.equal(after[key], value), key
    row = read_jsonl(tmp_path / "metrics.jsonl")[1]
    assert (row["policy_loss"], row["value_loss"], row["gradient_norm"]) == (0.0, 0.0, 0.0)


def test_texts_of_samples_are_without_special_tokens(models, tmp_path):
    train_policy(many(models, tmp_path, record__sample_count=16))
    samples = read_jsonl(tmp_path / "samples.jsonl")
    assert any("<" in token for sample in samples for token in sample["tokens"])
    for sample in samples:
        assert "<" not in sample["prompt"] + sample["response"]


SCRIPT = """
import json, os, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from tiny_policy import tiny_config
from tokencredit.errors import DataError
from tokencredit.recipes.policy import scoring, train_policy as recipe
models, folder, rank = Path(sys.argv[2]), Path(sys.argv[3]), os.environ["RANK"]
make, found = recipe.experience_of, []
def noted(*args, **keywords):
    found.append(make(*args, **keywords))
    return found[-1]
recipe.experience_of = noted
settings = {"steps": 2, "batch_size": 2, "credit.method": "terminal", "algorithm.epochs": 1,
            "score.normalization": "running"}
recipe.end_processes = lambda accelerator: accelerator.wait_for_everyone()
recipe.train_policy(tiny_config(models, folder / "run", **settings))
numbers = [[float(one.sequence_scores[0]), float(one.token_scores.sum())] for one in found]
pay, asked = scoring._paid, []
def fails(*args, **keywords):
    asked.append(args)
    if rank == "1" and len(asked) in (1, 2):
        raise DataError("not in this process")
    return pay(*args, **keywords)
scoring._paid = fails
recipe.train_policy(tiny_config(models, folder / "fails", **settings))
moments = [[one.moments["reward"].count, one.moments["reward"].mean] for one in found[2:]]
(folder / f"{rank}.json").write_text(json.dumps({"numbers": numbers, "moments": moments}))
"""


def test_running_moments_are_those_of_all_processes(models, tmp_path):
    """One response in each of two processes; then one process cannot score its own."""
    (tmp_path / "script.py").write_text(SCRIPT)
    tests = Path(__file__).parents[2]
    run_in_processes(run_script, tmp_path / "script.py", tests, models, tmp_path)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    scores = []
    for one, other in zip(first["numbers"], second["numbers"], strict=True):
        scores += [one[0], other[0]]
        seen = torch.tensor(scores, dtype=torch.float64)
        mean, std = float(seen.mean()), float(seen.std(correction=0))
        assert one[1] == pytest.approx((one[0] - mean) / std, rel=1e-4)
        assert other[1] == pytest.approx((other[0] - mean) / std, rel=1e-4)
    assert first["numbers"][0][1] == pytest.approx(-second["numbers"][0][1], rel=1e-4)
    assert abs(first["numbers"][0][1]) == pytest.approx(1.0, rel=1e-4), "not 0"
    assert first["moments"] == second["moments"]
    assert [count for count, _ in first["moments"]] == [1, 3]
    assert first["moments"][0][1] == pytest.approx(first["numbers"][0][0])
