"""Policies trained with a reward on every token."""
