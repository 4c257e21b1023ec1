"""The built-in dataset of drawn shapes."""
