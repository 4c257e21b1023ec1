"""The pictures of the built-in dataset: things of several kinds and sizes over textured stuff.

Image and ground truth come from the same hard masks, so their borders are equal.
"""

from __future__ import annotations

import colorsys
import math
from typing import NamedTuple

import numpy as np
from numpy.random import Generator

from datasets.shapes.kinds import STUFF, THINGS, Kind, rotated, rotated_randomly

MIN_AREA = 12  # visible pixels; a segment with fewer cannot be recognised and is left unlabelled
MIN_VISIBLE = 0.45  # share of a thing's pixels that later things must leave visible


class Segment(NamedTuple):
    """A segment of a scene: its kind's category id, and whether it is a crowd (COCO's `iscrowd`)."""

    category_id: int
    crowd: bool = False


class Scene(NamedTuple):
    """One picture with its ground truth.

    Attributes:
        image: uint8 [H, W, 3], red, green, blue.
        ids: int32 [H, W]; pixels with the value t + 1 belong to `segments[t]`, 0 is void.
        segments: every one has at least MIN_AREA pixels; at most one per kind of stuff.
    """

    image: np.ndarray
    ids: np.ndarray
    segments: list[Segment]


def draw_scene(rng: Generator, size: int) -> Scene:
    """Draw one picture.

    Args:
        rng: the only source of randomness.
        size: the nominal side in pixels; each side is drawn from 3/4 to 5/4 of it.
    """
    height, width = (int(s) for s in rng.integers(round(0.75 * size), round(1.25 * size) + 1, 2))
    canvas = _Canvas(rng, height, width, size)
    canvas.lay_stuff()
    if rng.random() < 0.3:
        canvas.smudge()
    if rng.random() >= 0.05:
        if rng.random() < 0.12:
            canvas.add_crowd()
        for _ in range(rng.integers(1, 8)):
            canvas.add_thing()
    return canvas.finish()


def _color(rng: Generator, hue: tuple[float, float], saturation, value) -> np.ndarray:
    """Draw a colour from ranges of hue, saturation and value: red, green, blue, float [3], 0..1."""
    drawn = [rng.uniform(low, high) for low, high in (hue, saturation, value)]
    return np.array(colorsys.hsv_to_rgb(drawn[0] % 1.0, *drawn[1:]))


