"""Predictions for one image: a map of segments, or objects that may overlap."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from eomt.postprocess.runs import coco_mask, decode_box, encode_at, row_blocks


class Segmentation(NamedTuple):
    """The S segments of one image, none overlapping another. Segment s has the pixels where `ids == s + 1`.

    Attributes:
        ids: int32 [H, W]; 0 where no segment is.
        labels: int64 [S], the class of each segment, 0..C-1.
        scores: float32 [S], the confidence of each segment, 0..1. Panoptic: the class probability, of stuff merged
            from several queries that of the first. Semantic: the mean score of the class over its pixels.
    """

    ids: Tensor
    labels: Tensor
    scores: Tensor

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the image."""
        height, width = self.ids.shape
        return height, width

    @property
    def areas(self) -> Tensor:
        """int64 [S], the pixels of each segment; on the host."""
        areas = np.zeros(len(self.labels) + 1, dtype=np.int64)
        for part in row_blocks(self.ids.numpy(force=True)):
            areas += np.bincount(part.ravel(), minlength=len(areas))
        return torch.from_numpy(areas[1:])

    def masks(self) -> Tensor:
        """bool [S, H, W]."""
        numbers = torch.arange(1, len(self.labels) + 1, device=self.ids.device, dtype=self.ids.dtype)
        return self.ids == numbers[:, None, None]

    def boxes(self) -> np.ndarray:
        """int64 [S, 4]: left, top, width and height in pixels; 0 for a segment without pixels."""
        first = np.full((len(self.labels) + 1, 2), np.iinfo(np.int64).max)
        last, top = np.zeros_like(first), 0
        # By runs, of which there are few: a mask per segment of a large image would take hours.
        for part in row_blocks(self.ids.numpy(force=True)):
            rows, columns = np.nonzero(np.diff(part, axis=1, prepend=-1))
            ends = np.append(columns[1:], 0)
            ends[ends == 0] = part.shape[1]
            runs = part[rows, columns]
            np.minimum.at(first, runs, np.stack([columns, rows + top], axis=1))
            np.maximum.at(last, runs, np.stack([ends, rows + top + 1], axis=1))
            top += len(part)
        first = np.minimum(first, last)
        return np.concatenate([first, last - first], axis=1)[1:]

    def thinned(self, step: int) -> Segmentation:
        """Each `step`-th pixel of each `step`-th row."""
        return self if step == 1 else self._replace(ids=self.ids[::step, ::step].clone())

    def mask(self, segment: int) -> np.ndarray:
        """bool [H, W]: one of `masks`, without the memory of all; on the host."""
        return self.ids.numpy(force=True) == segment + 1

    def select(self, segments: Tensor) -> Segmentation:
        """Some segments, by int64 [N] of different numbers, renumbered in this order."""
        lookup = torch.zeros(len(self.labels) + 1, dtype=self.ids.dtype, device=self.ids.device)
        lookup[segments + 1] = torch.arange(1, len(segments) + 1, dtype=self.ids.dtype, device=self.ids.device)
        return Segmentation(lookup[self.ids], self.labels[segments], self.scores[segments])

    def above(self, threshold: float) -> Segmentation:
        """The segments with a score of at least `threshold`, renumbered in their order."""
        return self.select((self.scores >= threshold).nonzero()[:, 0])

    def flat(self) -> Segmentation:
        """The same: no segment hides another."""
        return self


class Instances(NamedTuple):
    """The S objects of one image by falling score, which may overlap; on the host.

    Attributes:
        size: height and width of the image.
        rles: S masks as COCO's compressed run lengths, {"size": [H, W], "counts": bytes}: a hundred masks of
            a large image take kilobytes.
        labels: int64 [S], the class of each object, 0..C-1.
        scores: float32 [S], 0..1, class probability times mean mask probability inside the mask.
        areas: int64 [S], the pixels of each mask; may be 0.
        queries: int64 [S], the query of each object. One query may give objects of several classes.
    """

    size: tuple[int, int]
    rles: list[dict[str, Any]]
    labels: Tensor
    scores: Tensor
    areas: Tensor
    queries: Tensor

    def masks(self) -> Tensor:
        """bool [S, H, W]."""
        if not self.rles:
            return torch.zeros(0, *self.size, dtype=torch.bool)
        return torch.from_numpy(coco_mask.decode(self.rles).transpose(2, 0, 1).astype(bool))

    def boxes(self) -> np.ndarray:
        """int64 [S, 4]: left, top, width and height in pixels; 0 for an empty mask."""
        # COCO gives whole pixels as floating point.
        return np.reshape(coco_mask.toBbox(self.rles) if self.rles else [], (-1, 4)).astype(np.int64)

    def mask(self, segment: int) -> np.ndarray:
        """bool [H, W]: one of `masks`, without the memory of all."""
        return coco_mask.decode(self.rles[segment]).astype(bool)

    def select(self, segments: Tensor) -> Instances:
        """Some objects, by int64 [N] of their numbers, in this order."""
        rles = [self.rles[k] for k in segments.tolist()]
        own = self.labels, self.scores, self.areas, self.queries
        return Instances(self.size, rles, *(values[segments] for values in own))

    def above(self, threshold: float) -> Instances:
        """The objects with a score of at least `threshold`, in their order."""
        return self.select((self.scores >= threshold).nonzero()[:, 0])

    def thinned(self, step: int) -> Instances:
        """Each `step`-th pixel of each `step`-th row."""
        if step == 1:
            return self
        size = -(-self.size[0] // step), -(-self.size[1] // step)
        rles: list[dict[str, Any]] = []
        for rle in self.rles:
            mask, top, left = decode_box(rle)
            mask = mask[-top % step :: step, -left % step :: step]
            rles.append(encode_at(mask, -(-top // step), -(-left // step), size))
        return self._replace(size=size, rles=rles)

    def flat(self) -> Segmentation:
        """Paint the objects into one map, for pictures: smaller objects over larger ones, so that a tie shows on its
        wearer, and of equal areas the higher score on top. Objects hidden altogether stay in the lists."""
        # Column by column, as masks are decoded: a large image takes a third of the time.
        ids = np.zeros(self.size[::-1], dtype=np.int32).T
        order = np.lexsort((self.scores.numpy(), -self.areas.numpy()))
        for k in order.tolist():
            ids[coco_mask.decode(self.rles[k]).view(bool)] = k + 1
        return Segmentation(torch.from_numpy(np.ascontiguousarray(ids)), self.labels, self.scores)
