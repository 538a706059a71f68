"""Data to learn from, made of what is known of answers."""
