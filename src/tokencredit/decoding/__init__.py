"""Steering generation with a reward model, token by token: the rule, and the scores it needs."""
