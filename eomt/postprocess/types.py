"""What an image is answered with: a map of segments, or objects that may overlap."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor


class Segmentation(NamedTuple):
    """The segments of one image, none overlapping another. Segment s has the pixels where `ids == s + 1`.

    Attributes:
        ids: int32 [H, W]; 0 where no segment is.
        labels: int64 [S], the class of each segment, 0..C-1.
        scores: float32 [S], how sure the network is of each segment, 0..1. Panoptic: the class probability,
            of stuff merged from several queries that of the first. Semantic: the mean score of the class
            over its pixels.
    """

    ids: Tensor
    labels: Tensor
    scores: Tensor

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the image."""
        height, width = self.ids.shape
        return height, width

    def masks(self) -> Tensor:
        """bool [S, H, W]."""
        numbers = torch.arange(1, len(self.labels) + 1, device=self.ids.device, dtype=self.ids.dtype)
        return self.ids == numbers[:, None, None]

    def above(self, threshold: float) -> Segmentation:
        """The segments with a score of at least `threshold`, renumbered in their order."""
        keep = self.scores >= threshold
        lookup = torch.zeros(len(keep) + 1, dtype=self.ids.dtype, device=self.ids.device)
        lookup[1:][keep] = torch.arange(1, int(keep.sum()) + 1, dtype=self.ids.dtype, device=self.ids.device)
        return Segmentation(lookup[self.ids], self.labels[keep], self.scores[keep])

    def flat(self) -> Segmentation:
        """Itself: no segment hides another."""
        return self


class Instances(NamedTuple):
    """The objects of one image, which may overlap; on the host.

    Attributes:
        size: height and width of the image.
        rles: S masks as COCO's compressed run lengths, {"size": [H, W], "counts": bytes}: a hundred masks of
            a large image take kilobytes.
        labels: int64 [S], the class of each object, 0..C-1.
        scores: float32 [S], 0..1, class probability times mean mask probability inside the mask.
        areas: int64 [S], pixels of each mask; may be 0.
        queries: int64 [S], the query that each object is from. One query may give objects of several classes.
    """

    size: tuple[int, int]
    rles: list[dict]
    labels: Tensor
    scores: Tensor
    areas: Tensor
    queries: Tensor

    def masks(self) -> Tensor:
        """bool [S, H, W]."""
        if not self.rles:
            return torch.zeros(0, *self.size, dtype=torch.bool)
        return torch.from_numpy(coco_mask.decode(self.rles).transpose(2, 0, 1).astype(bool))

    def above(self, threshold: float) -> Instances:
        """The objects with a score of at least `threshold`, in their order."""
        keep = (self.scores >= threshold).nonzero()[:, 0]
        rles = [self.rles[k] for k in keep.tolist()]
        return Instances(self.size, rles, self.labels[keep], self.scores[keep], self.areas[keep], self.queries[keep])

    def flat(self) -> Segmentation:
        """As a map, for pictures: smaller objects hide larger ones, so that a tie shows on its wearer; of equal
        areas the higher score shows.

        Every object stays in the lists, also one that is hidden altogether.
        """
        # Column by column, as masks are decoded: a large image takes a third of the time.
        ids = np.zeros(self.size[::-1], dtype=np.int32).T
        order = np.lexsort((self.scores.numpy(), -self.areas.numpy()))
        for k in order.tolist():
            ids[coco_mask.decode(self.rles[k]).view(bool)] = k + 1
        return Segmentation(torch.from_numpy(np.ascontiguousarray(ids)), self.labels, self.scores)
