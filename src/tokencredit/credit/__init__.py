"""From what a reward model says to one score per response token, one file per family."""
