"""How fast is our AveragePrecision, and does it give the others' numbers?

    python benchmarks/average_precision.py                   # 500 images of 640 x 480, 100 predictions each
    python benchmarks/average_precision.py --images 5000

Compares with pycocotools and, when it can be imported, with hotcoco (Rust, as many threads as there are
cores). Ours is timed as in validation, from the network's answers and the true id maps in memory. The
others start from official JSON files; reading them is timed apart. Rounds are interleaved.

The last table stands in benchmarks/README.md.
"""

import argparse
import contextlib
import io
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

sys.path.insert(0, str(Path(__file__).parents[1]))

from eomt.classes import Classes, SegmentClass
from eomt.inference.segmentation import Instances
from eomt.metrics.average_precision import AveragePrecision
from eomt.targets import ImageTargets, targets_from_rles

HEIGHT, WIDTH = 480, 640
DISTINCT = 50  # images in memory, beyond the caches nearest to the core; more images go round them
CLASSES = Classes(tuple(SegmentClass(k + 1, f"class {k}", (0, 0, 0), True) for k in range(80)))


def blobs(ellipses: np.ndarray) -> np.ndarray:
    """Ellipses with wavy edges, rows of centre and radii (y, x): bool [N, H, W]."""
    rows, columns = np.ogrid[:HEIGHT, :WIDTH]
    waves = 0.1 * np.sin(columns / 7) * np.cos(rows / 5)
    return np.stack([((rows - y) / a) ** 2 + ((columns - x) / b) ** 2 + waves < 1 for y, x, a, b in ellipses])


def random_ellipses(generator: np.random.Generator, count: int) -> np.ndarray:
    """About as many small, medium and large ones as COCO has objects."""
    radius = np.exp(generator.uniform(np.log(6), np.log(100), count))
    stretch = np.exp(generator.normal(0, 0.3, count))
    places = generator.random((count, 2)) * (HEIGHT, WIDTH)
    return np.column_stack([places, radius * stretch, radius / stretch])


def synthetic_image(generator: np.random.Generator, masks: int, truths: int) -> tuple[Instances, ImageTargets]:
    """Objects of up to 8 classes; of the predictions, six in ten are one of them, moved, some of a wrong class."""
    objects = random_ellipses(generator, truths)
    true_labels = generator.choice(generator.choice(80, 8, replace=False), truths)
    source = generator.integers(0, truths, masks)
    moved = objects[source]
    moved = moved + generator.normal(0, 0.08, (masks, 4)) * moved[:, [2, 3, 2, 3]]
    copied = generator.random(masks) < 0.6
    shapes = np.where(copied[:, None], moved, random_ellipses(generator, masks)).clip(min=[0, 0, 2, 2])
    right = copied & (generator.random(masks) < 0.8)
    labels = np.where(right, true_labels[source], generator.integers(0, 80, masks))
    rles = coco_mask.encode(np.asfortranarray(blobs(shapes).transpose(1, 2, 0).astype(np.uint8)))
    # Three decimals: ties, whose order counts.
    scores = generator.random(masks).round(3).astype(np.float32)
    instances = Instances(
        (HEIGHT, WIDTH),
        rles,
        torch.from_numpy(labels),
        torch.from_numpy(scores),
        torch.from_numpy(coco_mask.area(rles).astype(np.int64)),
        torch.arange(masks),
    )
    # With codes at hand, as the reader of COCO gives them.
    counts = [code["counts"] for code in encode(blobs(objects))]
    return instances, targets_from_rles(counts, (HEIGHT, WIDTH), true_labels)


