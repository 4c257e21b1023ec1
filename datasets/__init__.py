"""Readers of datasets, and loaders that turn their images into training batches."""
