"""COCO's result formats as plain values: rows of objects and of panoptic segments, and segment ids as colours."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from eomt.classes import Classes
from eomt.postprocess.types import Segmentation


def object_rows(
    rles: Sequence[dict], labels: Sequence[int], scores: Sequence[float], classes: Classes, image_id: int | str
) -> list[dict]:
    """An image's S objects in COCO's result format, plain values fit for JSON.

    Args:
        rles: S masks as compressed run lengths, {"size": [H, W], "counts": bytes}.
        labels, scores: S classes and scores.
        classes: the dataset's classes; the rows name their ids.
        image_id: the dataset's id of the image.

    Returns:
        S rows of image_id, category_id, segmentation and score. No `bbox`: pycocotools' `loadRes` takes an object's
        area from its box where there is one, and so sorts it among small, medium and large ones.
    """
    return [
        {
            "image_id": image_id,
            "category_id": classes[label].id,
            "segmentation": {"size": list(code["size"]), "counts": code["counts"].decode("ascii")},
            "score": score,
        }
        for code, label, score in zip(rles, labels, scores, strict=True)
    ]


def panoptic_row(segmentation: Segmentation, classes: Classes, image_id: int | str, file_name: str) -> dict:
    """An image's segments in COCO's panoptic format, plain values fit for JSON.

    Args:
        segmentation: the segments, at the image's original size.
        classes: the dataset's classes; the row names their ids.
        image_id: the dataset's id of the image.
        file_name: the name of the PNG.

    Returns:
        image_id, file_name and segments_info: id, category_id, area and bbox (left, top, width, height in whole
        pixels) of each segment.
    """
    columns = segmentation.labels.tolist(), segmentation.areas.tolist(), segmentation.boxes().tolist()
    segments = [
        {"id": number, "category_id": classes[label].id, "area": area, "bbox": box}
        for number, (label, area, box) in enumerate(zip(*columns, strict=True), start=1)
    ]
    return {"image_id": image_id, "file_name": file_name, "segments_info": segments}


def ids_to_rgb(ids: np.ndarray) -> np.ndarray:
    """COCO's colours for segment ids 0..2^24-1: [H, W] to uint8 [H, W, 3], id = R + 256 G + 65536 B."""
    return np.ascontiguousarray(ids, dtype="<u4").view(np.uint8).reshape(*ids.shape, 4)[..., :3]
