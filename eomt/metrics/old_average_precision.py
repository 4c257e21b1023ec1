"""Average precision of objects (Lin et al., ECCV 2014), counted as the official pycocotools counts."""

from __future__ import annotations

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor
from torchmetrics import Metric

from eomt.classes import Classes
from eomt.errors import InputError
from eomt.metrics.coco_matching import Pairs
from eomt.metrics.coco_protocol import Detections, Truths, precision_and_recall
from eomt.metrics.run_lengths import Codes, RunLengths, run_lengths
from eomt.postprocess.types import Instances
from eomt.targets import ImageTargets


class OldAveragePrecision(Metric):
    """COCO's average precision and recall of masks.

    Each image's overlaps are measured at once; of the masks nothing is kept. What is kept is a row of
    integers per image, detection, true object and pair of the two with an IoU of at least 0.5, from which
    `compute` matches and counts. An image that was seen twice, as samplers pad the last batch of some
    ranks, counts once.

    Args:
        classes: the dataset's classes.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    # Floats are kept as the integers that have their bits: no precision setting casts integers, as
    # `module.to(torch.bfloat16)` does to torchmetrics' floats.
    images: list[Tensor]  # int64 [1, 4]: image id; number of detections, true objects and pairs
    detections: list[Tensor]  # int64 [N, 3]: label, score (float64), pixels
    truths: list[Tensor]  # int64 [G, 3]: label, area (float64), crowd
    pairs: list[Tensor]  # int64 [P, 3]: detection and true object, numbers within the image; IoU (float64)

    def __init__(self, classes: Classes):
        super().__init__()
        self.classes = classes
        for name, _ in _STATES:
            self.add_state(name, [], dist_reduce_fx="cat")

    def set_dtype(self, dst_type: str | torch.dtype) -> OldAveragePrecision:
        """Rows stay integers, whatever the precision."""
        return self

    def sync(self, *args, **kwargs) -> None:
        """Gather the ranks' rows."""
        # For a rank without an image torchmetrics would make up floats of another shape.
        for name, columns in _STATES:
            state = getattr(self, name)
            if isinstance(state, list) and not state:
                state.append(torch.zeros(0, columns, dtype=torch.int64, device=self.device))
        super().sync(*args, **kwargs)

    def update(self, instances: Instances, targets: ImageTargets, image_id: int) -> None:
        """Measure one image.

        Args:
            instances: the prediction.
            targets: the truth at the same size. Without `areas`, an object's area is its pixels.
            image_id: the dataset's id of the image; equal scores of different images count in its order.

        Raises:
            InputError: if the sizes differ.
        """
        if tuple(instances.size) != tuple(targets.ids.shape[1:]):
            raise InputError(
                f"the prediction of image {image_id} is {list(instances.size)}, its ground truth "
                f"{list(targets.ids.shape[1:])}: score them at one size"
            )
        labels, areas = instances.labels.numpy(force=True), instances.areas.numpy(force=True)
        true_labels, crowd = targets.labels.numpy(force=True), targets.crowd.numpy(force=True)
        runs = run_lengths(targets)
        true_pixels = runs.areas
        true_areas = true_pixels if targets.areas is None else targets.areas.numpy(force=True)
        detection, truth, ious = overlapping(instances.rles, labels, areas, runs, true_labels, true_pixels, crowd)
        rows = (
            ([image_id], [len(labels)], [len(true_labels)], [len(ious)]),
            (labels, _bits(instances.scores.numpy(force=True)), areas),
            (true_labels, _bits(true_areas), crowd),
            (detection, truth, _bits(ious)),
        )
        for (name, _), columns in zip(_STATES, rows, strict=True):
            # Joined and turned: a fifth of the time of np.stack.
            table = np.concatenate(columns, dtype=np.int64).reshape(len(columns), -1).T
            getattr(self, name).append(torch.from_numpy(table).to(self.device))

    def compute(self) -> dict[str, Tensor]:
        """COCO's twelve numbers in percent, each a float64 scalar on the host: ap (the mean over the IoU
        thresholds 0.5, 0.55, ... 0.95), ap50, ap75, ap_small, ap_medium, ap_large; ar1, ar10, ar100 (the
        recall with that many detections per image and class), ar_small, ar_medium, ar_large. NaN where
        no class has an object.
        """
        precision, recall = (torch.from_numpy(array) for array in self._curves())
        scores = {
            "ap": precision[:, 0],
            "ap50": precision[:, 0, 0],
            "ap75": precision[:, 0, 5],
            "ap_small": precision[:, 1],
            "ap_medium": precision[:, 2],
            "ap_large": precision[:, 3],
            "ar1": recall[:, 0, :, 0],
            "ar10": recall[:, 0, :, 1],
            "ar100": recall[:, 0, :, 2],
            "ar_small": recall[:, 1, :, 2],
            "ar_medium": recall[:, 2, :, 2],
            "ar_large": recall[:, 3, :, 2],
        }
        return {name: 100 * values.nanmean() for name, values in scores.items()}

    def per_class(self) -> list[dict]:
        """The table of the classes that have an object: id, name, ap and ap50 (percent).

        Joins the ranks' rows, so that every rank must call it.
        """
        with self.sync_context(dist_sync_fn=self.dist_sync_fn):
            precision, _ = self._curves()
        return [
            {
                "id": item.id,
                "name": item.name,
                "ap": float(100 * precision[k, 0].mean()),
                "ap50": float(100 * precision[k, 0, 0].mean()),
            }
            for k, item in enumerate(self.classes)
            if not np.isnan(precision[k, 0, 0, 0])
        ]

    def _curves(self) -> tuple[np.ndarray, np.ndarray]:
        """Precision and recall of all images, each once, in the order of their ids."""
        images, detections, truths, pairs = (self._rows(name, columns) for name, columns in _STATES)
        _, first = np.unique(images[:, 0], return_index=True)
        counts = images[:, 1:].T
        bounds = np.cumsum(counts, axis=1) - counts
        (own, place), (true, _), (pair, pair_image) = (
            _blocks(starts[first], number[first]) for starts, number in zip(bounds, counts, strict=True)
        )
        detections, truths, pairs = detections[own], truths[true], pairs[pair]
        offsets = np.cumsum(counts[:, first], axis=1) - counts[:, first]
        return precision_and_recall(
            Detections(place, detections[:, 0], _floats(detections[:, 1]), detections[:, 2]),
            Truths(truths[:, 0], _floats(truths[:, 1]), truths[:, 2].astype(bool)),
            Pairs(pairs[:, 0] + offsets[0, pair_image], pairs[:, 1] + offsets[1, pair_image], _floats(pairs[:, 2])),
            len(self.classes),
        )

    def _rows(self, name: str, columns: int) -> np.ndarray:
        """A state as one table on the host: a list of tables, or one where the ranks' have been joined."""
        state = getattr(self, name)
        tables = [state] if isinstance(state, Tensor) else state
        return torch.cat([torch.zeros(0, columns, dtype=torch.int64), *(table.cpu() for table in tables)]).numpy()


