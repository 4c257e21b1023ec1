"""Post-processing: logits in; segments, label maps, result files and pictures out."""
