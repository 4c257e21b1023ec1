"""EoMT: image segmentation with a plain Vision Transformer (CVPR 2025, arXiv 2503.19108)."""

__version__ = "0.1.0"
