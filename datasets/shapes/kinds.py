"""Classes of the built-in dataset: eight kinds of things, each with an outline, and five of stuff, with a texture.

Most differ in hue, too, but not all: disc and ring are both red, square and cross both blue, and differ in their
outlines alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator


@dataclass(frozen=True)
class Kind:
    """A kind of things or stuff.

    Attributes:
        id: category id. Ids have gaps, as COCO's do.
        name: class name.
        color: red, green and blue in drawings of segments, 0..255.
        hue: lowest and highest hue in turns; both may lie outside 0..1, hues go round.
        paint: for a thing, f(u, v) -> bool, its mask in coordinates where its radius is about 1; for stuff,
            f(rng, x, y) -> 0..1, the texture, in units of the image's nominal side.
    """

    id: int
    name: str
    color: tuple[int, int, int]
    hue: tuple[float, float]
    paint: Callable[..., np.ndarray]


def rotated_randomly(rng: Generator, x, y):
    """Coordinates rotated by a random angle."""
    return rotated(x, y, rng.uniform(0, np.pi))


def rotated(x, y, angle: float):
    """Coordinates rotated by `angle` (radians)."""
    cos, sin = math.cos(angle), math.sin(angle)  # Python's floats leave float32 arrays float32
    return x * cos + y * sin, y * cos - x * sin


def _triangle(u, v):
    return np.maximum(u, math.sqrt(0.75) * np.abs(v) - 0.5 * u) < 0.58


def _star(u, v):
    # Fold the plane onto half of one of five points, whose edge runs from the tip to the notch beside it.
    angle = np.abs((np.arctan2(v, u) + np.pi / 5) % (2 * np.pi / 5) - np.pi / 5)
    tip, notch_x, notch_y = 1.15, 0.5 * math.cos(math.pi / 5), 0.5 * math.sin(math.pi / 5)
    radius = np.hypot(u, v)
    return (radius * np.cos(angle) - tip) * notch_y + radius * np.sin(angle) * (tip - notch_x) < 0


def _cross(u, v):
    u, v = np.abs(u), np.abs(v)
    return (np.minimum(u, v) < 0.33) & (np.maximum(u, v) < 1.0)


def _heart(u, v):
    u, v = 1.15 * u, 0.15 - 1.15 * v
    return np.cbrt(u * u) * v > u * u + v * v - 1  # (u^2 + v^2 - 1)^3 < u^2 v^3, without its high powers


def _crescent(u, v):
    return (np.hypot(u, v) < 1.05) & (np.hypot(u - 0.5, v) > 0.8)


def _ring(u, v):
    return np.abs(np.hypot(u, v) - 0.75) < 0.29


def _sky(rng: Generator, x, y):
    a, _ = rotated_randomly(rng, x, y)
    return (a - a.min()) / np.ptp(a)


def _water(rng: Generator, x, y):
    a, b = rotated_randomly(rng, x, y)
    period, ripple = rng.uniform(0.09, 0.14), rng.uniform(0.16, 0.24)
    return 0.5 + 0.5 * np.sin(2 * np.pi * (a / period + 0.35 * np.sin(2 * np.pi * b / ripple)))


def _grass(rng: Generator, x, y):
    blades = rng.random(x.shape)
    return np.maximum(blades, np.roll(blades, 1, axis=0))


def _tiles(rng: Generator, x, y):
    a, b = rotated_randomly(rng, x, y)
    side = rng.uniform(0.07, 0.11)
    return (np.floor(a / side) + np.floor(b / side)) % 2


def _planks(rng: Generator, x, y):
    a, _ = rotated_randomly(rng, x, y)
    return np.floor(a / rng.uniform(0.05, 0.08)) % 2


_RED, _BLUE = (-0.04, 0.04), (0.57, 0.66)

THINGS = (
    Kind(1, "disc", (255, 51, 51), _RED, lambda u, v: np.hypot(u, v) < 0.95),
    Kind(2, "ring", (153, 31, 31), _RED, _ring),
    Kind(4, "square", (51, 114, 255), _BLUE, lambda u, v: np.maximum(np.abs(u), np.abs(v)) < 0.82),
    Kind(5, "cross", (31, 69, 153), _BLUE, _cross),
    Kind(8, "triangle", (55, 255, 51), (0.29, 0.37), _triangle),
    Kind(13, "star", (255, 228, 51), (0.12, 0.17), _star),
    Kind(16, "heart", (255, 51, 192), (0.85, 0.92), _heart),
    Kind(21, "crescent", (171, 51, 255), (0.74, 0.79), _crescent),
)
STUFF = (
    Kind(92, "sky", (149, 186, 230), (0.56, 0.62), _sky),
    Kind(95, "water", (108, 166, 162), (0.46, 0.52), _water),
    Kind(100, "grass", (185, 230, 149), (0.22, 0.30), _grass),
    Kind(107, "tiles", (166, 108, 136), (0.88, 0.96), _tiles),
    Kind(112, "planks", (230, 190, 149), (0.06, 0.11), _planks),
)
