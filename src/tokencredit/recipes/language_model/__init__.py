"""Language models trained on texts."""
