"""The mask classification loss: matching, point sampling, terms."""
