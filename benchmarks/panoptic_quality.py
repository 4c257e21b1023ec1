"""How fast is our PanopticQuality, and does it give the others' numbers?

    python benchmarks/panoptic_quality.py                   # 500 images of 640 x 480
    python benchmarks/panoptic_quality.py --images 5000

Compares with torchmetrics (the first images only: it takes more than a second for each) and, when it
can be imported, with hotcoco, which reads PNG files and is given two threads. Ours is timed from maps in
memory, as in validation, and from the same files, read with PIL by one thread. The pairs have void in
the truth but neither crowds nor void in the prediction, where torchmetrics counts by other rules.

Last table (2 CPU cores shared with other work, torch 2.11, torchmetrics 1.9, hotcoco 1.3; ms per image):

                           500 images   5,000 images
    ours, maps in memory        0.674          0.442
    torchmetrics             1584.164       2672.428    2,352 and 6,041 times ours; PQ within 6e-7
    ours, PNG files             6.718          6.702
    hotcoco, PNG files          1.010          1.985    1.5 and 4.5 times ours from memory; within 1e-13

Reading is what hotcoco does better: decoding two PNGs with PIL takes ten times as long as scoring them.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchmetrics.detection import PanopticQuality as TorchmetricsPanopticQuality

sys.path.insert(0, str(Path(__file__).parents[1]))

from eomt.classes import Classes, SegmentClass
from eomt.metrics.panoptic_quality import PanopticQuality
from eomt.postprocess.types import Segmentation
from eomt.targets import ImageTargets, targets_from_id_map

HEIGHT, WIDTH = 480, 640
DISTINCT = 250  # pairs in memory (450 MB, far beyond any cache); more images go round them
CLASSES = Classes(tuple(SegmentClass(k + 1, f"class {k}", (0, 0, 0), k < 80) for k in range(133)))


def synthetic_pair(generator: np.random.Generator) -> tuple[Segmentation, ImageTargets]:
    """About 20 curved regions; the prediction has shifted borders, some wrong classes, a few regions more."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    rows += 12 * np.sin(columns / 17)
    count = int(generator.integers(8, 30))
    centres = generator.random((count, 2), dtype=np.float32) * (HEIGHT, WIDTH)

    def nearest(points):
        distance = [(rows - y) ** 2 + (columns - x) ** 2 for y, x in points]
        return np.argmin(distance, axis=0) + 1

    truth = nearest(centres)
    extra = generator.random((3, 2), dtype=np.float32) * (HEIGHT, WIDTH)
    result = nearest(np.concatenate([centres + generator.normal(0, 15, centres.shape), extra]))
    # Stuff classes stand once in an image, as torchmetrics takes all of a stuff class for one segment.
    labels = np.where(
        generator.random(count + 3) < 0.5,
        generator.integers(0, 80, count + 3),
        80 + generator.permutation(53)[: count + 3],
    )
    true_labels = labels[:count].copy()
    wrong = generator.random(count + 3) < 0.15
    labels[wrong] = generator.integers(0, 80, wrong.sum())
    truth[(rows > 100) & (rows < 130)] = 0
    return as_prediction(result, labels), keep_present(truth, true_labels)


def keep_present(ids: np.ndarray, labels: np.ndarray) -> ImageTargets:
    present = np.setdiff1d(np.unique(ids), 0)
    return targets_from_id_map(ids, present, labels[present - 1])


def as_prediction(ids: np.ndarray, labels: np.ndarray) -> Segmentation:
    found = keep_present(ids, labels)
    return Segmentation(found.ids[0].int(), found.labels, torch.ones(len(found.labels)))


