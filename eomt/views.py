"""Tasks that see an image in several views: in tiles, or mirrored as well."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from eomt.classes import Classes
from eomt.errors import InputError
from eomt.model.outputs import Logits
from eomt.postprocess.geometry import Geometry, Placement
from eomt.postprocess.tiles import (
    InstanceMerger,
    PanopticMerger,
    SemanticMerger,
    Tile,
    tile_side,
    tiles_of,
)
from eomt.postprocess.types import Instances, Segmentation
from eomt.tasks import Metric, Task

Part = Tensor | Instances | Segmentation
"""A tile's contribution to a merger: a semantic task's scores float [C, h, w], otherwise the tile's result."""


class _Around:
    """A task around another one; it has that one's kind, scores and files."""

    def __init__(self, task: Task):
        self.task: Any = task  # of semantic segmentation it has `scores`, too
        self.kind, self.monitor, self.writer = task.kind, task.monitor, task.writer
        self.score_threshold = getattr(task, "score_threshold", 0)

    def metric(self, classes: Classes) -> Metric:
        return self.task.metric(classes)

    def table(self, scores: Mapping[str, float]) -> str:
        return self.task.table(scores)


class Tiled(_Around):
    """A task that sees images in overlapping tiles and joins their results, see `eomt.postprocess.tiles`.

    An image that one tile shows is seen as without tiles.

    Args:
        task: the task; each tile is an image to it.
        tile: the longer side of a tile in pixels of the image, scaled to the network's input; True: the input's.
    """

    def __init__(self, task: Task, tile: bool | int):
        if task.kind not in ("semantic", "instance", "panoptic"):
            raise InputError(f"tile={tile} joins semantic, instance and panoptic results, not those of {task.kind}")
        super().__init__(task)
        self.tile = tile
        self.geometry = Geometry(self._prepare, self._view, self._is_reduced)

    def tiles(self, size: tuple[int, int], input_size: tuple[int, int]) -> list[Tile]:
        """The tiles of an image of `size`, given the size of the network's input."""
        return tiles_of(size, tile_side(self.tile, input_size))

    def padded(self, pixels: np.ndarray, input_size: tuple[int, int]) -> np.ndarray:
        """A tile's pixels uint8 [h, w, 3], filled up with zeros at the right and the bottom to a whole tile."""
        height, width = tile_side(self.tile, input_size)
        return np.pad(pixels, ((0, height - pixels.shape[0]), (0, width - pixels.shape[1]), (0, 0)))

    def merger(self, size: tuple[int, int], classes: Classes) -> SemanticMerger | InstanceMerger | PanopticMerger:
        """Make what joins the parts of the tiles of an image of `size`, in their order."""
        if self.kind == "semantic":
            return SemanticMerger(size, len(classes))
        return InstanceMerger(size) if self.kind == "instance" else PanopticMerger(size, classes)

    def part(self, output: Logits, placement: Placement, size: tuple[int, int], classes: Classes) -> Part:
        """The part of a tile for the merger; its output and placement are those of an image, see `Task.predict`."""
        if self.kind == "semantic":
            return self.task.scores(output, placement, size)
        return self.task.predict(output, placement, size, classes)

    def segment(
        self,
        run: Callable[[slice, list[Placement], list[int]], Logits],
        submit: Callable[[Callable[[], Part]], Future[Part]],
        counts: Sequence[int],
        placements: Sequence[Placement],
        size: tuple[int, int],
        classes: Classes,
        at_once: int,
    ) -> list[Segmentation | Instances]:
        """Segment images a few tiles at a time: what the network gives for all tiles of a large image takes gigabytes.

        Args:
            run: computes the logits for a range of the images' inputs; given, too, are the placement and the number of
                inputs of each tile.
            submit: computes a tile's part, see `Background.submit`.
            counts, placements, size, classes: see `eomt.tasks.predict_images`.
            at_once: tiles to a call of `run`.
        """
        shown: list[tuple[int, Tile | None, Placement, int]] = []
        for image, (placement, count) in enumerate(zip(placements, counts, strict=True)):
            tiles = self.tiles(placement[:2], size)
            if len(tiles) == 1:
                shown.append((image, None, placement, count))
            else:
                shown += [(image, tile, self._placement(size), count // len(tiles)) for tile in tiles]
        found: list[Any] = [self.merger(placement[:2], classes) for placement in placements]
        waiting: deque[tuple[int, Tile | None, Future[Part]]] = deque()

        def merge(most: int) -> None:
            """Join what is done, and wait until no more than `most` parts are left."""
            while waiting and (len(waiting) > most or waiting[0][2].done()):
                image, tile, part = waiting.popleft()
                if tile is None:
                    found[image] = part.result()
                else:
                    found[image].add(tile, part.result())

        first = 0
        for start in range(0, len(shown), at_once):
            some = shown[start : start + at_once]
            own_counts = [count for *_, count in some]
            chosen = slice(first, first := first + sum(own_counts))
            output = run(chosen, [own for _, _, own, _ in some], own_counts)
            parts = zip(*(logits.split(own_counts) for logits in output), strict=True)
            for (image, tile, own, _), logits in zip(some, parts, strict=True):
                make = self.task.predict if tile is None else self.part
                waiting.append((image, tile, submit(partial(make, Logits(*logits), own, size, classes))))
                merge(at_once)  # a semantic tile's scores may take more than its logits
        merge(0)
        whole = {image for image, tile, *_ in shown if tile is None}
        return [one if image in whole else one.result() for image, one in enumerate(found)]

    def _placement(self, size: tuple[int, int]) -> Placement:
        """Placement of each tile."""
        height, width = tile_side(self.tile, size)
        return self.task.geometry.prepare(Image.new("RGB", (width, height)), size)[1]

    def _is_reduced(self, placement: Placement, size: tuple[int, int]) -> bool:
        return len(self.tiles(placement[:2], size)) == 1 and self.task.geometry.is_reduced(placement, size)

    def _prepare(self, image: Image.Image | np.ndarray, size: tuple[int, int]) -> tuple[Tensor, Placement]:
        pixels = np.asarray(image)
        tiles = self.tiles(pixels.shape[:2], size)
        if len(tiles) == 1:
            return self.task.geometry.prepare(image, size)
        parts = (pixels[tile.top : tile.bottom, tile.left : tile.right] for tile in tiles)
        inputs = [self.task.geometry.prepare(self.padded(part, size), size)[0] for part in parts]
        shown = self._placement(size)
        scaled = (pixels.shape[k] * shown[2 + k] / shown[k] for k in (0, 1))
        return torch.cat(inputs), Placement(*pixels.shape[:2], *(max(1, round(side)) for side in scaled))

    def _view(self, inputs: Tensor, placement: Placement, size: tuple[int, int]) -> Tensor:
        tiles = self.tiles(placement[:2], size)
        if len(tiles) == 1:
            return self.task.geometry.view(inputs, placement, size)
        own, count = self._placement(size), len(inputs) // len(tiles)
        view = inputs.new_zeros(3, *placement[2:])
        for k, tile in enumerate(tiles):
            top, left = (round(start * own[2 + axis] / own[axis]) for axis, start in enumerate((tile.top, tile.left)))
            seen = self.task.geometry.view(inputs[k * count : (k + 1) * count], own, size)
            region = view[:, top : top + seen.shape[1], left : left + seen.shape[2]]
            region.copy_(seen[:, : region.shape[1], : region.shape[2]])
        return view


class Flipped(_Around):
    """A task that sees each input mirrored, too, and combines both outputs before its own thresholds.

    Semantic scores are averaged. Otherwise a query and its partner in the mirrored view, see `_partners`, become one,
    with the mean of their mask logits and the classes of that which is surer of an object; others of the mirrored view
    are left out.

    Args:
        task: the task.
        patch_size: the network's.
    """

    def __init__(self, task: Task, patch_size: int):
        super().__init__(task)
        self.patch_size = patch_size
        self.geometry = Geometry(self._prepare, self._view, task.geometry.is_reduced)

    def predict(
        self, output: Logits, placement: Placement, size: tuple[int, int], classes: Classes
    ) -> Segmentation | Instances:
        return self.task.predict(self._combined(output, placement, size), placement, size, classes)

    def scores(self, output: Logits, placement: Placement, size: tuple[int, int]) -> Tensor:
        """See `SemanticTask.scores`."""
        return self.task.scores(self._combined(output, placement, size), placement, size)

    def _prepare(self, image: Image.Image | np.ndarray, size: tuple[int, int]) -> tuple[Tensor, Placement]:
        inputs, placement = self.task.geometry.prepare(image, size)
        return torch.cat((inputs, inputs.flip(-1).roll(-self._shift(placement, size), -1))), placement

    def _view(self, inputs: Tensor, placement: Placement, size: tuple[int, int]) -> Tensor:
        return self.task.geometry.view(inputs[: len(inputs) // 2], placement, size)

    def _shift(self, placement: Placement, size: tuple[int, int]) -> int:
        """Pixels by which a mirrored input is rolled to the left, so that its padding is at the right again: those of
        whole patches, and so of whole pixels of the masks."""
        return max(0, size[1] - placement.scaled_width) // self.patch_size * self.patch_size

    def _combined(self, output: Logits, placement: Placement, size: tuple[int, int]) -> Logits:
        (masks, mirrored), (classes, others) = (logits.chunk(2) for logits in output)
        shift = self._shift(placement, size) * masks.shape[-1] // size[1]
        mirrored = mirrored.roll(shift, -1).flip(-1)
        probabilities = classes.float().softmax(-1), others.float().softmax(-1)
        if self.kind == "semantic":
            # A score is a sum over queries: those of both, with half the probability each, have the mean score.
            halves = torch.cat(probabilities, 1) / 2
            halves[..., -1] = 1 - halves[..., :-1].sum(-1)
            return Logits(torch.cat((masks, mirrored), 1), halves.log())
        one, other = probabilities[0][0], probabilities[1][0]
        partners, paired = _partners(masks[0], mirrored[0], one, other)
        mean = (masks[0] + mirrored[0, partners]) / 2
        joined = torch.where(paired[:, None, None], mean, masks[0])
        # Not the mean: of an object that one view shows worse it would fall below the thresholds.
        surer = paired & (other[partners, -1] < one[:, -1])
        certain = torch.where(surer[:, None], other[partners], one)
        return Logits(joined[None], certain.log()[None])


def with_mirrored(task: Task, patch_size: int, tta: str | None = None, unpadded: bool = False) -> Task:
    """A task that sees images mirrored as well, or the task itself.

    Args:
        task: the task.
        patch_size: the network's.
        tta: "flip", see `Flipped`; None for none.
        unpadded: whether the network runs without padding.

    Raises:
        InputError: if `tta` is none of these, or does not go with `unpadded`.
    """
    if tta not in (None, "flip"):
        raise InputError(f"tta={tta} is none of null, flip")
    if tta and unpadded:
        raise InputError("tta=flip mirrors the padding, too: it needs unpadded=false")
    flipped: Any = Flipped  # whose kind is an attribute of the object alone
    return flipped(task, patch_size) if tta else task


def _partners(masks: Tensor, others: Tensor, classes: Tensor, other_classes: Tensor) -> tuple[Tensor, Tensor]:
    """The query of the other view that is most alike in mask and classes, int64 [Q], and True, bool [Q], where each is
    the other's most alike one, with a mask IoU of at least 0.5."""
    one, other = ((part > 0).flatten(1).float() for part in (masks, others))
    both = one @ other.T
    iou = both / (one.sum(1)[:, None] + other.sum(1) - both).clamp(min=1)
    alike = iou * (1 - torch.cdist(classes, other_classes, p=1) / 2)
    partners = alike.argmax(1)
    numbers = torch.arange(len(alike), device=alike.device)
    return partners, (alike.argmax(0)[partners] == numbers) & (iou[numbers, partners] >= 0.5)
