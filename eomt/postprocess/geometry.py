"""Between images of any size and the network's input, and back from logits to the image.

Two ways in, as EoMT uses them. Instance and panoptic segmentation fit the whole image into the input
and pad it; semantic segmentation lets the image cover the input and cuts windows along the side that
is too long. `undo_fit` and `merge_windows` are their inverses. Sizes are (height, width) throughout.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from eomt.errors import InputError

# The C library keeps smaller blocks of a CPU's memory for reuse. Larger ones come from the system anew each
# time, which takes as long as resizing into them.
REUSED_BYTES = 16 * 2**20


class Placement(NamedTuple):
    """How an image was scaled on its way in; all in pixels.

    Attributes:
        height, width: the original size.
        scaled_height, scaled_width: the size after scaling, before padding or cutting.
    """

    height: int
    width: int
    scaled_height: int
    scaled_width: int


class Geometry(NamedTuple):
    """One of the two ways in.

    Attributes:
        prepare: from an image (PIL, or uint8 [h, w, 3]) and the network's input size to uint8
            [N, 3, height, width], the inputs that show the image, and its placement.
        view: from those inputs, the placement and the size back to what the network saw of the image: uint8
            [3, placement.scaled_height, placement.scaled_width].
    """

    prepare: Callable[[Image.Image | np.ndarray, tuple[int, int]], tuple[Tensor, Placement]]
    view: Callable[[Tensor, Placement, tuple[int, int]], Tensor]


def fit_size(height: int, width: int, size: tuple[int, int]) -> tuple[int, int]:
    """The largest size of the image's aspect inside `size`.

    Sides are rounded half to even, as the original does. A side of an extremely long image would round
    to 0, where the original fails; it becomes 1.
    """
    factor = min(size[0] / height, size[1] / width)
    return (
        min(max(round(height * factor), 1), size[0]),
        min(max(round(width * factor), 1), size[1]),
    )


def cover_size(height: int, width: int, size: tuple[int, int]) -> tuple[int, int]:
    """The smallest size of the image's aspect that covers `size`, sides rounded half to even.

    At least one side equals that of `size`; only the other can exceed it.
    """
    factor = max(size[0] / height, size[1] / width)
    return max(round(height * factor), size[0]), max(round(width * factor), size[1])


def fit_and_pad(image: Image.Image | np.ndarray, size: tuple[int, int]) -> tuple[Tensor, Placement]:
    """Scale an image so that all of it fits `size`, and fill the right and the bottom with zeros.

    Args:
        image: a PIL image, or uint8 [h, w, 3].
        size: height and width of the network's input.

    Returns:
        uint8 [3, height, width], and the placement that `undo_fit` needs.

    Raises:
        InputError: if an array is not uint8 [h, w, 3], or the image has no pixel.
    """
    scaled, placement = _resize(image, size, fit_size)
    padded = torch.zeros(3, *size, dtype=torch.uint8)
    padded[:, : placement.scaled_height, : placement.scaled_width] = scaled
    return padded, placement


def undo_fit(
    logits: Tensor,
    placement: Placement,
    size: tuple[int, int],
    box: tuple[slice, slice] | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Bring mask logits of a padded input back to the original image.

    Args:
        logits: float [K, h, w], over the whole input at any stride.
        placement: of `fit_and_pad`.
        size: height and width of the network's input.
        box: the rows and columns of the original image that are wanted; default all.
        out: float32 [K, placement.height, placement.width], memory that may be used for the second resize.

    Returns:
        float [K, placement.height, placement.width], or the box of it: resized to the input, cropped to the image's
        part, resized to the original, each time bilinearly. Still logits: the sigmoid comes after. May be a view.
    """
    shape = (placement.height, placement.width)
    part = (slice(0, placement.scaled_height), slice(0, placement.scaled_width))
    if (placement.scaled_height, placement.scaled_width) == shape:
        return _resize_part(logits, size, part if box is None else box)
    if box is None:
        return resize_maps(_resize_part(logits, size, part), shape, out)
    # What the box is made of, and zeros elsewhere: the weights of the second resize depend on what is before them.
    scaled = logits.new_zeros(len(logits), placement.scaled_height, placement.scaled_width)
    part = tuple(
        slice(max(wanted.start * inner // outer - 2, 0), min(-(-wanted.stop * inner // outer) + 2, inner))
        for wanted, inner, outer in zip(box, scaled.shape[1:], shape, strict=True)
    )
    scaled[:, part[0], part[1]] = _resize_part(logits, size, part)
    return resize_maps(scaled, shape, out)[:, box[0], box[1]]


def _resize_part(maps: Tensor, size: tuple[int, int], part: tuple[slice, slice]) -> Tensor:
    """The rows and columns of `resize_maps(maps, size)`, without the others where that gives the same bits."""
    rows, columns = part
    enlarged, inner = [], []
    for axis, wanted in enumerate(part):
        factor = size[axis] // maps.shape[1 + axis]
        # Then all positions and weights are exact, and do not change with where the part begins.
        if factor * maps.shape[1 + axis] != size[axis] or factor & (factor - 1):
            return resize_maps(maps, size)[:, rows, columns]
        first = max(wanted.start // factor - 1, 0)
        last = min(-(-wanted.stop // factor) + 1, maps.shape[1 + axis])
        enlarged.append((slice(first, last), (last - first) * factor))
        inner.append(slice(wanted.start - first * factor, wanted.stop - first * factor))
    (used_rows, height), (used_columns, width) = enlarged
    return resize_maps(maps[:, used_rows, used_columns], (height, width))[:, inner[0], inner[1]]


def undo_fit_in_chunks(
    mask_logits: Tensor,
    queries: Tensor,
    placement: Placement,
    size: tuple[int, int],
    max_bytes: int,
    pixel_bytes: int = 4,
) -> Iterator[Tensor]:
    """`undo_fit` for a few masks at a time, none of which depends on the others beside it.

    Drop each chunk (`del`) before the next one is asked for: it may stand in the same memory, otherwise two are held.

    Args:
        mask_logits: float [Q, h, w], any float type.
        queries: int64 [K], the masks wanted, in this order.
        max_bytes: how much a chunk may take, on a CPU at most 16 MiB; at least one mask is upsampled.
        pixel_bytes: what the caller holds for each pixel of a mask at the original size, the logit included.

    Yields:
        float32 [k, placement.height, placement.width], the k >= 1 next ones; free to be overwritten.
    """
    # A mask takes its pixels at the input's size twice: resized, and its crop made contiguous.
    mask_bytes = 8 * size[0] * size[1] + pixel_bytes * placement.height * placement.width
    if mask_logits.device.type == "cpu":
        max_bytes = min(max_bytes, REUSED_BYTES)
    count = max(1, max_bytes // mask_bytes)
    shape = (placement.height, placement.width)
    out = mask_logits.new_empty(min(count, len(queries)), *shape, dtype=torch.float32)
    for chunk in queries.split(count):
        yield undo_fit(mask_logits[chunk].float(), placement, size, out=out[: len(chunk)])


def window_starts(length: int, size: int) -> list[int]:
    """Where windows of `size` pixels begin so that they cover `length` >= `size` pixels evenly.

    There are ceil(length / size) of them, the first at 0, the last at length - size. All in integers:
    the original's floating point truncates the last start at extreme lengths and leaves a column bare.
    """
    count = math.ceil(length / size)
    return [j * (length - size) // max(count - 1, 1) for j in range(count)]


def cut_windows(image: Image.Image | np.ndarray, size: tuple[int, int]) -> tuple[Tensor, Placement]:
    """Scale an image so that it covers `size`, and cut it into windows along the side that is longer.

    Args:
        image: a PIL image, or uint8 [h, w, 3].
        size: height and width of a window.

    Returns:
        uint8 [N, 3, height, width], windows from left to right or from top to bottom, and the placement
        that `merge_windows` needs.

    Raises:
        InputError: if an array is not uint8 [h, w, 3], or the image has no pixel.
    """
    scaled, placement = _resize(image, size, cover_size)
    return torch.stack([scaled[:, rows, columns] for rows, columns in _windows(placement, size)]), placement


def merge_windows(scores: Tensor, placement: Placement, size: tuple[int, int]) -> Tensor:
    """Lay the windows' scores over each other and bring them to the original image.

    Args:
        scores: float [N, C, size[0], size[1]], for the windows of `cut_windows`.
        placement: of `cut_windows`.
        size: height and width of a window.

    Returns:
        float [C, placement.height, placement.width]: averaged where windows overlap, then resized
        bilinearly.
    """
    averaged = average_windows(scores, lambda window: window, placement, size)
    return resize_maps(averaged, (placement.height, placement.width))


def average_windows(
    windows: Iterable[Any], score: Callable[[Any], Tensor], placement: Placement, size: tuple[int, int]
) -> Tensor:
    """Score windows one after the other and lay the scores over each other.

    Args:
        windows: what `score` needs for each window of `cut_windows`.
        score: gives a window's float [C, size[0], size[1]], dropped before it is asked for the next.
        placement: of `cut_windows`.
        size: height and width of a window.

    Returns:
        float [C, placement.scaled_height, placement.scaled_width], averaged where windows overlap.
    """
    total = None
    for window, (rows, columns) in zip(windows, _windows(placement, size), strict=True):
        scores = score(window)
        if total is None:
            total = scores.new_zeros(len(scores), placement.scaled_height, placement.scaled_width)
            # Windows stand in a grid: a pixel is covered by those over its row times those over its column.
            down, across = scores.new_zeros(placement.scaled_height, 1), scores.new_zeros(placement.scaled_width)
        total[:, rows, columns] += scores
        if columns.start == 0:
            down[rows] += 1
        if rows.start == 0:
            across[columns] += 1
        del scores
    return total.div_(down).div_(across)


def resize_maps(maps: Tensor, size: tuple[int, int], out: Tensor | None = None) -> Tensor:
    """Resize float [K, h, w] to [K, *size] bilinearly: corners not aligned, no antialias.

    A map's result does not depend on the others beside it. Maps of that size already are returned as they
    are, not copied.

    Args:
        maps: as above.
        size: height and width.
        out: float32 [K, *size] to resize into, without gradients: see `REUSED_BYTES`.
    """
    if maps.shape[1:] == size:
        return maps
    if out is not None:
        torch.ops.aten.upsample_bilinear2d.out(maps[:, None], list(size), False, out=out[:, None])
        return out
    # One map per batch entry, not per channel: PyTorch picks its kernel by the number of channels.
    return functional.interpolate(maps[:, None], size, mode="bilinear", align_corners=False)[:, 0]


def _fit_one(image: Image.Image | np.ndarray, size: tuple[int, int]) -> tuple[Tensor, Placement]:
    padded, placement = fit_and_pad(image, size)
    return padded[None], placement


def _view_one(inputs: Tensor, placement: Placement, size: tuple[int, int]) -> Tensor:
    return inputs[0, :, : placement.scaled_height, : placement.scaled_width]


def _view_windows(inputs: Tensor, placement: Placement, size: tuple[int, int]) -> Tensor:
    view = inputs.new_empty(3, placement.scaled_height, placement.scaled_width)
    for window, (rows, columns) in zip(inputs, _windows(placement, size), strict=True):
        view[:, rows, columns] = window
    return view


FIT_AND_PAD = Geometry(_fit_one, _view_one)
WINDOWS = Geometry(cut_windows, _view_windows)


def _windows(placement: Placement, size: tuple[int, int]) -> list[tuple[slice, slice]]:
    """Rows and columns of each window in the scaled image. One of the two sides has a single start."""
    return [
        (slice(top, top + size[0]), slice(left, left + size[1]))
        for top in window_starts(placement.scaled_height, size[0])
        for left in window_starts(placement.scaled_width, size[1])
    ]


def _resize(image: Image.Image | np.ndarray, size: tuple[int, int], rule: Callable) -> tuple[Tensor, Placement]:
    """The image scaled to `rule(height, width, size)` by PIL, as uint8 [3, h, w]."""
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise InputError(
                f"an image array must be uint8 [height, width, 3], found {image.dtype} {list(image.shape)}"
            )
        if image.size == 0:
            raise InputError(f"an image needs at least one pixel, found shape {list(image.shape)}")
        image = Image.fromarray(image)
    if image.width == 0 or image.height == 0:
        raise InputError(f"an image needs at least one pixel, found {image.width} x {image.height}")
    height, width = rule(image.height, image.width, size)
    placement = Placement(image.height, image.width, height, width)
    scaled = image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(scaled)).permute(2, 0, 1), placement
