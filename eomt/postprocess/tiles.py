"""Large images in overlapping tiles: the tiles' segments joined where they overlap.

Two objects of neighbouring tiles are one if they have one class, and their masks inside the strip that both tiles show
an IoU of at least `SAME`; each has one partner at most. An object that its tile's edge cuts, most of it in the half of
a strip beside that edge, and that has no partner, is left out: the neighbour sees more of it.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from eomt.classes import Classes
from eomt.photo import MAX_PIXELS
from eomt.postprocess.runs import coco_mask, decode_box, encode_at, row_blocks
from eomt.postprocess.types import Instances, Segmentation

OVERLAP = 4
"""The overlap of two tiles is a tile's side over this."""

SAME = 0.5


class Tile(NamedTuple):
    """A tile's place in the image, and the strips that it shares with the tiles around it, in pixels."""

    top: int
    left: int
    bottom: int
    right: int
    above: int
    before: int
    below: int
    after: int

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of what it shows of the image."""
        return self.bottom - self.top, self.right - self.left


def tile_side(tile: bool | int, size: tuple[int, int]) -> tuple[int, int]:
    """Height and width of tiles: the network's input, or of its proportions with a longer side of `tile` pixels."""
    factor = 1 if tile is True else tile / max(size)
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def tiles_of(size: tuple[int, int], side: tuple[int, int]) -> list[Tile]:
    """The tiles of an image of `size`, row by row: those at the right and the bottom end with the image."""
    rows, columns = (_spans(*lengths) for lengths in zip(size, side, strict=True))
    return [
        Tile(top, left, bottom, right, above, before, below, after)
        for top, bottom, above, below in rows
        for left, right, before, after in columns
    ]


def _spans(length: int, side: int) -> list[tuple[int, int, int, int]]:
    overlap = side // OVERLAP
    starts = range(0, max(length - overlap, 1), side - overlap)
    return [
        (start, min(start + side, length), overlap * (start > 0), overlap * (start < starts[-1])) for start in starts
    ]


