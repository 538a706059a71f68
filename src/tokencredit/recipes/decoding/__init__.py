"""Responses steered with a reward model."""
