"""Endpoints that introduce the stages to each other; nothing imports them but the command line."""
