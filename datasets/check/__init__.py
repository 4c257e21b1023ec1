"""Check of a whole dataset: broken and odd images by name."""
