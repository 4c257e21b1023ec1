"""Time and values of the metrics beside their peers: panoptic quality, average precision, mean IoU.

    python benchmarks/metrics.py                     # 200 images of 640 x 480
    python benchmarks/metrics.py --images 5000 --only ap

Synthetic predictions and ground truth are in memory, as in validation, and one thread counts. Peers: torchmetrics
`PanopticQuality` on the first images (it takes more than a second for each), pycocotools' `COCOeval` from result rows
on, torchmetrics `MulticlassJaccardIndex`. Times are milliseconds an image, medians of alternating rounds after a round
to warm up; the last column is the largest difference of the values in percentage points. Needs `eomt[train]`.
"""

from __future__ import annotations

import argparse
import contextlib
import io
from collections.abc import Callable

import numpy as np
import torch
from common import interleaved
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torchmetrics.classification import MulticlassJaccardIndex
from torchmetrics.detection import PanopticQuality as TorchmetricsPanopticQuality

from eomt.classes import Classes, SegmentClass
from eomt.metrics.average_precision import AveragePrecision
from eomt.metrics.mean_iou import MeanIoU
from eomt.metrics.panoptic_quality import PanopticQuality
from eomt.postprocess.types import Instances, Segmentation
from eomt.targets import ImageTargets, targets_from_id_map, targets_from_rles

HEIGHT, WIDTH, NUM_THINGS, NUM_STUFF = 480, 640, 80, 53
NUM_CLASSES = NUM_THINGS + NUM_STUFF
DISTINCT = 50  # images in memory; a longer list repeats them
CLASSES = Classes(tuple(SegmentClass(k + 1, f"class {k}", (0, 0, 0), k < NUM_THINGS) for k in range(NUM_CLASSES)))
Scene = tuple[Segmentation, ImageTargets]
Objects = tuple[Instances, ImageTargets]
# A function that counts, and its values in percent.
Side = Callable[[], list[float]]


def scene(generator: np.random.Generator) -> Scene:
    """About 20 curved regions; the prediction has moved borders, some wrong classes and three regions more."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    rows += 12 * np.sin(columns / 17)
    count = int(generator.integers(8, 30))
    centres = generator.random((count, 2)) * (HEIGHT, WIDTH)
    extra = generator.random((3, 2)) * (HEIGHT, WIDTH)

    def nearest(points: np.ndarray) -> np.ndarray:
        return np.argmin([(rows - y) ** 2 + (columns - x) ** 2 for y, x in points], axis=0) + 1

    # A stuff class stands once in an image: torchmetrics counts all its pixels as one segment.
    things = generator.integers(0, NUM_THINGS, count + 3)
    stuff = NUM_THINGS + generator.permutation(NUM_STUFF)[: count + 3]
    labels = np.where(generator.random(count + 3) < 0.5, things, stuff)
    truth = nearest(centres)
    truth[(rows > 100) & (rows < 130)] = 0
    targets = _targets(truth, labels)
    wrong = generator.random(count + 3) < 0.15
    found = _targets(
        nearest(np.concatenate([centres + generator.normal(0, 15, centres.shape), extra])),
        np.where(wrong, things, labels),
    )
    return Segmentation(found.ids[0].int(), found.labels, torch.ones(len(found.labels))), targets


def _targets(ids: np.ndarray, labels: np.ndarray) -> ImageTargets:
    present = np.setdiff1d(np.unique(ids), 0)
    return targets_from_id_map(ids, present, labels[present - 1])


def objects(generator: np.random.Generator, detections: int = 100, truths: int = 20) -> Objects:
    """Ellipses of COCO's sizes; six detections in ten are a moved object, of which some have a wrong class."""

    def ellipses(count: int) -> np.ndarray:
        radius = np.exp(generator.uniform(np.log(6), np.log(100), count))
        stretch = np.exp(generator.normal(0, 0.3, count))
        return np.column_stack([generator.random((count, 2)) * (HEIGHT, WIDTH), radius * stretch, radius / stretch])

    def encoded(shapes: np.ndarray) -> list[dict]:
        rows, columns = np.ogrid[:HEIGHT, :WIDTH]
        masks = [((rows - y) / a) ** 2 + ((columns - x) / b) ** 2 < 1 for y, x, a, b in shapes]
        return coco_mask.encode(np.asfortranarray(np.stack(masks, -1).astype(np.uint8)))

    true, true_labels = ellipses(truths), generator.integers(0, 8, truths)
    source = generator.integers(0, truths, detections)
    moved = true[source] + generator.normal(0, 0.08, (detections, 4)) * true[source][:, [2, 3, 2, 3]]
    copied = generator.random(detections) < 0.6
    shapes = np.where(copied[:, None], moved, ellipses(detections)).clip(min=[0, 0, 2, 2])
    right = copied & (generator.random(detections) < 0.8)
    labels = np.where(right, true_labels[source], generator.integers(0, NUM_THINGS, detections))
    rles = encoded(shapes)
    instances = Instances(
        (HEIGHT, WIDTH),
        rles,
        torch.from_numpy(labels),
        # Three decimals give ties, whose order counts.
        torch.from_numpy(generator.random(detections).round(3).astype(np.float32)),
        torch.from_numpy(coco_mask.area(rles).astype(np.int64)),
        torch.arange(detections),
    )
    return instances, targets_from_rles([code["counts"] for code in encoded(true)], (HEIGHT, WIDTH), true_labels)


