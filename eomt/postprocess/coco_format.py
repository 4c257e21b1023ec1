"""COCO's result formats as plain values: rows of objects and of panoptic segments, and segment ids as colours."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pycocotools import mask as coco_mask

from eomt.classes import Classes
from eomt.postprocess.types import Segmentation


def object_rows(
    rles: Sequence[dict], labels: Sequence[int], scores: Sequence[float], classes: Classes, image_id: int | str
) -> list[dict]:
    """An image's S objects in COCO's result format, plain values fit for JSON.

    Args:
        rles: S masks as compressed run lengths, {"size": [H, W], "counts": bytes}.
        labels, scores: of each.
        classes: whose ids the rows name.
        image_id: the dataset's id of the image.

    Returns:
        S rows of image_id, category_id, segmentation, bbox (left, top, width, height: whole pixels) and score.
    """
    return [
        {
            "image_id": image_id,
            "category_id": classes[label].id,
            "segmentation": {"size": list(code["size"]), "counts": code["counts"].decode("ascii")},
            "bbox": box,
            "score": score,
        }
        for code, label, score, box in zip(rles, labels, scores, boxes_of(rles).tolist(), strict=True)
    ]


def panoptic_row(segmentation: Segmentation, classes: Classes, image_id: int | str, file_name: str) -> dict:
    """An image's segments in COCO's panoptic format, plain values fit for JSON.

    Args:
        segmentation: at the image's original size.
        classes: whose ids the row names.
        image_id: the dataset's id of the image.
        file_name: of the PNG.

    Returns:
        image_id, file_name and segments_info: id, category_id, area and bbox (left, top, width, height: whole pixels)
        of each segment.
    """
    labels = segmentation.labels.tolist()
    areas, boxes = areas_and_boxes(segmentation.ids.numpy(force=True), len(labels))
    segments = [
        {"id": s + 1, "category_id": classes[label].id, "area": areas[s], "bbox": boxes[s]}
        for s, label in enumerate(labels)
    ]
    return {"image_id": image_id, "file_name": file_name, "segments_info": segments}


def ids_to_rgb(ids: np.ndarray) -> np.ndarray:
    """COCO's colours for segment ids 0..2^24-1: [H, W] to uint8 [H, W, 3], id = R + 256 G + 65536 B."""
    return np.ascontiguousarray(ids, dtype="<u4").view(np.uint8).reshape(*ids.shape, 4)[..., :3]


def boxes_of(rles: Sequence[dict]) -> np.ndarray:
    """Boxes of S masks, compressed run lengths: int64 [S, 4], left, top, width, height; 0 of an empty mask."""
    # COCO gives whole pixels as floating point.
    return np.reshape(coco_mask.toBbox(rles) if rles else [], (-1, 4)).astype(np.int64)


def areas_and_boxes(ids: np.ndarray, count: int) -> tuple[list[int], list[list[int]]]:
    """Pixels and the box [x, y, width, height] of each segment 1..count of a map [H, W].

    A segment without pixels has area 0 and the box [0, 0, 0, 0].
    """
    height, width = ids.shape
    rows = np.bincount((ids + (count + 1) * np.arange(height)[:, None]).ravel(), minlength=height * (count + 1))
    columns = np.bincount((ids + (count + 1) * np.arange(width)).ravel(), minlength=width * (count + 1))
    areas = rows.reshape(height, -1).sum(0)[1:].tolist()
    sides = []
    for profile in (columns.reshape(width, -1)[:, 1:] > 0, rows.reshape(height, -1)[:, 1:] > 0):
        start, end = profile.argmax(0), len(profile) - profile[::-1].argmax(0)
        sides.append(np.where(profile.any(0), (start, end - start), 0))
    (left, wide), (top, high) = sides
    return areas, np.stack([left, top, wide, high], axis=1).tolist()
