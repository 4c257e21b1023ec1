"""Queries compete for the pixels of an image: which one wins each pixel, and how large each one's own mask is.

Two ways to one result, but for pixels whose probability lies at the threshold to the last bit, which a sigmoid may
round otherwise in another place of memory. On a GPU a chunk of masks at a time, with no query asked for its own. On a
CPU one mask after the other, each in the box outside which it cannot win.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import reduce

import numpy as np
import torch
from torch import Tensor

from eomt.postprocess.geometry import Placement, undo_fit, undo_fit_in_chunks

STRIPE_PIXELS = 2**16  # of an image, compared while they are in the processor's cache
_TILE = 8  # logits along a side
_REACH = 2  # logits beyond a tile that its pixels are made of
# Of the largest logit, and of a probability; many times what rounding does to either.
_RESIZE_ERROR, _SIGMOID_ERROR = 1e-5, 1e-6


def compete(
    mask_logits: Tensor,
    kept: Tensor,
    scores: Tensor,
    placement: Placement,
    size: tuple[int, int],
    mask_threshold: float,
    max_bytes: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Give each pixel to the query with the largest product of score and mask probability, of equals to the first.

    Args:
        mask_logits: float [Q, h, w], over the whole input at any stride.
        kept: int64 [K], the queries that take part, K >= 1.
        scores: float32 [K], 0..1, of these.
        placement: of `fit_and_pad`.
        size: height and width of the network's input.
        mask_threshold: a mask's own pixels have at least this probability.
        max_bytes: how much the masks that are upsampled at a time may take; at least one is.

    Returns:
        int32 [H, W], 2k where query k wins with a probability below the threshold, 2k + 1 where it wins with at
        least that; int64 [2K], how many pixels have each of these codes; and int64 [K], the pixels of each query's own
        mask. All on the device of the logits, which is not waited for.
    """
    if mask_logits.device.type == "cpu":
        return _compete_in_boxes(mask_logits, kept, scores, placement, size, mask_threshold)
    return _compete_stacked(mask_logits, kept, scores, placement, size, mask_threshold, max_bytes)


def _compete_stacked(
    mask_logits: Tensor,
    kept: Tensor,
    scores: Tensor,
    placement: Placement,
    size: tuple[int, int],
    mask_threshold: float,
    max_bytes: int,
) -> tuple[Tensor, Tensor, Tensor]:
    shape = (placement.height, placement.width)
    best = torch.full(shape, -1.0, device=mask_logits.device)
    code = torch.zeros(shape, dtype=torch.int32, device=mask_logits.device)
    own_area = torch.zeros(len(kept), dtype=torch.int64, device=mask_logits.device)
    first = 0
    # A pixel of a mask is held as a logit, a probability, a product, and whether it is inside.
    for logits in undo_fit_in_chunks(mask_logits, kept, placement, size, max_bytes, pixel_bytes=13):
        probability = logits.sigmoid_()
        inside = probability >= mask_threshold
        last = first + len(logits)
        own_area[first:last] = inside.sum((1, 2))
        highest, query = (probability * scores[first:last, None, None]).max(0)
        found = 2 * (query + first) + inside.gather(0, query[None])[0]
        better = highest > best
        code = torch.where(better, found.int(), code)
        best = torch.where(better, highest, best)
        first = last
        del logits, probability, inside  # views would keep their chunk while the next one is made
    # Asks the device for no largest value, as `bincount` does.
    counts = torch.histc(code.double(), bins=2 * len(kept), min=0, max=2 * len(kept))
    return code, counts.long(), own_area


