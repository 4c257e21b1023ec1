"""Photometric distortion of training images."""

from __future__ import annotations

import os

# albumentations asks a server for its newest version when it is imported, unless it is told not to.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import albucore
import albumentations as A
import cv2
import numpy as np

_UNCHANGED = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.0}
_RANGES = {
    "brightness": (1 - 32 / 255, 1 + 32 / 255),
    "contrast": (0.5, 1.5),
    "saturation": (0.5, 1.5),
    "hue": (-18 / 360, 18 / 360),
}
_GREY = (0.299, 0.587, 0.114)  # of red, green and blue: ITU-R BT.601, as in cv2.COLOR_RGB2GRAY
# As albumentations counts them: brightness, contrast, saturation, hue.
_ORDERS = ([0, 1, 2, 3], [0, 2, 3, 1])


class ColorJitter:
    """EoMT's order and chances: brightness x(1 +- 32/255); then contrast, saturation and hue, or saturation, hue and
    contrast, with equal chance. Contrast and saturation x(0.5..1.5), hue +-18/360 of the circle. Each is applied with
    probability 0.5.

    Brightness and hue are albumentations'. The draws are not, for its pipelines cost more than some of the steps; and
    contrast and saturation take half as long here and differ by at most 1 of 255 levels from albumentations'.
    """

    def __init__(self):
        self._jitter = A.ColorJitter()
        self._jitter.transforms[1:3] = adjust_contrast, adjust_saturation

    def __call__(self, image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """uint8 [h, w, 3] to the same; the image itself is not changed."""
        return self._jitter.apply(image, **draw_colors(generator))


def adjust_contrast(image: np.ndarray, factor: float) -> np.ndarray:
    """Away from the mean of the grey image, uint8 [h, w, 3] to the same."""
    if factor == 1:
        return image
    mean = cv2.mean(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))[0]
    return albucore.multiply_add(image, factor, mean * (1 - factor))


def adjust_saturation(image: np.ndarray, factor: float) -> np.ndarray:
    """Away from each pixel's grey, uint8 [h, w, 3] to the same."""
    if factor == 1:
        return image
    return cv2.transform(image, factor * np.eye(3) + (1 - factor) * np.array(_GREY))


def draw_colors(generator: np.random.Generator) -> dict[str, float | list[int]]:
    """Factors of brightness, contrast and saturation, the turn of the hue (1 is the circle), and the order."""
    applied, places = generator.random((2, len(_RANGES)))
    drawn: dict[str, float | list[int]] = dict(_UNCHANGED)
    for (name, (low, high)), chance, place in zip(_RANGES.items(), applied, places, strict=True):
        if chance < 0.5:
            drawn[name] = float(low + (high - low) * place)
    return drawn | {"order": _ORDERS[int(generator.integers(2))]}
