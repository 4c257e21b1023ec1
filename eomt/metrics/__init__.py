"""Official scores, summed exactly across images and ranks."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from eomt.postprocess.types import Instances, Segmentation
from eomt.targets import ImageTargets


class Metric(Protocol):
    """A score of a dataset. Every rank updates it with its own images; `compute` and `per_class` join the ranks."""

    def update(self, prediction: Segmentation | Instances, targets: ImageTargets, image_id: int | str) -> None:
        """Add one image, its ground truth at the image's own size."""

    def compute(self) -> dict[str, Tensor]:
        """The scores in percent, each a float64 scalar on the host; NaN where there is nothing to score."""

    def per_class(self) -> list[dict[str, Any]]:
        """A row of scores for each class that was seen, with its id and name."""

    def reset(self) -> None:
        """Forget all images."""