def _compete_in_boxes(
    mask_logits: Tensor,
    kept: Tensor,
    scores: Tensor,
    placement: Placement,
    size: tuple[int, int],
    mask_threshold: float,
) -> tuple[Tensor, Tensor, Tensor]:
    best = np.full((placement.height, placement.width), -1, dtype=np.float32)
    code = np.zeros(best.shape, dtype=np.int32)
    own_area = torch.zeros(len(kept), dtype=torch.int64)
    buffer = torch.empty(1, *best.shape)
    boxes = _boxes(mask_logits[kept].float(), scores, placement, size, mask_threshold)
    # NumPy compares and counts several times faster than PyTorch on a CPU.
    for k, (query, score, box) in enumerate(zip(kept.tolist(), scores.tolist(), boxes, strict=True)):
        if box is None:
            continue
        mask = undo_fit(mask_logits[[query]].float(), placement, size, box, buffer).sigmoid_()[0].numpy()
        rows = max(1, STRIPE_PIXELS // mask.shape[1])
        for top in range(0, len(mask), rows):
            stripe = slice(top, top + rows)
            own_area[k] += _enter(mask[stripe], k, score, mask_threshold, best[box][stripe], code[box][stripe])
    counts = torch.from_numpy(np.bincount(code.ravel(), minlength=2 * len(kept)))
    return torch.from_numpy(code), counts, own_area


def _enter(
    probability: np.ndarray, k: int, score: float, mask_threshold: float, best: np.ndarray, code: np.ndarray
) -> int:
    """Let query k take the pixels where it is better.

    Returns:
        the pixels of its own mask.
    """
    inside = probability >= np.float32(mask_threshold)
    probability *= np.float32(score)
    take_better(probability, inside.astype(np.int32) + 2 * k, best, code)
    return int(np.count_nonzero(inside))


def take_better(value: np.ndarray, new: np.ndarray | int, best: np.ndarray, code: np.ndarray) -> None:
    """Where float32 `value` exceeds `best`, put it there, and `new` into int32 `code`; all of one shape."""
    # All bits of what changes where it is better, none elsewhere: quicker than to choose pixel by pixel.
    change = (value > best).astype(np.int32)
    np.negative(change, out=change)
    change &= code ^ new
    code ^= change
    np.maximum(value, best, out=best)


def _boxes(
    logits: Tensor, scores: Tensor, placement: Placement, size: tuple[int, int], mask_threshold: float
) -> list[tuple[slice, slice] | None]:
    """Rows and columns of the original image outside which a mask [K, h, w] can win no pixel and has none of its own.

    Bilinear resizing takes means: within a tile a mask lies between the smallest and the largest of the logits that
    its pixels are made of. A query cannot win there if its best is below another's worst.
    """
    used = (
        math.ceil(placement.scaled_height * logits.shape[1] / size[0]),
        math.ceil(placement.scaled_width * logits.shape[2] / size[1]),
    )
    high, low = _pool(logits, used, torch.maximum), _pool(logits, used, torch.minimum)
    error = _RESIZE_ERROR * torch.maximum(high.abs(), low.abs())
    high = (high + error).sigmoid_() + _SIGMOID_ERROR
    low = (low - error).sigmoid_()
    low -= _SIGMOID_ERROR
    weights = scores[:, None, None]
    present = (weights * high >= (weights * low).amax(0)) | (high >= mask_threshold)
    rows = _extents(present.any(2), _TILE * size[0] / logits.shape[1], placement.scaled_height, placement.height)
    columns = _extents(present.any(1), _TILE * size[1] / logits.shape[2], placement.scaled_width, placement.width)
    return [(rows[k], columns[k]) if seen else None for k, seen in enumerate(present.any(2).any(1).tolist())]


def _extents(present: Tensor, tile: float, scaled: int, original: int) -> list[slice]:
    """From the first to the last of the tiles bool [K, n], of `tile` scaled pixels each, in original pixels."""
    found = present.numpy()
    first, last = found.argmax(1), found.shape[1] - found[:, ::-1].argmax(1)
    pixels = tile * original / scaled
    starts = np.maximum(np.floor(first * pixels) - 1, 0).astype(int).tolist()
    stops = np.minimum(np.ceil(last * pixels) + 1, original).astype(int).tolist()
    return [slice(start, stop) for start, stop in zip(starts, stops, strict=True)]


def _pool(maps: Tensor, used: tuple[int, int], extreme: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The largest or smallest of the logits [K, n, m] that the pixels of each tile of the `used` part are made of."""
    for axis, length in enumerate(used, start=1):
        count = -(-length // _TILE)
        places = torch.arange(-_REACH, count * _TILE + _REACH).clamp(0, min(length + _REACH, maps.shape[axis]) - 1)
        places = places.unfold(0, _TILE + 2 * _REACH, _TILE).unbind(1)
        maps = reduce(extreme, (maps.index_select(axis, place) for place in places))
    return maps