class _Objects:
    """The objects of all tiles, in their order, and which of them are one."""

    def __init__(self) -> None:
        self.labels: list[int] = []
        self.scores: list[float] = []
        self.areas: list[int] = []
        self.kept: list[bool] = []
        self._parents: list[int] = []
        # Numbers and run lengths of the objects in the strip that a later tile shares, by its corner.
        self._strips: dict[tuple[int, int, int], tuple[list[int], list[dict[str, Any]]]] = {}

    def add(self, tile: Tile, masks: Iterator[np.ndarray], labels: list[int], scores: list[float]) -> list[int]:
        """Add a tile's objects, masks bool of the tile's shape: their numbers."""
        height, width = tile.shape
        strips = {
            "above": np.s_[: tile.above],
            "before": np.s_[:, : tile.before],
            "below": np.s_[height - tile.below :],
            "after": np.s_[:, width - tile.after :],
        }
        outer = {  # the halves of the strips in which the neighbour sees more around than this tile
            "above": np.s_[: tile.above // 2],
            "before": np.s_[:, : tile.before // 2],
            "below": np.s_[height - tile.below // 2 :],
            "after": np.s_[:, width - tile.after // 2 :],
        }
        numbers: list[int] = []
        seen: dict[str, tuple[list[int], list[dict[str, Any]]]] = {name: ([], []) for name in strips}
        for mask, label, score in zip(masks, labels, scores, strict=True):
            number, area, cut = len(self.labels), int(np.count_nonzero(mask)), False
            for name, part in strips.items():
                within = mask[part]
                if within.any():
                    seen[name][0].append(number)
                    seen[name][1].append(coco_mask.encode(np.asfortranarray(within, dtype=np.uint8)))
                    edge = {"above": mask[0], "before": mask[:, 0], "below": mask[-1], "after": mask[:, -1]}[name]
                    cut |= bool(edge.any()) and 2 * int(np.count_nonzero(mask[outer[name]])) > area
            numbers.append(number)
            self.labels.append(label)
            self.scores.append(score)
            self.areas.append(area)
            self.kept.append(area > 0 and not cut)
            self._parents.append(number)
        # The strip to the right or below ends where the next tile's begins; its corner and direction name it.
        for name, key in (("above", (0, tile.top, tile.left)), ("before", (1, tile.top, tile.left))):
            if key in self._strips:
                self._join(self._strips.pop(key), seen[name])
        if tile.below:
            self._strips[0, tile.bottom - tile.below, tile.left] = seen["below"]
        if tile.after:
            self._strips[1, tile.top, tile.right - tile.after] = seen["after"]
        return numbers

    def parts(self) -> dict[int, list[int]]:
        """The numbers of each object's parts, by the first of them."""
        found: dict[int, list[int]] = defaultdict(list)
        for number in range(len(self.labels)):
            found[self._root(number)].append(number)
        return {root: own for root, own in found.items() if any(self.kept[number] for number in own)}

    def score(self, parts: list[int]) -> float:
        """The mean score of an object's parts, by their areas."""
        return float(np.average([self.scores[k] for k in parts], weights=[self.areas[k] for k in parts]))

    def _join(self, one: tuple[list[int], list[dict[str, Any]]], other: tuple[list[int], list[dict[str, Any]]]) -> None:
        if not (one[0] and other[0]):
            return
        iou = coco_mask.iou(one[1], other[1], [0] * len(other[1]))
        # Of equal masks the more certain ones: an object is often found again with a low score.
        scores = [np.array([self.scores[k] for k in numbers]) for numbers, _ in (one, other)]
        order = np.argsort(-(iou * np.outer(*scores)), axis=None, kind="stable")
        taken: set[int] = set()
        for i, j in zip(*np.unravel_index(order, iou.shape), strict=True):
            a, b = one[0][i], other[0][j]
            if iou[i, j] >= SAME and self.labels[a] == self.labels[b] and not taken & {a, b}:
                taken |= {a, b}
                self._parents[max(self._root(a), self._root(b))] = min(self._root(a), self._root(b))
                self.kept[a] = self.kept[b] = True

    def _root(self, number: int) -> int:
        while self._parents[number] != number:
            self._parents[number] = number = self._parents[self._parents[number]]
        return number


class InstanceMerger:
    """Merger of the objects of an image's tiles; they are held as run lengths."""

    def __init__(self, size: tuple[int, int]):
        self.size = size
        self._objects = _Objects()
        self._places: list[tuple[Tile, dict[str, Any], int]] = []

    def add(self, tile: Tile, found: Instances) -> None:
        """Add the next tile's objects, those of the padded tile."""
        found = found.select(found.areas.nonzero()[:, 0])
        height, width = tile.shape
        masks = (coco_mask.decode(rle).view(bool)[:height, :width] for rle in found.rles)
        self._objects.add(tile, masks, found.labels.tolist(), found.scores.tolist())
        self._places += [(tile, *part) for part in zip(found.rles, found.queries.tolist(), strict=True)]

    def result(self) -> Instances:
        """All objects by falling score. The query is that of an object's first part."""
        all_parts = list(self._objects.parts().values())
        scores = torch.tensor([self._objects.score(parts) for parts in all_parts])
        order = scores.sort(descending=True, stable=True).indices
        all_parts = [all_parts[k] for k in order.tolist()]
        joined = [self._joined(parts) for parts in all_parts]
        labels = [self._objects.labels[parts[0]] for parts in all_parts]
        queries = [self._places[parts[0]][2] for parts in all_parts]
        areas = torch.tensor([area for _, area in joined], dtype=torch.int64)
        own = torch.tensor(labels, dtype=torch.int64), scores[order], areas
        return Instances(self.size, [rle for rle, _ in joined], *own, torch.tensor(queries, dtype=torch.int64))

    def _joined(self, parts: list[int]) -> tuple[dict[str, Any], int]:
        """The union of an object's parts as run lengths, and its area."""
        pieces: list[tuple[np.ndarray, int, int]] = []
        for tile, rle, _ in (self._places[number] for number in parts):
            mask, top, left = decode_box(rle)
            mask = mask[: max(0, tile.shape[0] - top), : max(0, tile.shape[1] - left)]
            pieces.append((mask, tile.top + top, tile.left + left))
        top, left = min(top for _, top, _ in pieces), min(left for _, _, left in pieces)
        bottom, right = (max(p[1 + axis] + p[0].shape[axis] for p in pieces) for axis in (0, 1))
        whole = np.zeros((bottom - top, right - left), dtype=bool)
        for mask, own_top, own_left in pieces:
            whole[own_top - top :, own_left - left :][: mask.shape[0], : mask.shape[1]] |= mask
        return encode_at(whole, top, left, self.size), int(whole.sum())


class PanopticMerger:
    """Merger of the segments of an image's tiles: things by their overlap, stuff by its class.

    A pixel is of the tile in whose middle it lies nearer, or, where that has no segment there, of the other one.
    """

    def __init__(self, size: tuple[int, int], classes: Classes):
        self._ids = new_map(size)
        self._is_thing = torch.tensor(classes.is_thing)
        self._objects = _Objects()
        self._stuff: dict[int, tuple[float, int]] = {}

    def add(self, tile: Tile, found: Segmentation) -> None:
        """Add the next tile's segments, those of the padded tile."""
        height, width = tile.shape
        ids = found.ids[:height, :width].numpy(force=True)
        count = len(self._is_thing)
        labels, scores = found.labels.tolist(), found.scores.tolist()
        things = [s for s, label in enumerate(labels) if self._is_thing[label]]
        masks = (ids == s + 1 for s in things)
        numbers = self._objects.add(tile, masks, [labels[s] for s in things], [scores[s] for s in things])
        # Stuff has the numbers of its classes, objects those after them.
        lookup = np.array([0, *(label + 1 for label in labels)], dtype=np.int32)
        lookup[np.array(things, dtype=int) + 1] = np.array(numbers, dtype=np.int32) + count + 1
        areas = np.bincount(ids.ravel(), minlength=len(lookup))[1:].tolist()
        for s, (label, score, area) in enumerate(zip(labels, scores, areas, strict=True)):
            if s not in things:
                total, pixels = self._stuff.get(label, (0.0, 0))
                self._stuff[label] = total + score * area, pixels + area
        ids = lookup[ids]
        region = self._ids[tile.top : tile.bottom, tile.left : tile.right]
        own = np.zeros(ids.shape, dtype=bool)
        own[tile.above // 2 :, tile.before // 2 :] = True
        own[height - tile.below // 2 :], own[:, width - tile.after // 2 :] = tile.below == 0, tile.after == 0
        np.copyto(region, ids, where=(ids > 0) & (own | (region == 0)))

    def result(self) -> Segmentation:
        """All segments, stuff first."""
        first = len(self._is_thing) + 1
        numbers = np.zeros(first + len(self._objects.labels), dtype=np.int64)
        numbers[:first] = np.arange(first)
        all_parts = self._objects.parts()
        for root, parts in all_parts.items():
            numbers[np.array(parts) + first] = root + first
        areas = np.zeros(len(numbers), dtype=np.int64)
        for part in row_blocks(self._ids):
            areas += np.bincount(numbers[part].ravel(), minlength=len(numbers))
        present = np.flatnonzero(areas[1:]) + 1
        lookup = np.zeros(len(numbers), dtype=np.int32)
        lookup[present] = np.arange(1, len(present) + 1)
        lookup = lookup[numbers]
        for part in row_blocks(self._ids):
            part[:] = lookup[part]
        labels = [k - 1 if k < first else self._objects.labels[k - first] for k in present.tolist()]
        scores = [
            self._stuff[k - 1][0] / self._stuff[k - 1][1] if k < first else self._objects.score(all_parts[k - first])
            for k in present.tolist()
        ]
        return Segmentation(
            torch.from_numpy(self._ids), torch.tensor(labels, dtype=torch.int64), torch.tensor(scores).float()
        )


class SemanticMerger:
    """Mean of the scores of an image's tiles where they overlap.

    Those of the strips below a row of tiles are held: 4 bytes a class and pixel.
    """

    def __init__(self, size: tuple[int, int], num_classes: int):
        self._ids = new_map(size)
        self._totals, self._areas = np.zeros(num_classes), np.zeros(num_classes, dtype=np.int64)
        self._below = self._after = np.zeros(0, dtype=np.float32)

    def add(self, tile: Tile, found: Tensor) -> None:
        """Add the next tile's scores, float [C, h, w] of the padded tile; they are written to."""
        height, width = tile.shape
        scores = found.numpy(force=True)[:, :height, :width]
        # The strip before has what lies above in it already.
        if tile.before:
            scores[:, :, : tile.before] += self._after
        if tile.above:
            scores[:, : tile.above, tile.before :] += self._below[:, :, tile.left + tile.before : tile.right]
        self._after = scores[:, :, width - tile.after :].copy()
        if tile.below:
            if not (tile.left or tile.above):
                self._below = np.zeros((len(scores), tile.below, self._ids.shape[1]), dtype=np.float32)
            self._below[:, :, tile.left : tile.right] = scores[:, height - tile.below :]
        whole = scores[:, : height - tile.below, : width - tile.after]
        best, winner = whole.max(0), whole.argmax(0)
        best[: tile.above] /= 2
        best[:, : tile.before] /= 2
        region = self._ids[tile.top : tile.bottom - tile.below, tile.left : tile.right - tile.after]
        region[:] = winner + 1
        self._areas += np.bincount(winner.ravel(), minlength=len(self._areas))
        self._totals += np.bincount(winner.ravel(), best.ravel(), minlength=len(self._areas))

    def result(self) -> Segmentation:
        """The classes present, ascending; see `semantic_segmentation`."""
        labels = np.flatnonzero(self._areas)
        lookup = np.zeros(len(self._areas) + 1, dtype=np.int32)
        lookup[labels + 1] = np.arange(1, len(labels) + 1)
        for part in row_blocks(self._ids):
            part[:] = lookup[part]
        scores = (self._totals[labels] / self._areas[labels]).clip(max=1)
        return Segmentation(torch.from_numpy(self._ids), torch.from_numpy(labels), torch.from_numpy(scores).float())


def new_map(size: tuple[int, int]) -> np.ndarray:
    """A map int32 [H, W] of zeros; one of a very large image lies in a temporary file, not in memory."""
    if size[0] * size[1] <= MAX_PIXELS:
        return np.zeros(size, dtype=np.int32)
    return np.memmap(tempfile.TemporaryFile(), np.int32, "w+", shape=size)
