"""EoMT: image segmentation with a plain Vision Transformer (CVPR 2025, arXiv 2503.19108)."""

import warnings
from importlib.metadata import distributions
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eomt.inference.result import Result
    from eomt.inference.segmenter import Segmenter

__version__ = "0.1.0"
__all__ = ["Result", "Segmenter"]


def __getattr__(name: str) -> Any:
    """`from eomt import Segmenter`, imported only when it is asked for: it takes timm along."""
    if name in __all__ and (fault := namesake()):
        warnings.warn(fault, stacklevel=2)
    if name == "Segmenter":
        from eomt.inference.segmenter import Segmenter

        return Segmenter
    if name == "Result":
        from eomt.inference.result import Result

        return Result
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def namesake() -> str | None:
    """A line if another distribution is installed whose package has this one's name."""
    if not any(distributions(name="attr-eomt")):
        return None
    return (
        f"attr-eomt is installed too, whose package is also called eomt; this one is in {__path__[0]}: "
        "pip uninstall attr-eomt, or give each an environment of its own"
    )


def __dir__() -> list[str]:
    return [*globals(), *__all__]