def our_side(metric: Callable, images: list, names: tuple[str, ...]) -> Side:
    """Our metric over `images`; the values of `names`."""

    def run() -> list[float]:
        counted = metric(CLASSES)
        for k, (found, targets) in enumerate(images):
            counted.update(found, targets, k)
        values = counted.compute()
        return [float(values[name]) for name in names]

    return run


def torchmetrics_pq(images: list[Scene]) -> Side:
    """torchmetrics' panoptic quality of all classes."""

    def converted(ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """int64 [1, H, W, 2]: category (-1 for void) and segment."""
        return torch.stack([torch.cat([torch.tensor([-1]), labels])[ids.long()], ids.long()], -1)[None]

    pairs = [(converted(f.ids, f.labels), converted(t.ids[0], t.labels)) for f, t in images]
    things, stuff = set(range(NUM_THINGS)), set(range(NUM_THINGS, NUM_CLASSES))

    def run() -> list[float]:
        metric = TorchmetricsPanopticQuality(things=things, stuffs=stuff, allow_unknown_preds_category=True)
        for pair in pairs:
            metric.update(*pair)
        return [100 * float(metric.compute())]

    return run


def torchmetrics_miou(images: list[Scene]) -> Side:
    """torchmetrics' mean IoU from maps of classes."""
    pairs = [
        (f.labels[f.ids.long() - 1][None], torch.cat([torch.tensor([-1]), t.labels])[t.ids[0].long()][None])
        for f, t in images
    ]

    def run() -> list[float]:
        metric = MulticlassJaccardIndex(NUM_CLASSES, ignore_index=-1, validate_args=False)
        for pair in pairs:
            metric.update(*pair)
        return [100 * float(metric.compute())]

    return run


def pycocotools_ap(images: list[Objects]) -> Side:
    """pycocotools' twelve numbers; the ground truth has been read before, as in validation."""
    annotations = []
    for k, (_, targets) in enumerate(images):
        for counts, label in zip(targets.rles, targets.labels.tolist(), strict=True):
            code = {"size": [HEIGHT, WIDTH], "counts": counts}
            row = {"id": len(annotations) + 1, "image_id": k, "category_id": CLASSES.ids[label], "iscrowd": 0}
            box, area = coco_mask.toBbox(code).tolist(), float(coco_mask.area(code))
            annotations.append({**row, "segmentation": code, "area": area, "bbox": box})
    truth = COCO()
    truth.dataset = {
        "images": [{"id": k, "height": HEIGHT, "width": WIDTH} for k in range(len(images))],
        "annotations": annotations,
        "categories": CLASSES.to_list(),
    }
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()

    def run() -> list[float]:
        rows = [
            {"image_id": k, "category_id": CLASSES.ids[label], "score": score, "segmentation": code}
            for k, (found, _) in enumerate(images)
            for code, label, score in zip(found.rles, found.labels.tolist(), found.scores.tolist(), strict=True)
        ]
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation = COCOeval(truth, truth.loadRes(rows), "segm")
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        return [100 * value for value in evaluation.stats]

    return run


def main() -> None:
    """Print a row per metric."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--slow-images", type=int, default=10, help="for torchmetrics' panoptic quality")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=("pq", "ap", "miou"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    generator = np.random.default_rng(0)

    def repeated(make: Callable) -> list:
        distinct = [make(generator) for _ in range(min(options.images, DISTINCT))]
        return [distinct[k % DISTINCT] for k in range(options.images)]

    scenes = [] if options.only == "ap" else repeated(scene)
    found = repeated(objects) if options.only in (None, "ap") else []
    numbers = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
    numbers += ("ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large")
    cases = {
        "pq": (scenes[: options.slow_images], PanopticQuality, ("pq",), torchmetrics_pq),
        "ap": (found, AveragePrecision, numbers, pycocotools_ap),
        "miou": (scenes, MeanIoU, ("miou",), torchmetrics_miou),
    }
    print("| metric | images | value | ours, ms | peer, ms | ratio | difference |\n|---|---|---|---|---|---|---|")
    for name, (images, metric, names, peer) in cases.items():
        if options.only in (None, name):
            sides = {"ours": our_side(metric, images, names), "peer": peer(images)}
            ours, theirs = (side() for side in sides.values())
            took = interleaved(sides, torch.device("cpu"), options.rounds)
            a, b = (1e3 * took[side] / len(images) for side in sides)
            difference = max(abs(x - y) for x, y in zip(ours, theirs, strict=True))
            row = (name, len(images), f"{ours[0]:.3f}", f"{a:.2f}", f"{b:.1f}", f"{b / a:.1f}", f"{difference:.0e}")
            print("|", " | ".join(map(str, row)), "|", flush=True)


if __name__ == "__main__":
    main()
