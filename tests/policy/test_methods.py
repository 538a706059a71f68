import pytest
import torch

from tokencredit.errors import ConfigError
from tokencredit.policy import dense_estimators, estimators
from tokencredit.policy.methods import ESTIMATOR_NAMES, named_advantages

FUNCTIONS = {
    "leave-one-out-to-go": dense_estimators.leave_one_out_to_go_advantages,
    "group-mean-to-go": dense_estimators.group_mean_to_go_advantages,
    "index-baseline-to-go": dense_estimators.index_baseline_to_go_advantages,
    "index-centred": dense_estimators.index_centred_advantages,
    "reinforce": lambda r, m, g, **options: estimators.reinforce_advantages(r, m, **options),
    "reinforce++": lambda r, m, g, **options: estimators.reinforce_plus_plus_advantages(
        r, m, **options
    ),
    "rloo": estimators.rloo_advantages,
    "grpo": estimators.grpo_advantages,
}
ARGUMENTS = (torch.randn(4, 3), torch.ones(4, 3).bool(), torch.tensor([0, 0, 1, 1]))


@pytest.mark.parametrize("name", ESTIMATOR_NAMES)
def test_every_name_is_its_function(name):
    torch.testing.assert_close(named_advantages(name, *ARGUMENTS), FUNCTIONS[name](*ARGUMENTS))


@pytest.mark.parametrize("name", sorted(set(ESTIMATOR_NAMES) - {"rloo", "grpo"}))
def test_the_discount_arrives(name):
    actual = named_advantages(name, *ARGUMENTS, gamma=0.5)
    torch.testing.assert_close(actual, FUNCTIONS[name](*ARGUMENTS, gamma=0.5))
    assert not torch.equal(actual, named_advantages(name, *ARGUMENTS))


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_the_scale_arrives(scale):
    actual = named_advantages("grpo", *ARGUMENTS, scale=scale)
    torch.testing.assert_close(actual, estimators.grpo_advantages(*ARGUMENTS, scale=scale))


@pytest.mark.parametrize(
    ("name", "gamma", "message"),
    [
        ("grppo", 1.0, r"estimator is 'grppo'; expected one of .*; did you mean 'grpo'\?"),
        ("rloo", 0.9, r"gamma is 0.9 with estimator 'rloo', which sums .*; expected gamma 1"),
        ("reinforce", 1.5, r"gamma is 1.5; expected a discount from 0 to 1"),
    ],
)
def test_what_cannot_be_is_an_error(name, gamma, message):
    with pytest.raises(ConfigError, match=message):
        named_advantages(name, *ARGUMENTS, gamma=gamma)