def category_and_instance(ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """torchmetrics' input: int64 [1, H, W, 2], category -1 for void."""
    category = torch.cat([torch.tensor([-1]), labels])[ids.long()]
    return torch.stack([category, ids.long()], dim=-1)[None]


def median_seconds(function, items) -> float:
    seconds = []
    for item in items:
        start = time.perf_counter()
        function(*item)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def write_coco(folder: Path, name: str, maps) -> Path:
    """Official panoptic files of (ids, labels) per image."""
    (folder / name).mkdir()
    annotations = []
    for k, (ids, labels) in enumerate(maps):
        rgb = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
        rgb[..., 0] = ids.numpy()
        Image.fromarray(rgb).save(folder / name / f"{k}.png")
        area = torch.bincount(ids.flatten().long(), minlength=len(labels) + 1)[1:]
        rows = [
            {"id": s + 1, "category_id": CLASSES.ids[label], "area": int(area[s]), "iscrowd": 0}
            for s, label in enumerate(labels.tolist())
        ]
        annotations.append({"image_id": k, "file_name": f"{k}.png", "segments_info": rows})
    document = {
        "images": [{"id": k, "height": HEIGHT, "width": WIDTH} for k in range(len(annotations))],
        "annotations": annotations,
        "categories": CLASSES.to_list(),
    }
    path = folder / f"{name}.json"
    path.write_text(json.dumps(document))
    return path


def score_files(truth: Path, prediction: Path) -> PanopticQuality:
    """Ours from files: read the PNGs with PIL, then count."""
    metric = PanopticQuality(CLASSES)
    rows = {row["image_id"]: row for row in json.loads(prediction.read_text())["annotations"]}
    for row in json.loads(truth.read_text())["annotations"]:
        maps = []
        for path, segments in ((truth, row), (prediction, rows[row["image_id"]])):
            rgb = np.array(Image.open(path.with_suffix("") / segments["file_name"]))
            ids = torch.from_numpy(rgb[..., 0].astype(np.int16))
            labels = torch.tensor([segment["category_id"] - 1 for segment in segments["segments_info"]])
            maps.append((ids, labels))
        (ids, labels), (result, result_labels) = maps
        none = torch.zeros(len(labels), dtype=torch.int64)
        metric.update(
            Segmentation(result, result_labels, torch.ones(len(result_labels))),
            ImageTargets(ids[None], labels, none, none.bool()),
        )
    return metric


def hotcoco_scores(truth: Path, prediction: Path) -> tuple[dict, float] | None:
    """hotcoco's results and its seconds with reading and decoding; None where it is not installed."""
    try:
        from hotcoco.panoptic import PanopticEval
    except ImportError:
        return None
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        evaluation = PanopticEval(truth, prediction)
        evaluation.evaluate()
        seconds.append(time.perf_counter() - start)
    return evaluation.results(), statistics.median(seconds)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--torchmetrics-images", type=int, default=20)
    options = parser.parse_args()
    torch.set_num_threads(1)
    generator = np.random.default_rng(0)
    distinct = [synthetic_pair(generator) for _ in range(min(options.images, DISTINCT))]
    pairs = [distinct[k % len(distinct)] for k in range(options.images)]

    metric = PanopticQuality(CLASSES)
    ours = median_seconds(metric.update, pairs)
    scores = metric.compute()
    lines = [f"ours, maps in memory      {1e3 * ours:8.3f} ms per image"]

    few = pairs[: options.torchmetrics_images]
    other = TorchmetricsPanopticQuality(
        things=set(range(80)), stuffs=set(range(80, 133)), allow_unknown_preds_category=True
    )
    converted = [(category_and_instance(p.ids, p.labels), category_and_instance(t.ids[0], t.labels)) for p, t in few]
    theirs = median_seconds(other.update, converted)
    subset = PanopticQuality(CLASSES)
    for pair in few:
        subset.update(*pair)
    difference = abs(100 * other.compute().item() - subset.compute()["pq"].item())
    lines.append(
        f"torchmetrics              {1e3 * theirs:8.3f} ms per image: {theirs / ours:.0f} times ours, "
        f"PQ differs by {difference:.1e}"
    )

    with tempfile.TemporaryDirectory() as folder:
        truth = write_coco(Path(folder), "truth", [(t.ids[0], t.labels) for _, t in pairs])
        prediction = write_coco(Path(folder), "prediction", [(p.ids, p.labels) for p, _ in pairs])
        found = hotcoco_scores(truth, prediction)
        start = time.perf_counter()
        from_files = score_files(truth, prediction)
        file_seconds = (time.perf_counter() - start) / options.images
    assert torch.equal(from_files.sums, metric.sums)
    lines.append(f"ours, PNG files           {1e3 * file_seconds:8.3f} ms per image")
    if found is None:
        lines.append("hotcoco                   is not installed")
    else:
        results, seconds = found
        each = seconds / options.images
        difference = max(
            abs(100 * results[group][name] - scores[name + suffix].item())
            for group, suffix in (("All", ""), ("Things", "_things"), ("Stuff", "_stuff"))
            for name in ("pq", "sq", "rq")
        )
        lines.append(
            f"hotcoco, PNG files        {1e3 * each:8.3f} ms per image: {each / ours:.1f} times ours from "
            f"memory, {each / file_seconds:.2f} times ours from files, scores differ by {difference:.1e}"
        )
    print(f"{options.images} images, PQ {scores['pq']:.4f}\n" + "\n".join(lines))


if __name__ == "__main__":
    main()
