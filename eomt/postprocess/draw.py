"""Pictures of segments in colour over the image, with outlines and names."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from eomt.classes import Classes

# Images with shorter sides than this are enlarged by a whole factor, so that names have room.
READABLE = 384
MARGIN = 8
# Instances with lower scores are not drawn: an image has a hundred, most of them unlikely.
DRAWN_SCORE = 0.5
# Shades of one thing class's instances in turn: (hue offset, factor of brightness).
SHADES = ((0.0, 1.0), (0.035, 0.72), (-0.035, 1.25), (0.06, 0.9), (-0.06, 0.6), (0.02, 1.4), (-0.02, 0.8))


def draw_segments(
    image: np.ndarray,
    ids: np.ndarray | Tensor,
    labels: Sequence[int] | np.ndarray | Tensor,
    classes: Classes,
    scores: Sequence[float] | np.ndarray | Tensor | None = None,
    alpha: float = 0.5,
) -> np.ndarray:
    """Paint segments over an image: a colour per class, shades per instance, outlines, names.

    A class that is called background is left unpainted.

    Args:
        image: uint8 [H, W, 3].
        ids: integers [H, W]; s + 1 where segment s is, 0 where none is, which is left unpainted.
        labels: the classes of the S segments.
        classes: the classes' names and colours.
        scores: S probabilities, written after the names in percent.
        alpha: 0 shows the image alone, 1 the colours alone.

    Returns:
        uint8 [kH, kW, 3], k the smallest whole number that lifts the longer side to 384 pixels.
    """
    # 32 bits are enough, and half the time of 64.
    ids, labels = _array(ids).astype(np.int32), _array(labels)
    names = [classes[label].name.strip("_ ").lower() for label in labels.tolist()]
    if "background" in names:
        ids = np.where(np.isin(ids - 1, [s for s, name in enumerate(names) if name == "background"]), 0, ids)
    factor = -(-READABLE // max(ids.shape))
    image, ids = _enlarge(image, factor), _enlarge(ids, factor)
    colors = segment_colors(labels, classes)

    # One lookup of four bytes a pixel: three lookups of one take ten times as long.
    table = np.zeros((len(colors) + 1, 4), dtype=np.uint8)
    table[1:, :3] = colors
    paint = table.view(np.uint32)[:, 0][ids].view(np.uint8).reshape(*ids.shape, 4)[..., :3]
    canvas = np.array(Image.blend(Image.fromarray(image), Image.fromarray(paint), alpha))
    np.copyto(canvas, image, where=(ids == 0)[..., None])
    line = _outlines(ids, max(1, round(min(ids.shape) / 400)))
    canvas[line] = (0.25 * canvas[line] + 0.75 * 255).astype(np.uint8)

    texts = [classes[label].name for label in labels.tolist()]
    if scores is not None:
        texts = [f"{text} {100 * score:.0f}%" for text, score in zip(texts, _array(scores).tolist(), strict=True)]
    # Named first: by score in steps of 0.1, then those that have the fewest places.
    sure = np.zeros(len(texts)) if scores is None else _array(scores).round(1)
    return _write_names(canvas, ids, texts, colors, sure)


def draw_errors(image: np.ndarray, true: np.ndarray, found: np.ndarray, scored: np.ndarray) -> np.ndarray:
    """Paint the errors of a prediction over the grey image: another class red, missed orange, found where nothing is
    violet.

    Args:
        image: uint8 [H, W, 3].
        true, found: the class of each pixel, integers [H, W]; -1 for none.
        scored: bool [H, W]; no errors are shown elsewhere.

    Returns:
        uint8 [H, W, 3].
    """
    canvas = np.array(Image.fromarray(image).convert("L").convert("RGB"))
    wrong = scored & (true != found)
    for color, where in (
        ((220, 38, 38), (true >= 0) & (found >= 0)),
        ((245, 158, 11), (true >= 0) & (found < 0)),
        ((147, 51, 234), true < 0),
    ):
        canvas[wrong & where] = 0.3 * canvas[wrong & where] + 0.7 * np.array(color)
    return canvas


def segment_colors(labels: np.ndarray, classes: Classes) -> np.ndarray:
    """Colours uint8 [S, 3]: the class's; every further instance of a thing class has another shade."""
    seen: dict[int, int] = {}
    colors = np.zeros((len(labels), 3), dtype=np.uint8)
    for s, label in enumerate(labels.tolist()):
        colors[s] = classes[label].color
        if classes[label].is_thing:
            turn = seen[label] = seen.get(label, -1) + 1
            shift, brightness = SHADES[turn % len(SHADES)]
            hue, saturation, value = colorsys.rgb_to_hsv(*(colors[s] / 255))
            rgb = colorsys.hsv_to_rgb((hue + shift) % 1, saturation, min(value * brightness, 1))
            colors[s] = [round(255 * c) for c in rgb]
    return colors


