"""COCO's average precision and recall of masks (Lin et al., ECCV 2014, arXiv 1405.0312).

Matching and counting are left to hotcoco's `COCOeval` (in the `train` extra), or to the official one of pycocotools
where hotcoco is not installed; both give the same numbers.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from eomt.classes import Classes
from eomt.errors import InputError
from eomt.postprocess.draw import DRAWN_SCORE
from eomt.postprocess.instance import encode_masks
from eomt.postprocess.runs import coco_mask
from eomt.postprocess.types import Instances
from eomt.targets import ImageId, ImageTargets

NAMES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
NAMES += ("ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large")
_CHUNK = 64  # masks that are expanded to pixels at a time


class _Image(NamedTuple):
    """Size (height, width), and rows in COCO's format of the objects and of the detections, without ids."""

    size: tuple[int, int]
    objects: list[dict]
    detections: list[dict]


class AveragePrecision:
    """COCO's twelve numbers for instance segmentation.

    An image that is seen twice, as samplers pad the last batch of some ranks, counts once.

    Args:
        classes: the dataset's classes.
        library: "hotcoco" or "pycocotools"; default hotcoco if it is installed.
    """

    def __init__(self, classes: Classes, library: str | None = None):
        self.classes = classes
        self.library = library or ("hotcoco" if importlib.util.find_spec("hotcoco") else "pycocotools")
        self.reset()

    def reset(self) -> None:
        """Forget all images."""
        self._images: dict[ImageId, _Image] = {}
        self._evaluated: tuple[np.ndarray, np.ndarray] | None = None

    def update(self, instances: Instances, targets: ImageTargets, image_id: ImageId) -> None:
        """Add one image.

        Args:
            instances: the prediction.
            targets: the ground truth at the same size. Without `areas`, an object's area is its number of pixels.
            image_id: the dataset's id of the image. Equal scores in different images are ranked by it.

        Raises:
            InputError: if the sizes differ.
        """
        size = targets.ids.shape[1], targets.ids.shape[2]
        if tuple(instances.size) != size:
            raise InputError(
                f"the prediction of image {image_id!r} is {list(instances.size)}, its ground truth "
                f"{list(size)}: score them at one size"
            )
        codes, areas = _codes(targets), targets.areas
        if areas is None:
            areas = torch.tensor([int(coco_mask.area({"size": list(size), "counts": code})) for code in codes])
        found = [rle["counts"] for rle in instances.rles]
        self._images[image_id] = _Image(
            size,
            _rows(size, codes, targets.labels, areas, "iscrowd", targets.crowd),
            _rows(size, found, instances.labels, instances.areas, "score", instances.scores),
        )
        self._evaluated, self._last = None, image_id

    def image_score(self) -> float:
        """The quality of the objects of the image added last, in percent: their IoU, each with the one of its class
        that it matches by more than 0.5, over the number of matched and half the number of other ones.

        Counted are detections that pictures show, from a score of 0.5. NaN if there is no object of either side.
        """
        _, objects, detections = self._images[self._last]
        found = [row for row in detections if row["score"] >= DRAWN_SCORE]
        crowd = np.array([row["iscrowd"] for row in objects], dtype=bool)
        shared = np.zeros((len(found), len(objects)))
        if found and objects:
            masks = ([row["segmentation"] for row in rows] for rows in (found, objects))
            one_class = np.equal.outer(*([row["category_id"] for row in rows] for rows in (found, objects)))
            shared = coco_mask.iou(*masks, crowd.astype(np.uint8)) * one_class
        matches = linear_sum_assignment(shared[:, ~crowd], maximize=True)
        iou = shared[:, ~crowd][matches]
        matched = iou[iou > 0.5]
        # What lies in a crowd is no error.
        wrong = np.ones(len(found), dtype=bool)
        wrong[matches[0][iou > 0.5]] = False
        wrong &= ~(shared[:, crowd] > 0.5).any(1)
        weight = len(matched) + (wrong.sum() + (~crowd).sum() - len(matched)) / 2
        return float(100 * matched.sum() / weight) if weight else float("nan")

    def compute(self) -> dict[str, Tensor]:
        """The twelve numbers of all ranks' images in percent, float64 scalars on the host. All ranks must call it.

        Returns:
            ap (mean over the IoU thresholds 0.5, 0.55, ... 0.95), ap50, ap75, ap_small, ap_medium, ap_large; ar1, ar10,
            ar100 (recall with that many detections per image and class), ar_small, ar_medium, ar_large. NaN where no
            class has an object.
        """
        return dict(zip(NAMES, torch.from_numpy(self._joined()[0]), strict=True))

    def per_class(self) -> list[dict[str, Any]]:
        """The classes that have an object: id, name, ap and ap50 (percent). Every rank must call it."""
        precision = self._joined()[1]
        seen = np.flatnonzero(~np.isnan(precision[0, 0]))
        return [
            {
                "id": self.classes[k].id,
                "name": self.classes[k].name,
                "ap": float(precision[:, :, k].mean()),
                "ap50": float(precision[0, :, k].mean()),
            }
            for k in seen.tolist()
        ]

    def _joined(self) -> tuple[np.ndarray, np.ndarray]:
        """The twelve numbers, and precision [T, R, C] of T IoU thresholds, R recalls and C classes, in percent; NaN
        where there is no object. Of all ranks' images."""
        if self._evaluated is None:
            ranks = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
            if ranks == 1:
                self._evaluated = self._evaluate(self._images)
            else:
                # One rank alone evaluates: a dataset's rows take up to a gigabyte.
                gathered: list[Any] | None = [None] * ranks if dist.get_rank() == 0 else None
                dist.gather_object(self._images, gathered)
                found = [self._evaluate({k: v for part in gathered for k, v in part.items()}) if gathered else None]
                dist.broadcast_object_list(found)
                self._evaluated = found[0]
        assert self._evaluated is not None
        return self._evaluated

    def _evaluate(self, images: dict[ImageId, _Image]) -> tuple[np.ndarray, np.ndarray]:
        if self.library == "hotcoco":
            from hotcoco import COCO, COCOeval
        else:
            from pycocotools.coco import COCO
            from pycocotools.cocoeval import COCOeval
        # The tools take whole numbers as ids, in the order of the images: numbers before texts.
        ordered = [images[key] for key in sorted(images, key=lambda key: (isinstance(key, str), key))]
        # Ids from 1: COCOeval takes 0 for "unmatched".
        document = {
            "images": [
                {"id": k, "height": image.size[0], "width": image.size[1]} for k, image in enumerate(ordered, start=1)
            ],
            "categories": [{"id": k, "name": item.name} for k, item in enumerate(self.classes, start=1)],
        }
        sides: list[Any] = []
        with contextlib.redirect_stdout(io.StringIO()):
            for side in ("objects", "detections"):
                rows = [(k, row) for k, image in enumerate(ordered, start=1) for row in getattr(image, side)]
                coco: Any = COCO()  # of either library
                coco.dataset = {
                    **document,
                    "annotations": [{**row, "id": n, "image_id": k} for n, (k, row) in enumerate(rows, start=1)],
                }
                coco.createIndex()
                sides.append(coco)
            evaluation: Any = COCOeval(sides[0], sides[1], "segm")
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        # All areas, at most 100 detections; -1 stands for nothing to score.
        tables = np.array(evaluation.stats), np.array(evaluation.eval["precision"])[..., 0, 2]
        scores, precision = (100 * np.where(table < 0, np.nan, table) for table in tables)
        return scores, precision


def _rows(
    size: tuple[int, int], codes: list[bytes], labels: Tensor, areas: Tensor, name: str, values: Tensor
) -> list[dict]:
    """Rows in COCO's format. Areas are given: COCOeval would take them from boxes."""
    columns = zip(codes, labels.tolist(), areas.tolist(), values.tolist(), strict=True)
    return [
        {
            "category_id": label + 1,
            "segmentation": {"size": list(size), "counts": code},
            "area": float(area),
            name: value,
        }
        for code, label, area, value in columns
    ]


def _codes(targets: ImageTargets) -> list[bytes]:
    """The masks as COCO's compressed run lengths: the dataset's own where the targets hold them."""
    if targets.rles is not None:
        return list(targets.rles)
    numbers = torch.arange(1, len(targets.labels) + 1, device=targets.ids.device, dtype=targets.ids.dtype)
    chunks = zip(targets.planes.split(_CHUNK), numbers.split(_CHUNK), strict=True)
    masks = (targets.ids[planes] == own[:, None, None] for planes, own in chunks)
    return [rle["counts"] for chunk in masks for rle in encode_masks(chunk)]