_STATES = (("images", 4), ("detections", 3), ("truths", 3), ("pairs", 3))


def overlapping(
    rles: list[dict],
    labels: np.ndarray,
    areas: np.ndarray,
    runs: RunLengths | Codes,
    true_labels: np.ndarray,
    true_areas: np.ndarray,
    crowd: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All pairs of a detection and a true object of its class with an IoU of at least 0.5.

    In a crowd, the IoU is the part of the detection that lies in it. Areas are pixels of the masks.

    Returns:
        The pairs' detections int64 [P], true objects int64 [P] and IoUs float64 [P].
    """
    # Masks can only overlap by half if neither is more than twice the other: few pairs must be measured.
    possible = (true_labels[:, None] == labels) & (2 * true_areas[:, None] >= areas)
    possible &= np.where(crowd, 0, true_areas)[:, None] <= 2 * areas
    detections, truths = possible.any(0).nonzero()[0], possible.any(1).nonzero()[0]
    ious = coco_mask.iou(
        _apart_by_class([rles[d] for d in detections.tolist()], labels[detections]),
        _apart_by_class(runs.encode(truths), true_labels[truths]),
        crowd[truths],
    )
    ious = np.reshape(ious, (len(detections), len(truths)))
    rows, columns = (ious >= 0.5).nonzero()
    return detections[rows], truths[columns], ious[rows, columns]


def _apart_by_class(codes: list[dict], labels: np.ndarray) -> list[dict]:
    """The same masks, as if each class had images of a width of its own.

    pycocotools measures no masks of different sizes (their IoU is -1), and a call costs it more than a class's
    overlaps: so one call measures an image, and of it only what is of one class.
    """
    return [
        {"size": (code["size"][0], code["size"][1] + label), "counts": code["counts"]}
        for code, label in zip(codes, labels.tolist(), strict=True)
    ]


def _blocks(starts: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The numbers starts[k], ... starts[k] + counts[k] - 1 of all k, and the k of each."""
    block = np.repeat(np.arange(len(starts)), counts)
    before = np.cumsum(counts) - counts
    return np.arange(len(block)) + (starts - before)[block], block


def _bits(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float64).view(np.int64)


def _floats(bits: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(bits).view(np.float64)
