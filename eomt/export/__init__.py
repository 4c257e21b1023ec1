"""Trained weights in forms that others read."""
