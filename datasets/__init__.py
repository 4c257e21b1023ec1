"""Readers of datasets, and what turns their images into training batches."""
