"""Geometry between images of any size and the network's input, and back from logits to the image.

Instance and panoptic segmentation fit the whole image into the input and pad it (`fit_and_pad`, undone by `undo_fit`;
`run_unpadded` leaves the padding out). Semantic segmentation lets the image cover the input and cuts it into windows
along the longer side (`cut_windows`, undone by `merge_windows`). Sizes are (height, width) throughout.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from eomt.errors import InputError
from eomt.model.outputs import Logits

MAX_WINDOWS = 32
"""Windows of an image: longer ones are seen at a lower resolution, or time and memory would have no bound."""

# Not cuDNN's, which PyTorch would choose first on some GPUs: it takes up to a second to prepare each new size.
_OTHERS = ("ERROR", "CUDNN_ATTENTION")
_FOR_MANY_SIZES = [backend for name, backend in SDPBackend.__members__.items() if name not in _OTHERS]
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


def _never(placement: Placement, size: tuple[int, int]) -> bool:
    return False


class Geometry(NamedTuple):
    """The way of an image into the network.

    Attributes:
        prepare: makes an image's inputs. Takes the image (PIL, or uint8 [h, w, 3]) and the input's size; returns the
            inputs, uint8 [N, 3, height, width], and the image's placement.
        view: makes the picture that the network saw. Takes the inputs, the placement and the input's size; returns
            uint8 [3, placement.scaled_height, placement.scaled_width].
        is_reduced: tells from the placement and the input's size whether the image is seen smaller than it should be.
    """

    prepare: Callable[[Image.Image | np.ndarray, tuple[int, int]], tuple[Tensor, Placement]]
    view: Callable[[Tensor, Placement, tuple[int, int]], Tensor]
    is_reduced: Callable[[Placement, tuple[int, int]], bool] = _never


def fit_size(height: int, width: int, size: tuple[int, int]) -> tuple[int, int]:
    """The largest size of the image's aspect ratio inside `size`.

    Sides are rounded half to even, as the original does; one that would round to 0, where the original fails, is 1.
    """
    factor = min(size[0] / height, size[1] / width)
    return min(max(round(height * factor), 1), size[0]), min(max(round(width * factor), 1), size[1])


def cover_size(height: int, width: int, size: tuple[int, int]) -> tuple[int, int]:
    """The smallest size of the image's aspect ratio that covers `size`, sides rounded half to even.

    An image that would take more than MAX_WINDOWS windows is scaled to so many: its shorter side, at least 1, is then
    smaller than `size`.
    """
    factor = max(size[0] / height, size[1] / width)
    least, most = size, (MAX_WINDOWS * size[0], MAX_WINDOWS * size[1])
    if height * factor > most[0] or width * factor > most[1]:
        factor, least = min(most[0] / height, most[1] / width), (1, 1)
    return max(round(height * factor), least[0]), max(round(width * factor), least[1])


def is_reduced(placement: Placement, size: tuple[int, int]) -> bool:
    """True if an image takes the most windows and yet does not cover them; see `cover_size`."""
    sides = (placement.scaled_height, size[0]), (placement.scaled_width, size[1])
    return any(own > side for own, side in sides) and any(own < side for own, side in sides)


def fit_and_pad(image: Image.Image | np.ndarray, size: tuple[int, int]) -> tuple[Tensor, Placement]:
    """Scale an image so that all of it fits `size`, and fill the right and the bottom with zeros.

    Args:
        image: a PIL image, or uint8 [h, w, 3].
        size: height and width of the network's input.

    Returns:
        uint8 [1, 3, height, width], and the placement that `undo_fit` needs.

    Raises:
        InputError: if an array is not uint8 [h, w, 3], or the image has no pixel.
    """
    scaled, placement = _resize(image, size, fit_size)
    # Not PyTorch's copy, for which each of the threads that read images would start others.
    padded = np.zeros((1, 3, *size), dtype=np.uint8)
    padded[0, :, : placement.scaled_height, : placement.scaled_width] = scaled.transpose(2, 0, 1)
    return torch.from_numpy(padded), placement


def undo_fit(logits: Tensor, placement: Placement, size: tuple[int, int]) -> Tensor:
    """Bring mask logits of a padded input back: resize to the input, crop the padding, resize to the original.

    Args:
        logits: float [K, h, w], over the whole input at any stride.
        placement, size: see `fit_and_pad`.

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
    """Apply `undo_fit` to a few masks at a time. Delete each chunk before the next one; otherwise two are held.

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


def run_unpadded(
    run: Callable[[Tensor, Tensor], Logits],
    inputs: Tensor,
    placements: Sequence[Placement],
    patch_size: int,
    at_once: int,
) -> Logits:
    """Run the network on padded inputs without the patches that only show padding, those of one size together.

    A 640x480 image in a square of 640 pixels has 1,200 patches of 1,600. The network was trained with padding, so its
    results change a little; an image that fills the square is segmented as before.

    Args:
        run: returns the network's last output. Takes inputs [n, 3, h, w], for which the position embedding must be
            cropped (see `Backbone`), and their indices in `inputs`, int64 [n].
        inputs: uint8 [N, 3, H, W], images at the top left, zeros elsewhere; or windows, which have no padding.
        placements: the placement of each input.
        patch_size: the network's patch size; sides are rounded up to its multiples.
        at_once: the most inputs that the network takes at a time.

    Returns:
        The output for the padded inputs; masks are continued into the padding by their last row and column.
    """
    height, width = inputs.shape[-2:]
    groups: dict[tuple[int, int], list[int]] = {}
    for index, placement in enumerate(placements):
        sides = zip((height, width), (placement.scaled_height, placement.scaled_width), strict=True)
        rows, columns = (min(side, -(-scaled // patch_size) * patch_size) for side, scaled in sides)
        groups.setdefault((rows, columns), []).append(index)
    outputs, order = [], []
    for (rows, columns), members in groups.items():
        for part in torch.tensor(members).split(at_once):
            order += part.tolist()
            images = torch.stack([inputs[index, :, :rows, :columns] for index in part.tolist()])
            with sdpa_kernel(_FOR_MANY_SIZES):
                masks, classes = run(images, part)
            below = masks.shape[2] * (height - rows) // rows
            beside = masks.shape[3] * (width - columns) // columns
            masks = F.pad(masks, (0, beside, 0, below), mode="replicate") if below or beside else masks
            outputs.append(Logits(masks, classes))
    # Otherwise the index's copy would wait for the network.
    back = torch.tensor(order).argsort().to(inputs.device, non_blocking=True)
    return Logits(*(torch.cat(parts)[back] for parts in zip(*outputs, strict=True)))


def window_starts(length: int, size: int) -> list[int]:
    """Starts of the windows of `size` pixels that cover `length` >= `size` pixels evenly.

    In integers: the original's floating point truncates the last start at extreme lengths and leaves a column bare.
    """
    count = math.ceil(length / size)
    return [j * (length - size) // max(count - 1, 1) for j in range(count)]


def cut_windows(image: Image.Image | np.ndarray, size: tuple[int, int]) -> tuple[Tensor, Placement]:
    """Scale an image so that it covers `size`, and cut it into windows along the side that is longer.

    Args:
        image: a PIL image, or uint8 [h, w, 3].
        size: height and width of a window.

    Returns:
        uint8 [N, 3, height, width], windows from left to right or from top to bottom, zeros where an image of extreme
        proportions does not cover them (see `cover_size`), and the placement that `merge_windows` needs.

    Raises:
        InputError: if an array is not uint8 [h, w, 3], or the image has no pixel.
    """
    scaled, placement = _resize(image, size, cover_size)
    height, width = (max(own, side) for own, side in zip(placement[2:], size, strict=True))
    scaled = F.pad(
        torch.from_numpy(scaled).permute(2, 0, 1),
        (0, width - placement.scaled_width, 0, height - placement.scaled_height),
    )
    return torch.stack([scaled[:, rows, columns] for rows, columns in windows_of(placement, size)]), placement


def merge_windows(score: Callable[[int], Tensor], placement: Placement, size: tuple[int, int]) -> Tensor:
    """Average the scores of windows where they overlap.

    Args:
        score: returns the scores of a window, float [C, size[0], size[1]], given its number. Called for one window
            after the other, so that only one window's scores are held.
        placement, size: see `cut_windows`.

    Returns:
        float [C, placement.scaled_height, placement.scaled_width].
    """
    total = covered = torch.empty(0)
    for number, (rows, columns) in enumerate(windows_of(placement, size)):
        scores = score(number)
        if number == 0:
            total = scores.new_zeros(len(scores), *placement[2:])
            covered = scores.new_zeros(placement[2:])
        part = total[:, rows, columns]
        part += scores[:, : part.shape[1], : part.shape[2]]
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
    return F.interpolate(maps[:, None], size, mode="bilinear", align_corners=False)[:, 0]


def outlines(mask: np.ndarray) -> list[np.ndarray]:
    """Trace the outlines of a mask along the edges of its pixels.

    Args:
        mask: bool [H, W].

    Returns:
        Rings int64 [N, 2] of x and y, without the first point again; outer ones clockwise as seen, holes the other way.
        Filled by the even-odd rule they are the mask, so that pixels that only touch at a corner are parted or joined.
    """
    padded = np.pad(mask, 1).astype(np.int8)
    above_left, above_right, left, right = padded[:-1, :-1], padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]
    # An outline turns where the four pixels around a point are not in pairs; two outlines do where two are opposite.
    count = above_left + above_right + left + right
    turns = (count % 2) + 2 * ((count == 2) & (above_left == right))
    ys, xs = np.nonzero(turns)
    ys, xs = (axis.repeat(turns[ys, xs]) for axis in (ys, xs))
    # From row to row and from column to column, edges lead from each second turn to the next one.
    beside, below = np.empty_like(xs), np.empty_like(xs)
    for partner, order in ((beside, np.lexsort((xs, ys))), (below, np.lexsort((ys, xs)))):
        partner[order] = order.reshape(-1, 2)[:, ::-1].ravel()
    beside_of, below_of = beside.tolist(), below.tolist()
    # The mask lies below a horizontal edge that leads to the right.
    starts = np.flatnonzero((xs[beside] > xs) & (right[ys, xs] == 1) & (above_right[ys, xs] == 0)).tolist()
    rings, seen = [], bytearray(len(xs))
    for start in starts:
        ring, point = [], start
        while not seen[point]:
            following = beside_of[point]
            seen[point] = seen[following] = 1
            ring += [point, following]
            point = below_of[following]
        if ring:
            rings.append(np.stack([xs[ring], ys[ring]], axis=1))
    return rings


def _view_one(inputs: Tensor, placement: Placement, size: tuple[int, int]) -> Tensor:
    return inputs[0, :, : placement.scaled_height, : placement.scaled_width]


def _view_windows(inputs: Tensor, placement: Placement, size: tuple[int, int]) -> Tensor:
    view = inputs.new_empty(3, placement.scaled_height, placement.scaled_width)
    for window, (rows, columns) in zip(inputs, windows_of(placement, size), strict=True):
        part = view[:, rows, columns]
        part.copy_(window[:, : part.shape[1], : part.shape[2]])
    return view


FIT_AND_PAD = Geometry(fit_and_pad, _view_one)
WINDOWS = Geometry(cut_windows, _view_windows, is_reduced)


def windows_of(placement: Placement, size: tuple[int, int]) -> list[tuple[slice, slice]]:
    """Rows and columns of each input in the scaled image, some perhaps beyond it: of windows, and of a fitted image."""
    return [
        (slice(top, top + size[0]), slice(left, left + size[1]))
        for top in window_starts(max(placement.scaled_height, size[0]), size[0])
        for left in window_starts(max(placement.scaled_width, size[1]), size[1])
    ]


def _resize(image: Image.Image | np.ndarray, size: tuple[int, int], rule: Callable) -> tuple[np.ndarray, Placement]:
    """Scale an image to `rule(height, width, size)` with PIL: uint8 [h, w, 3], and its placement."""
    shape = image.shape if isinstance(image, np.ndarray) else (image.height, image.width, 3)
    if len(shape) != 3 or shape[2] != 3 or 0 in shape or (isinstance(image, np.ndarray) and image.dtype != np.uint8):
        raise InputError(
            f"an image must be uint8 [height, width, 3] with at least one pixel, found {type(image).__name__} "
            f"{list(shape)} of {getattr(image, 'dtype', 'a PIL mode')}"
        )
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    height, width = rule(image.height, image.width, size)
    placement = Placement(image.height, image.width, height, width)
    image = image if image.mode == "RGB" else image.convert("RGB")  # which would copy it
    scaled = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.array(scaled), placement
