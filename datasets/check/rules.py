"""Rules for odd images and ground truth: warnings, no errors, as they can be trained on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from datasets.check.facts import ImageFacts
from eomt.classes import Classes

SMALL_SIDE = 32  # pixels; an image with a shorter side is odd
LONGEST = 5.0  # times the shorter side
TINY = 16  # pixels; a segment with fewer is odd
# Boxes often enclose polygons, from which masks differ by about a pixel; polygons that cross themselves, of which COCO
# has some, count areas twice. The area of a box in place of its object's differs far more.
OUTSIDE = 1.5  # pixels
BOX_OFF = (3.0, 0.05)  # pixels, and share of the box's longer side: the larger counts
AREA_OFF = (64.0, 0.5)  # pixels, and share


def odd_image(image: ImageFacts, classes: Classes, num_queries: int) -> Iterator[tuple[str, str]]:
    """Oddities of an image and its segments, as pairs: kind of finding, description."""
    height, width = image.size
    if min(image.size) < SMALL_SIDE:
        yield "small_image", f"{width} x {height} (width x height), a side of fewer than {SMALL_SIDE} pixels"
    if max(image.size) > LONGEST * min(image.size):
        yield "long_image", f"{width} x {height} (width x height)"
    counted = ~image.crowd
    if not counted.any():
        yield "no_segment", "only crowd regions" if len(counted) else "no segment"
    if counted.sum() > num_queries:
        yield "many_segments", f"{counted.sum()} segments, the network has {num_queries} queries"
    empty, tiny = image.pixels == 0, (image.pixels > 0) & (image.pixels < TINY)
    if empty.any():
        yield "empty_segment", _listed(classes[label].name for label in image.labels[empty])
    if tiny.any():
        pairs = zip(image.labels[tiny], image.pixels[tiny], strict=True)
        yield "tiny_segment", _listed(f"{classes[label].name} of {count} pixels" for label, count in pairs)


def odd_annotations(
    image: ImageFacts, boxes: np.ndarray, areas: np.ndarray, outlines: np.ndarray, classes: Classes
) -> Iterator[tuple[str, str]]:
    """Boxes, areas and outlines (see `datasets.readers.base.Annotated`) that contradict the image or its masks."""
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
    names = [classes[label].name for label in image.labels]
    broken = np.isinf(boxes).any(axis=1)
    if broken.any():
        yield "box", f"no [left, top, width, height]: {_listed(names[s] for s in np.flatnonzero(broken))}"
    corners[broken] = np.nan

    # Missing values are NaN: comparisons with them are False.
    height, width = image.size
    reaching = [
        f"the {what} of {names[s]} {_numbers(reach[s])}"
        for what, reach in (("box", corners), ("polygon", outlines))
        for s in np.flatnonzero(
            (reach < -OUTSIDE).any(axis=1) | (reach[:, 2:] > (width + OUTSIDE, height + OUTSIDE)).any(axis=1)
        )
    ]
    if reaching:
        yield "outside", f"beyond {width} x {height} (width x height): {_listed(reaching)} (left, top, right, bottom)"

    # Empty masks have a finding of their own.
    solid = image.pixels > 0
    room = np.maximum(BOX_OFF[0], BOX_OFF[1] * (image.boxes[:, 2:] - image.boxes[:, :2]).max(axis=1))
    off = np.flatnonzero(solid & (np.abs(corners - image.boxes).max(axis=1) > room))
    if len(off):
        pairs = (f"{names[s]} has the box {_numbers(corners[s])}, its mask {_numbers(image.boxes[s])}" for s in off)
        yield "box", f"{_listed(pairs)} (left, top, right, bottom)"
    room = np.maximum(AREA_OFF[0], AREA_OFF[1] * image.pixels)
    off = np.flatnonzero(solid & (np.abs(areas - image.pixels) > room))
    if len(off):
        yield "area", _listed(f"{names[s]} has the area {areas[s]:g}, its mask {image.pixels[s]} pixels" for s in off)


def _listed(parts: Iterable[str], most: int = 5) -> str:
    parts = list(parts)
    return ", ".join(parts[:most]) + (f" and {len(parts) - most} more" if len(parts) > most else "")


def _numbers(values: np.ndarray) -> str:
    return f"[{', '.join(f'{value:.6g}' for value in values)}]"
