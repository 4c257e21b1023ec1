"""Checks of a whole dataset: what is broken and what is odd, by name."""
