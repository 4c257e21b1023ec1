"""Geometry between images of any size and the network's input, and back from logits to the image.

Instance and panoptic segmentation fit the whole image into the input and pad it (`fit_and_pad`, undone by `undo_fit`).
Semantic segmentation lets the image cover the input and cuts it into windows along the longer side (`cut_windows`,
undone by `merge_windows`). Sizes are (height, width) throughout.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from eomt.errors import InputError

# On a CPU chunks that the cache and the allocator keep take half the time of larger ones.
_CPU_BYTES = 2**24


class Placement(NamedTuple):
    """An image's size before and after scaling, in pixels.

    Attributes:
        height, width: the original size.
        scaled_height, scaled_width: the size after scaling, before padding or cutting.
    """

    height: int
    width: int
    scaled_height: int
    scaled_width: int


class Geometry(NamedTuple):
    """The way of an image into the network.

    Attributes:
        prepare: makes an image's inputs. Takes the image (PIL, or uint8 [h, w, 3]) and the input's size; returns the
            inputs, uint8 [N, 3, height, width], and the image's placement.
        view: makes the picture that the network saw. Takes the inputs, the placement and the input's size; returns
            uint8 [3, placement.scaled_height, placement.scaled_width].
    """

    prepare: Callable[[Image.Image | np.ndarray, tuple[int, int]], tuple[Tensor, Placement]]
    view: Callable[[Tensor, Placement, tuple[int, int]], Tensor]


def fit_size(height: int, width: int, size: tuple[int, int]) -> tuple[int, int]:
    """The largest size of the image's aspect ratio inside `size`.

    Sides are rounded half to even, as the original does. A side of an extremely long image that would round to 0,
    where the original fails, becomes 1.
    """
    factor = min(size[0] / height, size[1] / width)
    return (
        min(max(round(height * factor), 1), size[0]),
        min(max(round(width * factor), 1), size[1]),
    )


def cover_size(height: int, width: int, size: tuple[int, int]) -> tuple[int, int]:
    """The smallest size of the image's aspect ratio that covers `size`, sides rounded half to even.

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


def undo_fit(logits: Tensor, placement: Placement, size: tuple[int, int]) -> Tensor:
    """Bring mask logits of a padded input back to the original image.

    Resize them to the input, crop the padding, and resize the rest to the original, each time bilinearly.

    Args:
        logits: float [K, h, w], over the whole input at any stride.
        placement: the placement from `fit_and_pad`.
        size: height and width of the network's input.

    Returns:
        float [K, placement.height, placement.width], still logits; may be a view of `logits`.
    """
    height, width = logits.shape[1:]
    shown = [height, width]
    for axis, (side, own, scaled) in enumerate(zip(size, shown, placement[2:], strict=True)):
        # Padding is not resized, but for the neighbour of the last row. Only a whole stride leaves all weights alike.
        if side % own == 0:
            shown[axis] = min(own, scaled * own // side + 2)
    rows, columns = shown
    resized = resize_maps(logits[:, :rows, :columns], (rows * size[0] // height, columns * size[1] // width))
    scaled = resized[:, : placement.scaled_height, : placement.scaled_width]
    return resize_maps(scaled, (placement.height, placement.width))


def undo_fit_in_chunks(
    mask_logits: Tensor,
    queries: Tensor,
    placement: Placement,
    size: tuple[int, int],
    max_bytes: int,
    pixel_bytes: int = 4,
) -> Iterator[Tensor]:
    """Apply `undo_fit` to a few masks at a time.

    Delete each chunk before the next one is asked for; otherwise two are held.

    Args:
        mask_logits: float [Q, h, w], any float type.
        queries: int64 [K], the masks wanted, in this order.
        placement, size: see `undo_fit`.
        max_bytes: the memory that a chunk may take; a chunk has at least one mask.
        pixel_bytes: the bytes that the caller holds per pixel of a mask at the original size, the logit included.

    Yields:
        float32 [k, placement.height, placement.width], k >= 1; the caller may overwrite it.
    """
    if mask_logits.device.type == "cpu":
        max_bytes = min(max_bytes, _CPU_BYTES)
    # At the input's size a mask takes its pixels twice: resized, and its crop made contiguous.
    mask_bytes = 8 * size[0] * size[1] + pixel_bytes * placement.height * placement.width
    for chunk in queries.split(max(1, max_bytes // mask_bytes)):
        yield undo_fit(mask_logits[chunk].float(), placement, size)


def window_starts(length: int, size: int) -> list[int]:
    """Starts of the windows of `size` pixels that cover `length` >= `size` pixels evenly.

    There are ceil(length / size) of them, the first at 0, the last at length - size. All in integers: the original's
    floating point truncates the last start at extreme lengths and leaves a column uncovered.
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


def merge_windows(score: Callable[[int], Tensor], placement: Placement, size: tuple[int, int]) -> Tensor:
    """Average the scores of windows where they overlap.

    Args:
        score: returns the scores of a window of `cut_windows`, float [C, size[0], size[1]], given its number. Called
            for one window after the other, so that only one window's scores are held.
        placement: the placement from `cut_windows`.
        size: height and width of a window.

    Returns:
        float [C, placement.scaled_height, placement.scaled_width].
    """
    total = None
    for number, (rows, columns) in enumerate(_windows(placement, size)):
        scores = score(number)
        if total is None:
            shape = (placement.scaled_height, placement.scaled_width)
            total, covered = scores.new_zeros(len(scores), *shape), scores.new_zeros(shape)
        total[:, rows, columns] += scores
        covered[rows, columns] += 1
        del scores
    return total.div_(covered)


def resize_maps(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize float [K, h, w] to [K, *size] bilinearly: corners not aligned, no antialias.

    A map's result does not depend on the others beside it. Maps of that size already are returned as they are.
    """
    if maps.shape[1:] == size:
        return maps
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
    """Rows and columns of each window in the scaled image."""
    return [
        (slice(top, top + size[0]), slice(left, left + size[1]))
        for top in window_starts(placement.scaled_height, size[0])
        for left in window_starts(placement.scaled_width, size[1])
    ]


def _resize(image: Image.Image | np.ndarray, size: tuple[int, int], rule: Callable) -> tuple[Tensor, Placement]:
    """Scale an image to `rule(height, width, size)` with PIL: uint8 [3, h, w], and its placement."""
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
