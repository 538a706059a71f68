"""Texts, labels and preferences: what reward models learn from."""
