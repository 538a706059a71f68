"""Models that score responses: heads, losses and one forward pass that gives all credit needs."""
