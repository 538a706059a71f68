"""Searches over whole continuations."""
