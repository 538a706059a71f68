"""Language models as judges: questions to them, and verdicts read from their replies."""
