"""Weights of trained models brought together: `tokencredit merge-weights`."""
