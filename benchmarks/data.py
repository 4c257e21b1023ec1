"""Training images per second and core: the data path against bare decoding and against one mask per segment.

    python benchmarks/data.py ROOT [--task coco_panoptic|coco_instance|ade20k_semantic] [--seconds 10]

ROOT is a folder as the task's reader takes it. Rows:

- decode: JPEG, and PNG where the ground truth is one, to arrays, nothing else
- read: the same with targets, by the reader's `read`
- train: read and transform, by `TrainTransform`; what a worker does for a sample
- per mask: read, then torchvision v2 with one boolean mask per segment, the usual way

Each row runs in processes of its own, in turns with the others, and its processor time is measured. The last tables
stand in benchmarks/README.md.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import cv2
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

sys.path.insert(0, str(Path(__file__).parents[1]))

from datasets.ade20k import Ade20kSemantic
from datasets.coco_instance import CocoInstance
from datasets.coco_panoptic import CocoPanoptic
from datasets.decode import decode_id_map, decode_label_map, decode_rgb
from datasets.reader import Reader
from datasets.transforms import TrainTransform

TURNS = 5


class Case(NamedTuple):
    """A task's reader, its published transform, and how its files are decoded.

    Attributes:
        reader: opened with a root and a split.
        size: side of the training images.
        scale_range, color_jitter: of `TrainTransform`.
        files: the bytes of an image and of its ground truth, None where that is in the index.
        decode: of the ground truth.
    """

    reader: type
    size: int
    scale_range: tuple[float, float]
    color_jitter: bool
    files: Callable[[Reader, int], tuple[bytes, bytes | None]]
    decode: Callable | None


def coco_image(reader: CocoInstance | CocoPanoptic, index: int) -> bytes:
    return reader._file(reader._images, "image", index)[0]


def panoptic_files(reader: CocoPanoptic, index: int) -> tuple[bytes, bytes]:
    return coco_image(reader, index), reader._file(reader._masks, "mask", index)[0]


def label_map_files(reader: Ade20kSemantic, index: int) -> tuple[bytes, bytes]:
    files = reader._files
    return files._read(files._images, "image", index)[0], files.truth(0, index)[0]


CASES = {
    "coco_panoptic": Case(CocoPanoptic, 640, (0.1, 2.0), False, panoptic_files, decode_id_map),
    "coco_instance": Case(CocoInstance, 640, (0.1, 2.0), False, lambda r, k: (coco_image(r, k), None), None),
    "ade20k_semantic": Case(Ade20kSemantic, 512, (0.5, 2.0), True, label_map_files, decode_label_map),
}


def decode_row(readers: list[Reader], case: Case) -> Callable:
    """Decodes files that are in memory."""
    files = [case.files(reader, index) for reader, index in _places(readers)]

    def run(place: int, turn: int) -> None:
        image, truth = files[place]
        decode_rgb(image, "image")
        if truth is not None:
            case.decode(truth, "ground truth")

    return run


def read_row(readers: list[Reader], case: Case) -> Callable:
    images = _places(readers)
    return lambda place, turn: images[place][0].read(images[place][1])


def train_row(readers: list[Reader], case: Case) -> Callable:
    images = _places(readers)
    transform = TrainTransform((case.size, case.size), case.scale_range, case.color_jitter)
    return lambda place, turn: transform(*images[place][0].read(images[place][1]), (turn, place))


def per_mask_row(readers: list[Reader], case: Case) -> Callable:
    """The same augmentation by torchvision."""
    images, size = _places(readers), case.size
    jitter = v2.RandomPhotometricDistort(
        brightness=(1 - 32 / 255, 1 + 32 / 255), contrast=(0.5, 1.5), saturation=(0.5, 1.5), hue=(-0.05, 0.05)
    )
    steps = v2.Compose(
        [
            *([jitter] if case.color_jitter else []),
            v2.RandomHorizontalFlip(),
            v2.ScaleJitter((size, size), case.scale_range),
            v2.RandomCrop(size, pad_if_needed=True),
        ]
    )

    def run(place: int, turn: int) -> None:
        reader, index = images[place]
        image, targets = reader.read(index)
        masks = tv_tensors.Mask(targets.masks()[~targets.crowd])
        _, masks = steps(tv_tensors.Image(torch.from_numpy(image).permute(2, 0, 1)), masks)
        _ = masks[masks.flatten(1).any(1)]

    return run


def _places(readers: list[Reader]) -> list[tuple[Reader, int]]:
    """Those that training sees."""
    return [(reader, int(index)) for reader in readers for index in reader.has_targets().nonzero()[0]]


ROWS = {"decode": decode_row, "read": read_row, "train": train_row, "per mask": per_mask_row}


def images_per_second(name: str, task: str, root: str, seconds: float) -> float:
    """Of processor time, after a pass to warm up."""
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    case = CASES[task]
    readers = [case.reader(root, split) for split in ("train", "val")]
    row, count = ROWS[name](readers, case), len(_places(readers))
    turn, start = 0, 0.0
    while turn < 2 or time.process_time() - start < seconds:
        if turn == 1:
            start = time.process_time()
        for place in range(count):
            row(place, turn)
        turn += 1
    return (turn - 1) * count / (time.process_time() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root")
    parser.add_argument("--task", choices=CASES, default="coco_panoptic")
    parser.add_argument("--seconds", type=float, default=10, help="for each row")
    options = parser.parse_args()
    measure = partial(images_per_second, task=options.task, root=options.root, seconds=options.seconds / TURNS)
    with get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        turns = [pool.map(measure, ROWS, chunksize=1) for _ in range(TURNS)]
    rates = dict(zip(ROWS, map(statistics.median, zip(*turns, strict=True)), strict=True))
    print(f"{options.task:16}{'images/s':>10}{'of decode':>11}{'of per mask':>13}")
    for name, rate in rates.items():
        print(f"{name:16}{rate:10.1f}{rate / rates['decode']:10.0%} {rate / rates['per mask']:12.1f}x")


if __name__ == "__main__":
    main()
