"""What the recipes of supervised training share: models, rows, the trainer, its progress."""
