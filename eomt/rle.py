"""Checks of COCO's compressed run lengths, before pycocotools reads them without looking at their end.

A mask is read column by column, as lengths of runs of zeros and ones in turn, zeros first. A length, from the fourth
on its difference to the length two before, stands in characters of 6 bits (code 48 + value): 5 of the number, the
lowest first, and one that says that more follow (pycocotools' `maskApi.c`, rleToString).
"""

from __future__ import annotations

import numpy as np

_BITS, _MORE, _SIGN = 5, 0x20, 0x10
_MOST_CHARACTERS = 7  # of a length: 32 bits


def check_rle(code: bytes, pixels: int) -> None:
    """Raise ValueError unless a code is whole and its lengths add up to `pixels`.

    Args:
        code: the `counts` of COCO's compressed run lengths.
        pixels: the number of pixels of the mask.
    """
    digits = np.frombuffer(code, dtype=np.uint8).astype(np.int64) - 48
    more = (digits & _MORE) > 0
    if not len(digits) or digits.min() < 0 or digits.max() >= 64 or more[-1]:
        raise ValueError("its run lengths are no compressed code of COCO's")
    last = np.flatnonzero(~more)
    first = np.concatenate([[0], last[:-1] + 1])
    size = last + 1 - first
    if size.max() > _MOST_CHARACTERS:
        raise ValueError("its run lengths are too large")
    position = np.arange(len(digits)) - np.repeat(first, size)
    lengths = np.add.reduceat((digits & ~_MORE) << _BITS * position, first)
    lengths -= ((digits[last] & _SIGN) > 0) * (1 << _BITS * size)
    for chain in (lengths[1::2], lengths[2::2]):
        np.cumsum(chain, out=chain)
    if lengths.min() < 0 or lengths.sum() != pixels:
        raise ValueError(f"its run lengths do not make up {pixels} pixels")
