"""Random transforms of training images (EoMT, arXiv 2503.19108, and its reference recipe).

An albumentations pipeline over the image and the planes of its id map: however many segments an image
has, each plane is resampled once. Every image is resized once.
"""

from __future__ import annotations

import os
import random
from collections.abc import Sequence

# albumentations asks a server for its newest version when it is imported, unless it is told not to.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import albumentations as A
import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from eomt.targets import ImageTargets, present_segments, select_segments

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
        self._pipeline = A.Compose(
            [
                *(color_jitter_transforms() if color_jitter else []),
                A.HorizontalFlip(p=0.5),
                LargeScaleJitter(self._size, tuple(scale_range)),
            ]
        )

    def __call__(self, image: np.ndarray, targets: ImageTargets, seed: Sequence[int]) -> tuple[Tensor, ImageTargets]:
        """Transform one image with its targets.

        Args:
            image: uint8 [h, w, 3].
            targets: its segments; crowds are dropped, and so are segments with no pixel left. If none
                is left, the image is transformed afresh, 10 times at most; then it has no target.
            seed: non-negative integers; equal seeds give equal results.

        Returns:
            uint8 [3, height, width], and targets of that size.
        """
        # One stream for the whole pipeline: `Compose.set_random_seed` would start every transform on the
        # same numbers, and images would be flipped exactly when they are made small.
        numbers, python_numbers = np.random.SeedSequence(seed).spawn(2)
        self._pipeline.set_random_state(
            np.random.default_rng(numbers), random.Random(int(python_numbers.generate_state(1, np.uint64)[0]))
        )
        wanted = ~targets.crowd.numpy()
        for _ in range(MAX_TRIES if wanted.any() else 1):
            result = self._pipeline(image=image, masks=targets.ids.numpy())
            kept = targets._replace(ids=torch.from_numpy(result["masks"]), areas=None, rles=None)
            keep = wanted & present_segments(kept)
            if keep.any():
                break
        kept = kept if keep.all() else select_segments(kept, keep)
        padded = _pad([torch.from_numpy(channel) for channel in cv2.split(result["image"])], self._size)
        return padded, kept._replace(ids=_pad(kept.ids, self._size))


def _pad(planes: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """Planes [h, w] to [N, *size] with zeros at the right and at the bottom."""
    padded = torch.zeros(len(planes), *size, dtype=planes[0].dtype)
    for target, plane in zip(padded, planes, strict=True):
        target[: plane.shape[0], : plane.shape[1]] = plane
    return padded


def color_jitter_transforms() -> list[A.BasicTransform | A.BaseCompose]:
    """Photometric distortion in the order of EoMT: brightness x(1 +- 32/255); then contrast, saturation
    and hue, or saturation, hue and contrast, with equal chance. Contrast and saturation x(0.5..1.5), hue
    +-18/360 of the circle. Each is applied with probability 0.5.
    """

    def only(**ranges: tuple[float, float]) -> A.ColorJitter:
        nothing = {"brightness": (1, 1), "contrast": (1, 1), "saturation": (1, 1), "hue": (0, 0)}
        return A.ColorJitter(**(nothing | ranges), p=0.5)

    contrast, saturation = only(contrast=(0.5, 1.5)), only(saturation=(0.5, 1.5))
    hue = only(hue=(-18 / 360, 18 / 360))
    orders = [[contrast, saturation, hue], [saturation, hue, contrast]]
    return [
        only(brightness=(1 - 32 / 255, 1 + 32 / 255)),
        A.OneOf([A.Sequential(order) for order in orders], p=1),
    ]


class LargeScaleJitter(A.DualTransform):
    """Resize by r * min(height / h, width / w), r uniform in `scale_range`, and crop at random to `size`.

    The result is smaller than `size` where the resized image is. Sides are truncated to integers, at
    least 1. Images are resized bilinearly with antialias, masks to the nearest pixel, as
    `torch.nn.functional.interpolate` does both.
    """

    def __init__(self, size: tuple[int, int], scale_range: tuple[float, float]):
        super().__init__(p=1)
        self.size = size
        self.scale_range = scale_range

    @property
    def targets(self):
        return {"image": self.apply, "masks": self.apply_to_masks}

    def get_params_dependent_on_data(self, params: dict, data: dict) -> dict:
        old = params["shape"][:2]
        factor = self.py_random.uniform(*self.scale_range) * min(self.size[0] / old[0], self.size[1] / old[1])
        scaled = [max(int(side * factor), 1) for side in old]
        window = []
        for side, room in zip(scaled, self.size, strict=True):
            start = self.py_random.randint(0, max(side - room, 0))
            window.append((start, min(start + room, side)))
        return {"scaled": scaled, "window": window}

    def apply(self, img: np.ndarray, scaled: Sequence[int], window: Sequence[tuple[int, int]], **params):
        """uint8 [h, w, 3] to uint8 [crop height, crop width, 3]."""
        # On 8-bit pixels, channels last, PyTorch resizes the whole image faster than Pillow its crop alone
        # (640 x 480 to 640 x 640: 0.1 to 1.2 ms against 1.0 to 7.5 ms), and exactly as torchvision does.
        # The batch axis must come first, or PyTorch does not see channels last and takes twice as long.
        pixels = torch.from_numpy(np.require(img, requirements="W"))[None].permute(0, 3, 1, 2)
        resized = functional.interpolate(pixels, tuple(scaled), mode="bilinear", antialias=True)
        (top, bottom), (left, right) = window
        return resized[0, :, top:bottom, left:right].permute(1, 2, 0).numpy()

    def apply_to_masks(self, masks: np.ndarray, scaled: Sequence[int], window: Sequence[tuple[int, int]], **params):
        """int16 [K, h, w] to int16 [K, crop height, crop width]; reads the pixels of the crop alone."""
        rows, columns = (nearest_pixels(*sides) for sides in zip(masks.shape[1:], scaled, window, strict=True))
        return masks.take(columns, axis=2).take(rows, axis=1)


def nearest_pixels(old: int, new: int, window: tuple[int, int]) -> np.ndarray:
    """Which of `old` pixels each pixel of window [start, end) shows after a nearest resize to `new`.

    PyTorch's rule for `mode="nearest"`: floor(i * old / new), in single precision.
    """
    scale = np.float32(old) / np.float32(new)
    pixels = np.arange(*window, dtype=np.float32) * scale
    return np.minimum(pixels.astype(np.int64), old - 1)
