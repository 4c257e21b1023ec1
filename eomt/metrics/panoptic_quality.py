"""Panoptic quality (Kirillov et al., CVPR 2019, arXiv 1801.00868), counted as the official panopticapi counts."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from eomt.classes import Classes
from eomt.errors import InputError
from eomt.postprocess.types import Segmentation
from eomt.targets import ImageId, ImageTargets

# Sums of IoU are integers in units of 2^-42: their sum does not depend on the order of images and ranks, and no
# precision setting casts them, as `module.to(torch.bfloat16)` does to torchmetrics' floats. The error of a match is
# below 1.2e-13; a class may have two million matches.
IOU_UNIT = 2.0**-42


class PanopticQuality(Metric):
    """Panoptic, segmentation and recognition quality of a dataset.

    A predicted and a true segment match if they are of one class and their IoU exceeds 0.5, where the predicted
    segment's pixels in void do not count for the union. Crowd regions match nothing and are never missed. An unmatched
    prediction is no false positive if more than half of it lies in void and in the crowd region of its class (the last
    one listed, if there are several). Classes without a match, a false positive or a miss are left out of the means.

    Args:
        classes: the dataset's classes; things and stuff are also averaged separately.
    """

    sums: Tensor  # int64 [4, C]: IoU in units of IOU_UNIT, true positives, false positives, misses

    def __init__(self, classes: Classes):
        super().__init__()
        self.classes = classes
        self.add_state("sums", torch.zeros(4, len(classes), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, segmentation: Segmentation, targets: ImageTargets, image_id: ImageId | None = None) -> None:
        """Add one image.

        Args:
            segmentation: the prediction.
            targets: the ground truth at the same size: ids int16 [1, H, W] where 0 is void.
            image_id: not used; other metrics need it.

        Raises:
            InputError: if true segments overlap (more than one plane), or the sizes differ.
        """
        overlap = shared_pixels(segmentation, targets, "panoptic quality")
        parts = targets.labels, segmentation.labels, targets.crowd
        labels, found, crowd = (part.cpu().numpy() for part in parts)
        sums = _count_segments(overlap, labels, found, crowd, len(self.classes))
        self._image = torch.from_numpy(sums)
        self.sums += self._image.to(self.sums.device)

    def image_score(self) -> float:
        """The panoptic quality in percent of the image added last; NaN if it has no segment."""
        scores, seen = _class_scores(self._image)
        return float(scores[0, seen].mean())

    def compute(self) -> dict[str, Tensor]:
        """Means in percent, each a float64 scalar on the host.

        Returns:
            pq, sq and rq of all classes, and the same with `_things` and `_stuff`. NaN where no class of the group was
            seen.
        """
        scores, seen = _class_scores(self.sums)
        things = torch.tensor(self.classes.is_thing)
        groups = {"": seen, "_things": seen & things, "_stuff": seen & ~things}
        return {
            f"{name}{suffix}": scores[k, group].mean()
            for suffix, group in groups.items()
            for k, name in enumerate(("pq", "sq", "rq"))
        }

    def per_class(self) -> list[dict]:
        """The classes seen: id, name, isthing, pq, sq, rq (percent), tp, fp, fn. Every rank must call it."""
        with self.sync_context():
            scores, seen = _class_scores(self.sums)
            counts = self.sums.tolist()
        return [
            {
                "id": item.id,
                "name": item.name,
                "isthing": int(item.is_thing),
                **{name: float(scores[row, k]) for row, name in enumerate(("pq", "sq", "rq"))},
                **{name: counts[row][k] for row, name in enumerate(("tp", "fp", "fn"), start=1)},
            }
            for k, item in enumerate(self.classes)
            if seen[k]
        ]


def shared_pixels(segmentation: Segmentation, targets: ImageTargets, score: str) -> np.ndarray:
    """Count the pixels that each of T true and each of S predicted segments share.

    Args:
        segmentation, targets: one image's prediction and ground truth, at one size.
        score: the score's name, for messages.

    Returns:
        int64 [T + 1, S + 1], segments t and s at [t + 1, s + 1]; row 0 is void, column 0 is where nothing was
        predicted.

    Raises:
        InputError: if true segments overlap (more than one plane), or the sizes differ.
    """
    planes, *shape = targets.ids.shape
    if planes != 1:
        raise InputError(f"{score} needs true segments that do not overlap, found {planes} planes")
    if list(segmentation.ids.shape) != shape:
        raise InputError(
            f"the prediction is {list(segmentation.ids.shape)}, its ground truth {shape}: score them at one size"
        )
    # int16 holds the number of any image's segments, and is quickly copied to the host.
    true, predicted = (ids.to(torch.int16).cpu().numpy().ravel() for ids in (targets.ids, segmentation.ids))
    height, width = len(targets.labels) + 1, len(segmentation.labels) + 1
    code = true.astype(np.uint16 if height * width <= 2**16 else np.uint32)
    code *= width
    code += predicted.astype(code.dtype)
    # Segments are coherent, so runs of equal pairs are few: summing their lengths is several times faster than
    # counting every pixel.
    last = np.append(np.flatnonzero(code[1:] != code[:-1]), code.size - 1)
    counts = np.bincount(code[last], weights=np.diff(last, prepend=-1), minlength=height * width)
    return counts.astype(np.int64).reshape(height, width)


def _count_segments(
    overlap: np.ndarray, true_labels: np.ndarray, labels: np.ndarray, crowd: np.ndarray, num_classes: int
) -> np.ndarray:
    """Match the segments of one image, given `shared_pixels` of them, and count: int64 [4, C], as
    `PanopticQuality.sums`."""
    shared, void, area = overlap[1:, 1:], overlap[0, 1:], overlap[:, 1:].sum(0)
    union = overlap[1:].sum(1)[:, None] + (area - void) - shared
    one_class = (true_labels[:, None] == labels) & ~crowd[:, None]
    # 2 * shared > union is IoU > 0.5, without dividing by an empty union.
    true_match, match = np.nonzero(one_class & (2 * shared > union))

    missed = ~crowd
    missed[true_match] = False
    # A segment without pixels is no prediction.
    wrong = area > 0
    wrong[match] = False
    forgiven = void.copy()
    last_crowd = {true_labels[t]: t for t in np.flatnonzero(crowd)}
    for label, t in last_crowd.items():
        forgiven += np.where(labels == label, shared[t], 0)
    wrong &= 2 * forgiven <= area

    sums = np.zeros((4, num_classes), dtype=np.int64)
    iou = shared[true_match, match] / union[true_match, match]
    np.add.at(sums[0], labels[match], np.rint(iou / IOU_UNIT).astype(np.int64))
    sums[1] = np.bincount(labels[match], minlength=num_classes)
    sums[2] = np.bincount(labels[wrong], minlength=num_classes)
    sums[3] = np.bincount(true_labels[missed], minlength=num_classes)
    return sums


def _class_scores(sums: Tensor) -> tuple[Tensor, Tensor]:
    """PQ, SQ and RQ in percent, float64 [3, C], and the classes seen, bool [C]; both on the host."""
    iou, matched, wrong, missed = sums.cpu().double()
    weight = matched + (wrong + missed) / 2
    sq, rq = iou * IOU_UNIT / matched.clamp(min=1), matched / weight.clamp(min=0.5)
    return 100 * torch.stack([iou * IOU_UNIT / weight.clamp(min=0.5), sq, rq]), weight > 0
