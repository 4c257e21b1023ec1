"""How fast is our AveragePrecision, and does it give the others' numbers?

    python benchmarks/average_precision.py                   # 500 images of 640 x 480, 100 predictions each
    python benchmarks/average_precision.py --images 5000

Compares with pycocotools and, when it can be imported, with hotcoco (Rust), with as many threads as there
are cores and with one, in a process of its own. Ours runs in one thread. Three times of each:

    scoring       the others' from the point where they have read and checked everything
    from memory   what validation waits for once the network has answered: the others turn the answers into
                  result rows, take those in and score; they have read the truth before
    with reading  from official JSON files of truth and results

Ours is timed from the network's answers and the dataset's own codes in memory, which stands for all three.
Rounds are interleaved. Below each, in the same way, the processor time of all threads, which says more on a
machine that has other work. The last table stands in benchmarks/README.md.
"""

import argparse
import contextlib
import importlib.util
import io
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from pycocotools import mask as coco_mask

sys.path.insert(0, str(Path(__file__).parents[1]))

from eomt.classes import Classes, SegmentClass
from eomt.metrics.average_precision import AveragePrecision
from eomt.postprocess.types import Instances
from eomt.targets import ImageTargets, targets_from_rles

HEIGHT, WIDTH = 480, 640
DISTINCT = 50  # images in memory, beyond the caches nearest to the core; more images go round them
CLASSES = Classes(tuple(SegmentClass(k + 1, f"class {k}", (0, 0, 0), True) for k in range(80)))


class Run(NamedTuple):
    """The twelve numbers; and seconds, each of the clock and of the processor."""

    stats: list[float]
    scoring: np.ndarray
    from_memory: np.ndarray
    with_reading: np.ndarray


def clock() -> np.ndarray:
    return np.array([time.perf_counter(), time.process_time()])


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


def synthetic_images(options: argparse.Namespace) -> list[tuple[Instances, ImageTargets]]:
    generator = np.random.default_rng(0)
    distinct = [synthetic_image(generator, options.masks, options.truths) for _ in range(min(options.images, DISTINCT))]
    return [distinct[k % DISTINCT] for k in range(options.images)]


def ours(images: list[tuple[Instances, ImageTargets]]) -> Run:
    start = clock()
    metric = AveragePrecision(CLASSES)
    for k, (instances, targets) in enumerate(images):
        metric.update(instances, targets, k)
    scores = [score.item() / 100 for score in metric.compute().values()]
    seconds = clock() - start
    return Run(scores, seconds, seconds, seconds)


def result_rows(images: list[tuple[Instances, ImageTargets]]) -> list[dict]:
    """What both others take in instead of a file."""
    return [
        {"image_id": k, "category_id": CLASSES.ids[label], "score": score, "segmentation": code}
        for k, (instances, _) in enumerate(images)
        for code, label, score in zip(instances.rles, instances.labels.tolist(), instances.scores.tolist(), strict=True)
    ]


def peer(library: str, truth: Path, results: Path, images: list[tuple[Instances, ImageTargets]]) -> Run:
    """pycocotools or hotcoco, whose classes have the same names."""
    if library == "hotcoco":
        from hotcoco import COCO, COCOeval
    else:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

    def score(true, found):
        start = clock()
        evaluation = COCOeval(true, found, "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        seconds = clock() - start
        evaluation.summarize()
        return list(evaluation.stats), seconds

    with contextlib.redirect_stdout(io.StringIO()):
        start = clock()
        true = COCO(str(truth))
        found = true.loadRes(str(results))
        reading = clock() - start
        stats, scoring = score(true, found)
        start = clock()
        found = true.loadRes(result_rows(images))
        taking = clock() - start
        again, scoring_again = score(true, found)
    assert again == stats
    return Run(stats, scoring, taking + scoring_again, reading + scoring)


def one_thread(options: argparse.Namespace) -> ProcessPoolExecutor:
    """A process where hotcoco has one thread, with the images in memory."""
    before = os.environ.get("RAYON_NUM_THREADS")
    os.environ["RAYON_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(1, context, initializer=_keep_images, initargs=(options,))
    pool.submit(os.getpid).result()
    del os.environ["RAYON_NUM_THREADS"]
    if before is not None:
        os.environ["RAYON_NUM_THREADS"] = before
    return pool


def _keep_images(options: argparse.Namespace) -> None:
    global kept
    kept = synthetic_images(options)


def _peer_of_kept(truth: Path, results: Path) -> Run:
    return peer("hotcoco", truth, results, kept)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--masks", type=int, default=100, help="predictions per image")
    parser.add_argument("--truths", type=int, default=20, help="true objects per image")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    images = synthetic_images(options)
    ours(images[:20])

    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        files = write_coco(Path(folder), images)
        sides = {"ours": lambda: ours(images), "pycocotools": lambda: peer("pycocotools", *files, images)}
        if importlib.util.find_spec("hotcoco"):
            pool = stack.enter_context(one_thread(options))
            sides["hotcoco"] = lambda: peer("hotcoco", *files, images)
            sides["hotcoco, one thread"] = lambda: pool.submit(_peer_of_kept, *files).result()
            sides["hotcoco"]()
            sides["hotcoco, one thread"]()
        else:
            print("hotcoco is not installed")
        runs = [{name: side() for name, side in sides.items()} for _ in range(options.rounds)]

    stats = runs[0]["ours"].stats
    print(
        f"{options.images} images, {options.masks} predictions and {options.truths} objects in each, AP "
        f"{100 * stats[0]:.4f}; ms per image, times ours\n"
        f"{'':<20} {'scoring':>17} {'from memory':>17} {'with reading':>17}   12 numbers differ by"
    )
    for name in sides:
        difference = np.abs(np.subtract(runs[0][name].stats, stats)).max()
        for kind, (head, tail) in enumerate([(name, f"   {difference:.1e}"), ("  processor", "")]):
            cells = []
            for column in Run._fields[1:]:
                theirs, own = (
                    statistics.median(getattr(r[side], column)[kind] for r in runs) for side in (name, "ours")
                )
                cells.append(f"{1e3 * theirs / options.images:9.3f} {theirs / own:7.2f}")
            print(f"{head:<20} {' '.join(cells)}{tail}")


if __name__ == "__main__":
    main()