def side_by_side(image: np.ndarray, pictures: Sequence[tuple[str, np.ndarray]], title: str = "image") -> np.ndarray:
    """Put the image and pictures of it in a row, each under its title.

    Args:
        image: uint8 [H, W, 3].
        pictures: titles and uint8 pictures; all are enlarged to the largest one's size.
        title: the image's title.

    Returns:
        uint8 [H', W', 3] on white.
    """
    tiles = [(title, image), *pictures]
    height, width = (max(picture.shape[axis] for _, picture in tiles) for axis in (0, 1))
    font = _font(height, width)
    strip = round(1.6 * font.size)
    sheet = Image.new("RGB", ((width + MARGIN) * len(tiles) + MARGIN, height + strip + MARGIN), "white")
    pen = ImageDraw.Draw(sheet)
    for k, (text, picture) in enumerate(tiles):
        left = MARGIN + k * (width + MARGIN)
        pen.text((left, strip / 2), text, font=font, fill="black", anchor="lm")
        # Enlarged pixels stay squares, as in the pictures beside them.
        sheet.paste(Image.fromarray(picture).resize((width, height), Image.Resampling.NEAREST), (left, strip))
    return np.array(sheet)


def contact_sheet(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Put pictures uint8 [., ., 3] below each other, aligned left, on white."""
    width = max(row.shape[1] for row in rows)
    return np.concatenate(
        [np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0)), constant_values=255) for row in rows]
    )


def _border_distance(ids: np.ndarray) -> np.ndarray:
    """Chessboard distance of each pixel of a map [H, W] to the nearest pixel of another segment, or beyond the map's
    edge: int64 [H, W].
    """
    padded = np.pad(ids, 1, constant_values=ids.min() - 1)
    height, width = ids.shape
    shifted = (padded[y : y + height, x : x + width] for y in range(3) for x in range(3))
    inside = np.logical_and.reduce([part == ids for part in shifted])
    distance = np.ones(ids.shape, dtype=np.int64)
    while inside.any():
        distance += inside
        # Erode by one layer: pixels with all eight neighbours stay.
        padded = np.pad(inside, 1)
        rows = padded[:-2] & padded[1:-1] & padded[2:]
        inside = rows[:, :-2] & rows[:, 1:-1] & rows[:, 2:]
    return distance


def _outlines(ids: np.ndarray, thickness: int) -> np.ndarray:
    """Lines of about `thickness` pixels between segments, bool [H, W]."""
    line = np.zeros(ids.shape, dtype=bool)
    for step in range(1, thickness + 1):
        line[:, step:] |= ids[:, step:] != ids[:, :-step]
        line[step:] |= ids[step:] != ids[:-step]
    return line


def _write_names(
    canvas: np.ndarray, ids: np.ndarray, texts: list[str], colors: np.ndarray, sure: np.ndarray
) -> np.ndarray:
    """Write each segment's text, the surest first, far from its border and beside other texts; skip those without
    room."""
    height, width = ids.shape
    font = _font(height, width)
    # On a coarse map: a name need not be placed to the pixel.
    stride = max(1, max(ids.shape) // 160)
    top, left = (min(stride // 2, side - 1) for side in ids.shape)
    coarse = ids[top::stride, left::stride]
    depth = _border_distance(coarse) * stride
    areas = np.bincount(coarse.ravel(), minlength=len(texts) + 1)[1:]
    picture = Image.fromarray(canvas)
    pen = ImageDraw.Draw(picture, "RGBA")
    taken: list[tuple[int, int, int, int]] = []
    for s in sorted(range(len(texts)), key=lambda s: (-sure[s], areas[s])):
        ys, xs = np.nonzero(coarse == s + 1)
        if not len(ys) or depth[ys, xs].max() < 0.5 * font.size:
            continue
        # Among positions about as deep, prefer those near the segment's middle.
        away = np.hypot(ys - ys.mean(), xs - xs.mean()) * stride
        order = np.argsort(0.1 * away - depth[ys, xs], kind="stable")[:200:4]
        # Whole pixels, so that equal letters are drawn alike.
        half_width = math.ceil(font.getlength(texts[s]) / 2 + 0.25 * font.size)
        half_height = math.ceil(0.65 * font.size)
        for y, x in zip(ys[order] * stride, xs[order] * stride, strict=True):
            x = max(min(x, width - half_width - 1), half_width + 1)
            y = max(min(y, height - half_height - 1), half_height + 1)
            box = (x - half_width, y - half_height, x + half_width, y + half_height)
            if all(box[0] > b[2] or b[0] > box[2] or box[1] > b[3] or b[1] > box[3] for b in taken):
                taken.append(box)
                shade = tuple(int(c) for c in colors[s] * 0.3)
                pen.rounded_rectangle(box, radius=font.size / 4, fill=(*shade, 190))
                pen.text((x, y), texts[s], font=font, fill="white", anchor="mm")
                break
    return np.array(picture)


@lru_cache(maxsize=8)
def _font(height: int, width: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(max(12, round(min(height, width) / 28)))
    assert isinstance(font, ImageFont.FreeTypeFont)  # as it is of a given size
    return font


def _enlarge(values: np.ndarray, factor: int) -> np.ndarray:
    return values if factor <= 1 else values.repeat(factor, axis=0).repeat(factor, axis=1)


def _array(values) -> np.ndarray:
    return values.numpy(force=True) if isinstance(values, Tensor) else np.asarray(values)