def write_coco(folder: Path, images: list[tuple[Instances, ImageTargets]]) -> tuple[Path, Path]:
    """Official files of the truth and of the results."""
    true_rows = [encode(targets.masks().numpy()) for _, targets in images[:DISTINCT]]
    annotations, results = [], []
    for k, (instances, targets) in enumerate(images):
        for code, label in zip(true_rows[k % DISTINCT], targets.labels.tolist(), strict=True):
            row = {"id": len(annotations) + 1, "image_id": k, "category_id": CLASSES.ids[label], "iscrowd": 0}
            box = coco_mask.toBbox(code).tolist()
            annotations.append({**row, "area": float(coco_mask.area(code)), "bbox": box, "segmentation": plain(code)})
        results += [
            {"image_id": k, "category_id": CLASSES.ids[label], "score": score, "segmentation": plain(code)}
            for code, label, score in zip(
                instances.rles, instances.labels.tolist(), instances.scores.tolist(), strict=True
            )
        ]
    document = {
        "images": [{"id": k, "height": HEIGHT, "width": WIDTH} for k in range(len(images))],
        "annotations": annotations,
        "categories": CLASSES.to_list(),
    }
    for name, value in (("truth", document), ("results", results)):
        (folder / f"{name}.json").write_text(json.dumps(value))
    return folder / "truth.json", folder / "results.json"


def encode(masks: np.ndarray) -> list[dict]:
    return coco_mask.encode(np.asfortranarray(masks.transpose(1, 2, 0).astype(np.uint8)))


def plain(code: dict) -> dict:
    return {"size": code["size"], "counts": code["counts"].decode()}


def ours(images: list[tuple[Instances, ImageTargets]]) -> tuple[list[float], float, float]:
    """The twelve numbers and seconds, none for reading."""
    start = time.perf_counter()
    metric = AveragePrecision(CLASSES)
    for k, (instances, targets) in enumerate(images):
        metric.update(instances, targets, k)
    scores = [score.item() / 100 for score in metric.compute().values()]
    return scores, 0.0, time.perf_counter() - start


def official(truth: Path, results: Path) -> tuple[list[float], float, float]:
    """pycocotools' twelve numbers, seconds for reading and for scoring."""
    with contextlib.redirect_stdout(io.StringIO()):
        start = time.perf_counter()
        true = COCO(truth)
        found = true.loadRes(str(results))
        middle = time.perf_counter()
        evaluation = COCOeval(true, found, "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return list(evaluation.stats), middle - start, time.perf_counter() - middle


def rust(truth: Path, results: Path) -> tuple[list[float], float, float]:
    """hotcoco's, as `official`."""
    import hotcoco

    start = time.perf_counter()
    true = hotcoco.COCO(str(truth))
    found = true.load_res(str(results))
    middle = time.perf_counter()
    evaluation = hotcoco.COCOeval(true, found, "segm")
    evaluation.evaluate()
    evaluation.accumulate()
    seconds = time.perf_counter() - middle
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.summarize()
    return list(evaluation.stats), middle - start, seconds


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--masks", type=int, default=100, help="predictions per image")
    parser.add_argument("--truths", type=int, default=20, help="true objects per image")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    generator = np.random.default_rng(0)
    distinct = [synthetic_image(generator, options.masks, options.truths) for _ in range(min(options.images, DISTINCT))]
    images = [distinct[k % DISTINCT] for k in range(options.images)]
    ours(images[:20])

    with tempfile.TemporaryDirectory() as folder:
        files = write_coco(Path(folder), images)
        sides = {"ours": lambda: ours(images), "pycocotools": lambda: official(*files)}
        try:
            rust(*files)
            sides["hotcoco"] = lambda: rust(*files)
        except ImportError:
            print("hotcoco is not installed")
        runs = [{name: side() for name, side in sides.items()} for _ in range(options.rounds)]

    own = statistics.median(run["ours"][2] for run in runs)
    planes = statistics.mean(len(targets.ids) for _, targets in images)
    print(
        f"{options.images} images, {options.masks} predictions and {options.truths} objects ({planes:.1f} planes) "
        f"in each, AP {100 * runs[0]['ours'][0][0]:.4f}"
    )
    for name in sides:
        reading = statistics.median(run[name][1] for run in runs)
        scoring = statistics.median(run[name][2] for run in runs)
        difference = np.abs(np.subtract(runs[0][name][0], runs[0]["ours"][0])).max()
        print(
            f"{name:<12} {1e3 * scoring / options.images:8.3f} ms per image, {scoring / own:6.2f} times ours; "
            f"with reading {1e3 * (scoring + reading) / options.images:8.3f} ms, {(scoring + reading) / own:6.2f} "
            f"times; the 12 numbers differ by up to {difference:.1e}"
        )


if __name__ == "__main__":
    main()
