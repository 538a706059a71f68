"""Losses of a policy."""
