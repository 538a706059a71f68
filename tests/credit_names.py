"""Names of credit methods by what they need, read from the table."""

from tokencredit.credit.methods import CREDIT_METHODS

SCORES = ("terminal", "uniform", "attention", "prefix-difference")
"""What needs no more than one forward pass of the reward model, and no option."""

ALONE = tuple(
    name
    for name, method in CREDIT_METHODS.items()
    if not method.model_kind
    and not {"segments", "length_means", "location", "quoted_scores"} & set(method.needs)
)
"""What needs the reward model alone."""

ONE_PASS_ALONE = tuple(name for name in ALONE if CREDIT_METHODS[name].one_pass)
