"""Tiles and mirrored views on the built-in pictures, by one panoptic checkpoint of `python train.py`.

python benchmarks/views.py RUN           scores of single pictures, of mosaics in tiles, and of both mirrored as well
python benchmarks/views.py RUN --large 20000     time, memory and objects of one large tiled TIFF
python benchmarks/views.py --write DIR           mosaics of the training pictures, in COCO's layout, to train RUN on
--drawings 2 in each                             pictures of 2 x 2 drawings each, whose objects are half as large
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

import common  # noqa: F401, sets up threads and the path
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from datasets.shapes.dataset import CATEGORIES, shapes
from eomt.classes import Classes
from eomt.inference.segmenter import Segmenter
from eomt.model.outputs import Logits
from eomt.postprocess.writers import ids_to_rgb
from eomt.targets import ImageTargets, targets_from_id_map
from eomt.tasks import task_of

SIDE = 96
CELLS = 5  # pictures along a side of a mosaic


Pictures = list[tuple[np.ndarray, ImageTargets]]


def pictures(kind: str, drawings: int = 1, split: str = "val") -> tuple[Pictures, Classes]:
    """The pictures of a kind with their ground truth, of the size of the network's input: `drawings` along a side."""
    reader, found, side = shapes(kind, split), [], SIDE // drawings
    for index in range(len(reader)):
        image, targets = reader.read(index)
        pixels = np.array(Image.fromarray(np.asarray(image)).resize((side, side), Image.Resampling.BILINEAR))
        ids = F.interpolate(targets.ids[None].float(), (side, side), mode="nearest-exact")[0].max(0).values
        found.append((pixels, targets_from_id_map(ids.numpy().astype(int), *_segments(targets))))
    if drawings > 1:
        found = mosaics(found, _stuff(kind, reader.classes), drawings, 0)
    return found, reader.classes


def _segments(targets: ImageTargets) -> tuple[list[int], list[int], list[bool]]:
    return list(range(1, len(targets.labels) + 1)), targets.labels.tolist(), targets.crowd.tolist()


def mosaics(singles: Pictures, stuff: set[int], cells: int, gap: int) -> Pictures:
    """Squares of `cells` x `cells` pictures, `gap` black pixels apart; stuff of a class is one segment of each."""
    side, found = len(singles[0][0]), []
    pitch = side + gap
    for start in range(0, len(singles) - cells**2 + 1, cells**2):
        ids = np.zeros((cells * pitch - gap,) * 2, dtype=int)
        pixels = np.zeros((*ids.shape, 3), dtype=np.uint8)
        labels: list[int] = []
        for k, (own, targets) in enumerate(singles[start : start + cells**2]):
            rows, columns = (slice(pitch * c, pitch * c + side) for c in divmod(k, cells))
            pixels[rows, columns] = own
            for number, label in enumerate(targets.labels.tolist(), 1):
                if label not in stuff or label not in labels:
                    labels.append(label)
                at = labels.index(label) + 1 if label in stuff else len(labels)
                ids[rows, columns][targets.ids[0].numpy() == number] = at
        found.append((pixels, targets_from_id_map(ids, range(1, len(labels) + 1), labels)))
    return found


class Things(torch.nn.Module):
    """A panoptic network as one of its first classes, the things; all else is no object."""

    def __init__(self, network: torch.nn.Module, count: int):
        super().__init__()
        self.network, self.num_classes = network, count
        self.image_size, self.backbone = network.image_size, network.backbone

    def forward(self, images: torch.Tensor) -> list:
        masks, classes = self.network(images)[-1].logits()
        certain = classes.float().softmax(-1)
        things = certain[..., : self.num_classes]
        output = Logits(masks, torch.cat((things, 1 - things.sum(-1, keepdim=True)), -1).clamp(min=1e-9).log())
        return [type("Output", (), {"logits": lambda self: output})()]


def score(segmenter: Segmenter, task, classes: Classes, data: Pictures) -> float:
    metric = task.metric(classes)
    results = segmenter.stream(pixels for pixels, _ in data)
    for number, (result, (_, targets)) in enumerate(zip(results, data, strict=True)):
        metric.update(result.prediction, targets, number)
    return float(metric.compute()[task.monitor])


