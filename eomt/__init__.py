"""EoMT: image segmentation with a plain Vision Transformer (CVPR 2025, arXiv 2503.19108)."""

__version__ = "0.1.0"


def __getattr__(name: str):
    """`from eomt import Segmenter`, imported only when it is asked for: it takes timm along."""
    if name == "Segmenter":
        from eomt.inference.segmenter import Segmenter

        return Segmenter
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