class _Canvas:
    """An unfinished picture: `image` float32 [H, W, 3] 0..1, `ids` and `segments` as in `Scene`."""

    def __init__(self, rng: Generator, height: int, width: int, size: int):
        self.rng, self.size = rng, size
        self.y, self.x = np.mgrid[0:height, 0:width].astype(np.float32) + 0.5  # centres of the pixels
        self.image = np.zeros((height, width, 3), dtype=np.float32)
        self.ids = np.zeros((height, width), dtype=np.int32)
        self.segments: list[Segment] = []
        self.areas: list[int] = []  # pixels of each thing and crowd before others hid some; 0 for stuff

    def lay_stuff(self) -> None:
        """Fill the picture with one to four kinds of stuff, each split off the largest region so far."""
        rng, x, y = self.rng, self.x / self.size, self.y / self.size
        kinds = rng.permutation(len(STUFF))[: rng.choice([1, 2, 3, 4], p=[0.15, 0.4, 0.35, 0.1])]
        self.ids[:] = 1
        for number in range(2, len(kinds) + 1):
            region = self.ids == np.bincount(self.ids.ravel()).argmax()
            across, along = rotated_randomly(rng, x, y)
            if rng.random() < 0.5:  # a wavy border, otherwise a straight one
                across = across + 0.04 * np.sin(2 * np.pi * (along / rng.uniform(0.2, 0.5) + rng.random()))
            self.ids[region & (across > np.quantile(across[region], rng.uniform(0.35, 0.65)))] = number
        for number, kind in enumerate((STUFF[k] for k in kinds), start=1):
            light = _color(rng, kind.hue, (0.25, 0.45), (0.75, 0.95))
            dark = light * rng.uniform(0.6, 0.75)
            region = self.ids == number
            texture = kind.paint(rng, x, y)[region]
            self.image[region] = dark + (light - dark) * texture[:, None]
            self.segments.append(Segment(kind.id))
            self.areas.append(0)

    def smudge(self) -> None:
        """Cover one or two spots with grey speckle that has no label."""
        rng = self.rng
        for _ in range(rng.integers(1, 3)):
            dx, dy, radius = self._offsets(rng.uniform(0.07, 0.14))
            angle, (two, three) = np.arctan2(dy, dx), rng.uniform(0, 2 * np.pi, 2)
            lobes = 1 + 0.2 * np.sin(2 * angle + two) + 0.15 * np.sin(3 * angle + three)
            blot = np.hypot(dx, dy) < radius * lobes
            self.ids[blot] = 0
            self.image[blot] = rng.uniform(0.15, 0.6, (blot.sum(), 1))

    def _offsets(self, radius: float, center=None) -> tuple[np.ndarray, np.ndarray, float]:
        """Offsets of all pixels from a centre inside the picture, and the radius, in pixels."""
        radius *= self.size
        height, width = self.ids.shape
        if center is None:
            center = (self.rng.uniform(radius / 3, side - radius / 3) for side in (width, height))
        cx, cy = map(float, center)
        return self.x - cx, self.y - cy, radius

    def _outline(self, kind: Kind, radius: float, center=None) -> tuple[np.ndarray, np.ndarray]:
        """Rotate, squeeze and place a thing: its mask, bool [H, W], and its shading, float [H, W]."""
        dx, dy, radius = self._offsets(radius, center)
        angle, squeeze = self.rng.uniform(0, 2 * np.pi), self.rng.uniform(0.88, 1.0)
        u, v = rotated(dx / radius, dy / radius, angle)
        return kind.paint(u, v / squeeze), 1 - (dx + dy) * (0.16 / radius)

    def _fill(self, kind: Kind, mask: np.ndarray, light: np.ndarray) -> None:
        """Paint with light from the upper left and a dark rim, which separates overlapping things of one kind."""
        color = _color(self.rng, kind.hue, (0.65, 0.95), (0.7, 1.0))
        padded = np.pad(mask, 1, mode="edge")
        inside = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
        shade = light[mask] * np.where(inside[mask], 1.0, 0.55)
        self.image[mask] = shade[:, None] * color

    def _leaves_others_visible(self, mask: np.ndarray) -> bool:
        """True if a new thing on these pixels leaves enough of every thing and crowd below it."""
        visible = np.bincount(self.ids[~mask], minlength=len(self.segments) + 1)[1:]
        return bool((visible >= MIN_VISIBLE * np.array(self.areas)).all())

    def _label(self, mask: np.ndarray, segment: Segment) -> None:
        self.segments.append(segment)
        self.areas.append(int(mask.sum()))
        self.ids[mask] = len(self.segments)

    def add_thing(self) -> None:
        """Add a thing on top, or none after five positions that hide too much of the others."""
        kind = THINGS[self.rng.integers(len(THINGS))]
        radius = math.exp(self.rng.uniform(math.log(0.09), math.log(0.28)))
        for _ in range(5):
            mask, light = self._outline(kind, radius)
            if mask.sum() >= MIN_AREA and self._leaves_others_visible(mask):
                self._fill(kind, mask, light)
                self._label(mask, Segment(kind.id))
                return

    def add_crowd(self) -> None:
        """Add a swarm of small things of one kind, which is one segment."""
        rng = self.rng
        kind = THINGS[rng.integers(len(THINGS))]
        height, width = self.ids.shape
        middle = rng.uniform(0.25, 0.75, 2) * (width, height)
        spread = rng.uniform(0.1, 0.16, 2) * self.size
        swarm = np.zeros(self.ids.shape, dtype=bool)
        for _ in range(rng.integers(14, 28)):
            mask, light = self._outline(kind, rng.uniform(0.045, 0.06), rng.normal(middle, spread))
            self._fill(kind, mask, light)
            swarm |= mask
        self._label(swarm, Segment(kind.id, crowd=True))

    def finish(self) -> Scene:
        """Add the camera's noise, and remove the labels of hardly visible segments."""
        noise = 0.02 * self.rng.standard_normal(self.image.shape, dtype=np.float32)
        image = np.clip(self.image + noise, 0, 1) * 255
        area = np.bincount(self.ids.ravel(), minlength=len(self.segments) + 1)
        keep = area[1:] >= MIN_AREA
        lookup = np.concatenate([[0], np.where(keep, np.cumsum(keep), 0)]).astype(np.int32)
        segments = [s for s, k in zip(self.segments, keep, strict=True) if k]
        return Scene(image.round().astype(np.uint8), lookup[self.ids], segments)
