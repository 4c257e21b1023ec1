"""From logits to segments, label maps, result files and pictures."""