def compare(run: str, drawings: int) -> None:
    for kind in ("panoptic", "instance", "semantic"):
        singles, classes = pictures(kind, drawings)
        sets = {"single": singles}
        # Average precision takes a hundred objects of an image.
        cells = 2 if kind == "instance" else CELLS
        for name, gap in (("mosaic", 0), ("mosaic with gaps", SIDE)):
            sets[name] = mosaics(singles, _stuff(kind, classes), cells, gap)
        for tta in (None, "flip"):
            for name, data in sets.items():
                loaded = Segmenter.load(run, "cpu")
                network = loaded.network if kind != "instance" else Things(loaded.network, len(classes))
                task = task_of(kind)
                segmenter = Segmenter(network, task, classes, "cpu", tile=name != "single", tta=tta)
                print(
                    f"{kind} {name} tta={tta}: {task.monitor} {score(segmenter, task, classes, data):.2f}", flush=True
                )


def _stuff(kind: str, classes: Classes) -> set[int]:
    return {k for k in range(len(classes)) if kind == "semantic" or (kind == "panoptic" and not classes.is_thing[k])}


def write(folder: Path, drawings: int) -> None:
    """Write mosaics without gaps as COCO panoptic data: the training pictures in random orders, and all others."""
    draw = np.random.default_rng(0)
    for split, orders in (("train", 4 * drawings**2), ("val", 1)):
        singles, classes = pictures("panoptic", drawings, split)
        images, annotations, ids = [], [], [row["id"] for row in CATEGORIES]
        for _ in range(orders):
            order = draw.permutation(len(singles)) if split == "train" else range(len(singles))
            for pixels, targets in mosaics([singles[k] for k in order], _stuff("panoptic", classes), CELLS, 0):
                # Odd and even, so that no image is of both sets.
                number, (height, width) = 2 * len(images) + (split == "train"), pixels.shape[:2]
                numbers, labels, _ = _segments(targets)
                for place, content in (("", pixels), ("annotations/panoptic_", ids_to_rgb(targets.ids[0].numpy()))):
                    path = folder / f"{place}{split}2017" / f"{number}.png"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(content).save(path)
                images.append({"id": number, "file_name": f"{number}.png", "height": height, "width": width})
                rows = [
                    {"id": k, "category_id": ids[label], "iscrowd": 0} for k, label in zip(numbers, labels, strict=True)
                ]
                annotations.append({"image_id": number, "file_name": f"{number}.png", "segments_info": rows})
        content = {"images": images, "annotations": annotations, "categories": CATEGORIES}
        (folder / "annotations" / f"panoptic_{split}2017.json").write_text(json.dumps(content))


def large(run: str, side: int, tile: bool | int) -> None:
    import rasterio

    singles, classes = pictures("panoptic")
    cell = np.concatenate([np.concatenate([p for p, _ in singles[k : k + 10]], 1) for k in range(0, 100, 10)])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "large.tif")
        options = {"width": side, "height": side, "count": 3, "dtype": "uint8", "tiled": True, "compress": "deflate"}
        with rasterio.open(path, "w", driver="GTiff", blockxsize=512, blockysize=512, **options) as file:
            for top in range(0, side, len(cell)):
                rows = min(len(cell), side - top)
                band = np.tile(cell[:rows], (1, -(-side // len(cell)), 1))[:, :side].transpose(2, 0, 1)
                file.write(band, window=((top, top + rows), (0, side)))
        segmenter = Segmenter.load(run, "cpu", tile=tile, max_pixels=side**2)
        before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
        tiles = segmenter._tiled.tiles((side, side), segmenter.network.image_size)
        result = segmenter(path)
        seconds, peak = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(f"{side} x {side}: {len(tiles)} tiles, {seconds:.0f} s, {len(result)} segments")
        print(f"peak {peak / 2**20:.2f} GiB, {before / 2**20:.2f} GiB before")
        starts = [{getattr(tile, name) for tile in tiles if getattr(tile, name)} for name in ("left", "top")]
        boxes = result.boxes[np.array(classes.is_thing)[result.labels]]
        across = np.zeros(len(boxes), dtype=bool)
        for axis, own in enumerate(starts):
            edges = np.sort(list(own))
            across |= np.searchsorted(edges, boxes[:, axis], "right") < np.searchsorted(
                edges, boxes[:, 2 + axis], "left"
            )
        print(f"objects: {len(boxes)}, of which {across.sum()} lie across the start of a tile")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", help="a run's folder or checkpoint")
    parser.add_argument("--write", type=Path, metavar="DIR", help="write mosaics to train on")
    parser.add_argument("--drawings", type=int, default=1, help="along a side of a picture")
    parser.add_argument("--large", type=int, help="the side of a TIFF in pixels")
    parser.add_argument("--tile", type=int, default=True, help="of that TIFF; default the network's input")
    given = parser.parse_args()
    if given.write:
        write(given.write, given.drawings)
    elif given.large:
        large(given.run, given.large, given.tile)
    else:
        compare(given.run, given.drawings)
