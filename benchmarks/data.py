"""Training images per second and core: the data path against bare decoding and against one mask per segment.

    python benchmarks/data.py ROOT [--size 640] [--seconds 10]

ROOT is a folder as `CocoPanoptic` takes it. Rows:

- decode: JPEG and panoptic PNG to arrays, nothing else
- read: the same with targets, by `CocoPanoptic.read`
- train: read and transform, by `TrainTransform`; what a worker does for a sample
- per mask: read, then torchvision v2 with one boolean mask per segment, the usual way

Each row runs in processes of its own, in turns with the others, and its processor time is measured.

Last table (2 shared CPU cores, Pillow 13.0, torch 2.11, torchvision 0.26; 16 panoptic images of COCO):

                images/s  of decode  of per mask
    decode         173.3      100%          5.8x
    read           136.1       79%          4.5x
    train          132.0       76%          4.4x
    per mask        30.0       17%          1.0x
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import cv2
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

sys.path.insert(0, str(Path(__file__).parents[1]))

from datasets.coco_panoptic import CocoPanoptic
from datasets.decode import decode_id_map, decode_rgb
from datasets.transforms import TrainTransform
from datasets.zip_format import Member

TURNS = 5


def decode_row(readers: list[CocoPanoptic], size: int) -> Callable:
    """Decodes files that are in memory."""
    files = []
    for reader in readers:
        index = reader._index
        for k in range(len(reader)):
            image = reader._images.read(reader.name(k), Member(*index["image_member"][k].item()))
            files.append((image, reader._masks.read("", Member(*index["mask_member"][k].item()))))

    def run(place: int, turn: int) -> None:
        image, mask = files[place]
        decode_rgb(image, "image")
        decode_id_map(mask, "ground truth")

    return run


def read_row(readers: list[CocoPanoptic], size: int) -> Callable:
    images = _places(readers)
    return lambda place, turn: images[place][0].read(images[place][1])


def train_row(readers: list[CocoPanoptic], size: int) -> Callable:
    images, transform = _places(readers), TrainTransform((size, size))
    return lambda place, turn: transform(*images[place][0].read(images[place][1]), (turn, place))


def per_mask_row(readers: list[CocoPanoptic], size: int) -> Callable:
    """The same augmentation by torchvision."""
    images = _places(readers)
    steps = v2.Compose(
        [
            v2.RandomHorizontalFlip(),
            v2.ScaleJitter((size, size), (0.1, 2.0)),
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


def _places(readers: list[CocoPanoptic]) -> list[tuple[CocoPanoptic, int]]:
    return [(reader, index) for reader in readers for index in range(len(reader))]


ROWS = {"decode": decode_row, "read": read_row, "train": train_row, "per mask": per_mask_row}


def images_per_second(name: str, root: str, size: int, seconds: float) -> float:
    """Of processor time, after a pass to warm up."""
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    readers = [CocoPanoptic(root, split) for split in ("train", "val")]
    row, count = ROWS[name](readers, size), sum(map(len, readers))
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
    parser.add_argument("--size", type=int, default=640)
    parser.add_argument("--seconds", type=float, default=10, help="for each row")
    options = parser.parse_args()
    measure = partial(images_per_second, root=options.root, size=options.size, seconds=options.seconds / TURNS)
    with get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        turns = [pool.map(measure, ROWS, chunksize=1) for _ in range(TURNS)]
    rates = dict(zip(ROWS, map(statistics.median, zip(*turns, strict=True)), strict=True))
    print(f"{'':10}{'images/s':>10}{'of decode':>11}{'of per mask':>13}")
    for name, rate in rates.items():
        print(f"{name:10}{rate:10.1f}{rate / rates['decode']:10.0%} {rate / rates['per mask']:12.1f}x")


if __name__ == "__main__":
    main()
