"""Reward models of every kind, trained and evaluated."""
