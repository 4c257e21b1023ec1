"""Inference: any image in; arrays, pictures and official result files out."""
