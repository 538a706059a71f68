"""What `iterate-preferences` makes of a set-up, and what it refuses."""

import pytest
from online_settings import NEEDED, online

from tokencredit.errors import ConfigError
from tokencredit.policy.losses.methods import PREFERENCE_LOSSES
from tokencredit.policy.setups import ONLINE_SETUPS, ROW_KINDS
from tokencredit.recipes.iteration.settings import IteratePreferencesConfig

NAMES = sorted(ONLINE_SETUPS)


@pytest.mark.parametrize("name", NAMES)
def test_a_set_up_says_what_the_settings_leave_open(name):
    row, made = ONLINE_SETUPS[name], online(name)
    for key in ("samples", "judged_by", "rows", "loss", "rounds_of_rows"):
        assert getattr(made, key) == getattr(row, key)
    assert made.reference == (row.references[0] if row.references else None)
    assert made.sampling_of_run().temperature == row.temperature
    assert row.loss in PREFERENCE_LOSSES
    assert ROW_KINDS[row.rows][0] == PREFERENCE_LOSSES[row.loss].learns_from
    assert bool(row.references) == ("reference" in PREFERENCE_LOSSES[row.loss].references)
    assert row.source or row.free
    assert online(name, **{key: getattr(made, key) for key in ("loss", "rows", "judged_by")})


@pytest.mark.parametrize("name", NAMES)
def test_each_round_is_a_run_of_train_preferences_from_the_policy_before(name):
    made = online(name, seed=3, training__epochs=2.0, max_length=100, lora__rank=2)
    first, third = made.of_round(0), made.of_round(2)
    assert (first.model, third.model) == ("lm", "out/round-001")
    assert (first.output, third.output) == ("out/round-000", "out/round-002")
    assert third.data == "out/rows-002.jsonl"
    assert (first.seed, third.seed) == (3, 5)
    assert third.loss == ONLINE_SETUPS[name].loss
    assert third.training == made.training
    assert third.training.learning_rate == 1e-5
    assert (third.max_length, third.lora.rank) == (100, 2)
    assert first.reference is None
    assert third.reference == ("lm" if made.reference == "first" else None)


def test_the_reference_moves_stays_or_is_another():
    assert online(reference="previous").of_round(1).reference is None
    assert online(reference="first").of_round(1).reference == "lm"
    assert online(reference="other/model").of_round(0).reference == "other/model"


def test_options_of_the_loss_and_weights_of_tokens_go_along():
    made = online("inpo", options__dpo_beta=0.01, token_weights__kind="credit")
    assert made.of_round(1).options.dpo_beta == 0.01
    assert made.of_round(1).options.reference_share == pytest.approx(1 / 3)
    assert made.of_round(1).reward_model == "rm"  # of which credit is made
    assert online("inpo").of_round(1).reward_model is None
    own = online(token_weights__kind="credit", credit__method="contrastive-prompts")
    assert own.of_round(1).reward_model is None


def test_sampling_temperature_may_be_another_than_published():
    assert online("cream", sampling__temperature=0.5).sampling_of_run().temperature == 0.5


WRONG = {
    "setup is 'onlin-dpo'; expected one of .*did you mean 'online-dpo'": {"setup": "onlin-dpo"},
    "loss is 'ipo' with setup 'online-dpo', which has 'dpo'; .*setup 'custom'": {"loss": "ipo"},
    "rows is 'list' with setup 'online-dpo'": {"rows": "list"},
    "judged_by is 'log-ratio' with setup 'online-dpo'": {"judged_by": "log-ratio"},
    "reference is 'previous' with setup 'inpo', whose reference is 'first'": {
        "setup": "inpo",
        "reference": "previous",
    },
    "reference is 'first' with setup 'spin'": {"setup": "spin", "reference": "first"},
    "reference is 'first' with loss 'likelihood', which has no reference": {
        "setup": "rejection-sampling",
        "reference": "first",
    },
    "samples is 1 with rows 'best-worst', .*expected at least 2": {"samples": 1},
    "samples is 1 with rows 'best', ": {"setup": "superhf", "samples": 1},
    "samples is 0; expected at least 1": {"samples": 0},
    "rounds is 0; expected at least 1": {"rounds": 0},
    "prompts_per_round is 0; expected at least 1": {"prompts_per_round": 0},
    "least_gap is -1.0; expected at least 0": {"least_gap": -1.0},
    "rows is 'demonstration' and demonstrations is none": {
        "setup": "spin",
        "demonstrations": None,
    },
    "judged_by is 'scores' and there is no reward_model": {"reward_model": None},
    "judged_by is 'win-rates' and there is no reward_model": {"setup": "dno", "reward_model": None},
    "judges has 'mine'; expected `module:function`": {"judges": ["mine"]},
    "judges are given with judged_by 'win-rates'": {"setup": "dno", "judges": ["my:judge"]},
    "rows is 'best', which makes singles, with loss 'dpo', .* expected rows best-worst": {
        "setup": "custom",
        "rows": "best",
    },
    "judged_by is 'nothing' with rows 'best-worst'": {"setup": "custom", "judged_by": "nothing"},
    "loss is 'cream', whose labels are as soft": {"setup": "custom", "loss": "cream"},
    "there is no teacher with loss 'aligndistil'": {"setup": "aligndistil", "teacher": None},
    "asks for scores, with rows 'each' and judged_by 'nothing'": {
        "setup": "custom",
        "rows": "each",
        "judged_by": "nothing",
        "loss": "weighted-likelihood",
    },
    "loss is 'dno', which asks for scores, with rows 'demonstration'": {
        "setup": "custom",
        "loss": "dno",
        "rows": "demonstration",
        "demonstrations": "completion",
    },
    "base is 'lm0' with judged_by 'scores'": {"base": "lm0"},
    "demonstrations is 'completion' with judged_by 'log-ratio'": {
        "setup": "cream",
        "demonstrations": "completion",
    },
    "consistency 'per-prompt' with loss 'dpo'": {"consistency": "per-prompt"},
    "agreement is 'spearman' and": {"agreement": "spearman"},
    "least_gap is 1.0 with rows 'demonstration'": {"setup": "spin", "least_gap": 1.0},
    "data.tokens is 3; expected whole prompts": {"data__tokens": 3},
    "sampling.temperature is 0": {"sampling__temperature": 0.0},
    "sampling.max_new_tokens is 64 and max_length 64": {"max_length": 64},
    "margin is 1.0 with loss 'dpo', which has no such option": {"options__margin": 1.0},
    "loading.dtype is 'bfloat16'; expected 'float32'": {"loading__dtype": "bfloat16"},
    "reading.append_eos is True; expected none": {"reading__append_eos": True},
}


@pytest.mark.parametrize("message", WRONG)
def test_what_makes_no_sense_is_refused_with_the_way_out(message):
    changes = dict(WRONG[message])
    setup = changes.pop("setup", "online-dpo")
    if setup not in NEEDED:
        with pytest.raises(ConfigError, match=message):
            IteratePreferencesConfig("p.jsonl", "lm", "out", setup=setup)
        return
    with pytest.raises(ConfigError, match=message):
        online(setup, **changes)


def test_a_demonstration_is_a_candidate_too():
    assert online("dno-practical", samples=1, demonstrations="completion")
