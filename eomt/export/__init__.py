"""Trained weights in forms that others read."""

ONNX_FORMATS = ("onnx", "openvino", "tensorrt")
"""Formats of `export.py` that are ONNX graphs or made of one: these may end in post-processing."""
