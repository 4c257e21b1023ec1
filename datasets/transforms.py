"""Random transforms of training images (EoMT, arXiv 2503.19108, and its reference recipe)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from datasets.color import ColorJitter
from datasets.crops import Crop, RunTargets, crop_image, crop_targets
from eomt.targets import ImageTargets

# An image that is left without a segment is transformed afresh. The original does so for ever.
MAX_TRIES = 10


class TrainTransform:
    """Colour jitter (an option), horizontal flip, large-scale jitter, zero padding, random crop.

    Args:
        size: (height, width) of the result, in pixels.
        scale_range: the image is resized to r times the largest size that fits `size`, r uniform in
            this range. EoMT: (0.1, 2.0); for semantic segmentation (0.5, 2.0).
        color_jitter: True for ADE20K and Cityscapes, False for COCO.
    """

    def __init__(self, size: tuple[int, int], scale_range: Sequence[float] = (0.1, 2.0), color_jitter: bool = False):
        self._size = tuple(size)
        self._scale_range = tuple(scale_range)
        self._color_jitter = ColorJitter() if color_jitter else None

    def __call__(
        self, image: np.ndarray, targets: ImageTargets | RunTargets, seed: Sequence[int]
    ) -> tuple[Tensor, ImageTargets]:
        """Transform one image with its targets.

        Args:
            image: uint8 [h, w, 3].
            targets: its segments; crowds are dropped, and so are segments with no pixel left. If none
                is left, the image is transformed afresh, 10 times at most; then it has no target.
            seed: non-negative integers; equal seeds give equal results.

        Returns:
            uint8 [3, height, width], and targets of that size, ids in the smallest type that numbers them.
        """
        generator = np.random.default_rng(seed)
        for _ in range(MAX_TRIES if _any_wanted(targets) else 1):
            crop = draw_crop(image.shape[:2], self._size, self._scale_range, generator)
            cropped = crop_targets(targets, crop)
            if len(cropped.labels):
                break
        if self._color_jitter is not None:
            image = self._color_jitter(image, generator)
        return crop_image(image, crop), cropped


def _any_wanted(targets: ImageTargets | RunTargets) -> bool:
    return len(targets.labels) > 0 if isinstance(targets, RunTargets) else bool((~targets.crowd).any())


def draw_crop(
    old: tuple[int, int], size: tuple[int, int], scale_range: tuple[float, float], generator: np.random.Generator
) -> Crop:
    """Mirrored with probability 0.5; resized by r * min(height / h, width / w), r uniform in `scale_range`, sides
    truncated to integers, at least 1; the window anywhere with equal chance.

    Args:
        old: (h, w) of the image.
        size: (height, width) of the canvas.
    """
    flip = bool(generator.random() < 0.5)
    factor = generator.uniform(*scale_range) * min(size[0] / old[0], size[1] / old[1])
    scaled = tuple(max(int(side * factor), 1) for side in old)
    starts = [
        int(generator.integers(max(side - room, 0), endpoint=True)) for side, room in zip(scaled, size, strict=True)
    ]
    window = tuple((start, min(start + room, side)) for start, room, side in zip(starts, size, scaled, strict=True))
    return Crop(flip, tuple(old), scaled, window, size)
