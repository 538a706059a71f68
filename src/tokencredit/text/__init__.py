"""Texts, characters, tokens and segments."""
