"""Readers of dataset formats, one file a format."""
