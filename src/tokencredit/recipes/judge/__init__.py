"""Judges, evaluated, and the data that they learn from."""
