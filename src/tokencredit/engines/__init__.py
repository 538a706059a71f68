"""Token credit in trainers of others: they compose the stages as recipes do."""
