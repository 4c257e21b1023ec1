"""An image of a validation with its true and predicted segments, for pictures, trackers and reports."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from eomt.classes import Classes
from eomt.postprocess.draw import DRAWN_SCORE, draw_segments, side_by_side
from eomt.postprocess.geometry import Geometry
from eomt.postprocess.types import Instances, Segmentation


class Shown(NamedTuple):
    """An image of a validation at the network's resolution, as the batch does not hold the original.

    Attributes:
        name: the image's name.
        image: uint8 [H, W, 3].
        truth: true segments: int64 [H, W], 0 where none is; the classes of the T segments, and which are crowds.
        found: predicted segments that are drawn: int64 [H, W], the classes and the scores of the S segments.
        objects: whether segments are objects, beside which there is background, and no void.
    """

    name: str
    image: np.ndarray
    truth: tuple[np.ndarray, np.ndarray, np.ndarray]
    found: tuple[np.ndarray, np.ndarray, np.ndarray]
    objects: bool

    def drawn(self, classes: Classes) -> tuple[np.ndarray, np.ndarray]:
        """Ground truth and prediction, see `draw_segments`."""
        truth = draw_segments(self.image, *self.truth[:2], classes)
        return truth, draw_segments(self.image, self.found[0], self.found[1], classes, self.found[2])

    def class_maps(self) -> tuple[np.ndarray, np.ndarray]:
        """The true and the predicted class of each pixel, int64 [H, W]; -1 for none."""
        true, found = (np.append(-1, labels)[ids] for ids, labels, _ in (self.truth, self.found))
        return true, found

    def row(self, classes: Classes) -> np.ndarray:
        """Image, ground truth and prediction side by side, uint8 [., ., 3]."""
        truth, found = self.drawn(classes)
        return side_by_side(self.image, [(f"{self.name}: ground truth", truth), ("prediction", found)])


def shown(batch: Any, index: int, prediction: Segmentation | Instances, geometry: Geometry) -> Shown:
    """Take one image out of a batch, a copy."""
    placement, targets = batch.placements[index], batch.targets[index]
    size = (placement.scaled_height, placement.scaled_width)
    start = sum(batch.counts[:index])
    inputs = batch.inputs[start : start + batch.counts[index]]
    image = geometry.view(inputs, placement, tuple(inputs.shape[-2:])).permute(1, 2, 0).cpu().numpy().copy()
    truth = targets.ids[0]
    for plane in targets.ids[1:]:
        truth = torch.where(plane > 0, plane, truth)
    objects = isinstance(prediction, Instances)
    drawn = prediction.above(DRAWN_SCORE).flat() if objects else prediction
    return Shown(
        batch.names[index],
        image,
        (_nearest(truth, size), targets.labels.numpy(), targets.crowd.numpy()),
        (_nearest(drawn.ids, size), drawn.labels.cpu().numpy(), drawn.scores.cpu().numpy()),
        objects,
    )


def _nearest(ids: Tensor, size: tuple[int, int]) -> np.ndarray:
    return (
        F.interpolate(ids[None, None].to(torch.float32), size, mode="nearest-exact")[0, 0].to(torch.int64).cpu().numpy()
    )
