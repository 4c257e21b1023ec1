"""COCO's compressed run lengths as arrays: work on masks that costs what their outlines are long.

A mask is read column by column, as runs of zeros and ones in turn that begin with zeros. The lengths, from the
fourth on as the difference to the length two before, stand in characters of 6 bits (code 48 + value): 5 of the number,
the lowest first, and one that says that more follow (pycocotools' `maskApi.c`, rleToString).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

_BITS, _MORE, _SIGN = 5, 0x20, 0x10
_MOST_CHARACTERS = 7  # of a length: 32 bits


def runs_of_rles(counts: Sequence[bytes], pixels: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The runs of ones of T masks.

    Args:
        counts: T compressed codes, the `counts` of COCO's run lengths.
        pixels: of each mask.

    Returns:
        Three int64 [R], mask after mask: first pixel, pixel after the last, and mask (0..T-1) of each run. Pixels
        are counted down the columns.

    Raises:
        ValueError: if a code is damaged, or its lengths do not add up to `pixels`.
    """
    lengths, ends = _lengths(counts)
    for start, end in pairwise(ends):
        for chain in (lengths[start + 1 : end : 2], lengths[start + 2 : end : 2]):
            np.cumsum(chain, out=chain)
    # All masks end at a multiple of `pixels`, so one sum over all of them gives each its own places.
    edges = np.cumsum(lengths)
    if (lengths < 0).any() or (edges[ends[1:] - 1] != pixels * np.arange(1, len(ends))).any():
        raise ValueError(f"its run lengths do not make up {pixels} pixels")
    owner = np.repeat(np.arange(len(counts)), np.diff(ends))
    ones = np.flatnonzero((np.arange(len(edges)) - ends[owner]) % 2)
    ones = ones[lengths[ones] > 0]
    owner = owner[ones]
    return edges[ones - 1] - pixels * owner, edges[ones] - pixels * owner, owner


def _lengths(counts: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """The numbers in the codes, differences still: int64 [N]; and where each mask's end, int64 [T + 1]."""
    codes = np.frombuffer(b"".join(counts), dtype=np.uint8)
    digits = codes.astype(np.int64) - 48
    ends = np.cumsum([0, *map(len, counts)])
    more = (digits & _MORE) > 0
    if ((digits < 0) | (digits >= 64)).any() or not np.diff(ends).all() or more[ends[1:] - 1].any():
        raise ValueError("its run lengths are no compressed code of COCO's")
    last = np.flatnonzero(~more)
    first = np.concatenate([[0], last + 1])[:-1]
    size = last + 1 - first
    if (size > _MOST_CHARACTERS).any():
        raise ValueError("its run lengths are too large")
    numbers = np.zeros(len(last), dtype=np.int64)
    for place in range(size.max(initial=0)):
        longer = np.flatnonzero(size > place)
        numbers[longer] += (digits[first[longer] + place] & ~_MORE) << _BITS * place
    numbers -= ((digits[last] & _SIGN) > 0) * (1 << _BITS * size)
    return numbers, np.searchsorted(last, ends)
