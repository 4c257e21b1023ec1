"""EoMT: image segmentation with a plain Vision Transformer (CVPR 2025, arXiv 2503.19108)."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eomt.inference.result import Result
    from eomt.inference.segmenter import Segmenter

__version__ = "0.1.0"
__all__ = ["Result", "Segmenter"]


def __getattr__(name: str) -> Any:
    """`from eomt import Segmenter`, imported only when it is asked for: it takes timm along."""
    if name == "Segmenter":
        from eomt.inference.segmenter import Segmenter

        return Segmenter
    if name == "Result":
        from eomt.inference.result import Result

        return Result
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
