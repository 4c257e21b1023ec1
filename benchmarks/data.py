"""Training images per second and core: the data path against bare decoding and against one mask per segment.

    python benchmarks/data.py ROOT [--task coco_panoptic|coco_instance|ade20k_semantic] [--images 64] [--rounds 9]
    python benchmarks/data.py ROOT --task ade20k_semantic --profile

ROOT is a folder as the task's reader takes it. Rows:

- decode: JPEG, and PNG where the ground truth is one, to arrays, from memory; nothing else: the limit
- read: the same with targets, by the reader's `read`
- train: read, and `TrainTransform`; what a worker does for a sample
- per mask: read, then torchvision v2 with one boolean mask per segment, the usual way

All rows run in one process and on one thread, in turns, each over the same images, after a round to warm up; processor
time counts. Printed are medians over the rounds of the rate and of each round's ratios, with the limit of those rounds.
With --profile only the row `train` runs, and what each function took of it is printed, in ms per image. The last tables
stand in benchmarks/README.md.
"""

import argparse
import cProfile
import pstats
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torchvision import tv_tensors
from torchvision.transforms import v2

sys.path.insert(0, str(Path(__file__).parents[1]))

from datasets.files.decode import decode_id_map, decode_label_map, decode_rgb
from datasets.loader import use_one_thread
from datasets.readers.ade20k import Ade20kSemantic
from datasets.readers.base import Reader
from datasets.readers.coco import CocoInstance, CocoPanoptic
from datasets.transforms import TrainTransform


class Case(NamedTuple):
    """A task's reader, its published transform, and how its files are decoded.

    Attributes:
        reader: opened with a root and a split.
        size: side of the training images.
        scale_range: see `TrainTransform`.
        distorted: by the augmentations of configs/common/photometric.yaml.
        files: the bytes of an image and of its ground truth, None where that is in the index.
        decode: of the ground truth.
    """

    reader: type
    size: int
    scale_range: tuple[float, float]
    distorted: bool
    files: Callable[[Reader, int], tuple[bytes, bytes | None]]
    decode: Callable | None


def coco_image(reader: CocoInstance | CocoPanoptic, index: int) -> bytes:
    return reader._images.read(index)[0]


def panoptic_files(reader: CocoPanoptic, index: int) -> tuple[bytes, bytes]:
    (mask,) = reader._index.rows("mask_of_image", index, index + 1)
    return coco_image(reader, index), reader._masks.read(mask)[0]


def label_map_files(reader: Ade20kSemantic, index: int) -> tuple[bytes, bytes]:
    files = reader._files
    return files._images.read(index)[0], files.truth(0, index)[0]


CASES = {
    "coco_panoptic": Case(CocoPanoptic, 640, (0.1, 2.0), False, panoptic_files, decode_id_map),
    "coco_instance": Case(CocoInstance, 640, (0.1, 2.0), False, lambda r, k: (coco_image(r, k), None), None),
    "ade20k_semantic": Case(Ade20kSemantic, 512, (0.5, 2.0), True, label_map_files, decode_label_map),
}


ImageKey = tuple[Reader, int]


def decode_row(images: list[ImageKey], case: Case) -> Callable:
    files = [case.files(*place) for place in images]

    def run(place: int, turn: int) -> None:
        image, truth = files[place]
        decode_rgb(image, "image")
        if truth is not None:
            case.decode(truth, "ground truth")

    return run


def read_row(images: list[ImageKey], case: Case) -> Callable:
    return lambda place, turn: images[place][0].read(images[place][1])


def photometric() -> list:
    """The published photometric distortion, as the recipes have it."""
    recipe = OmegaConf.load(Path(__file__).parents[1] / "configs" / "common" / "photometric.yaml")
    return instantiate(recipe.data.augmentations, _convert_="all")


def train_row(images: list[ImageKey], case: Case) -> Callable:
    augmentations = photometric() if case.distorted else ()
    transform = TrainTransform((case.size, case.size), case.scale_range, augmentations)
    return lambda place, turn: transform(*images[place][0].read(images[place][1]), (turn, place))


def per_mask_row(images: list[ImageKey], case: Case) -> Callable:
    """The same augmentation by torchvision."""
    size = case.size
    jitter = v2.RandomPhotometricDistort(
        brightness=(1 - 32 / 255, 1 + 32 / 255), contrast=(0.5, 1.5), saturation=(0.5, 1.5), hue=(-0.05, 0.05)
    )
    steps = v2.Compose(
        [
            *([jitter] if case.distorted else []),
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


ROWS = {
    "decode": decode_row,
    "read": read_row,
    "train": train_row,
    "per mask": per_mask_row,
}


def places(readers: list[Reader], count: int) -> list[ImageKey]:
    """`count` of those that training sees, spread over all of them."""
    seen = [(reader, int(index)) for reader in readers for index in reader.has_targets().nonzero()[0]]
    return [seen[k * len(seen) // count] for k in range(count)] if count < len(seen) else seen


def open_places(task: str, root: str, count: int) -> list[ImageKey]:
    return places([CASES[task].reader(root, split) for split in ("train", "val")], count)


def profile(task: str, root: str, count: int, rounds: int) -> dict[str, tuple[float, float]]:
    """Of a training sample, by function: ms of processor time in itself, and with all that it calls."""
    images = open_places(task, root, count)
    row = train_row(images, CASES[task])
    profiler = cProfile.Profile(time.process_time)
    for turn in range(rounds + 1):
        if turn:
            profiler.enable()
        for place in range(len(images)):
            row(place, turn)
        profiler.disable()
    per_image = 1e3 / (rounds * len(images))
    return {
        f"{Path(file).name} {name}" if line else name: (itself * per_image, total * per_image)
        for (file, line, name), (_, _, itself, total, _) in pstats.Stats(profiler).stats.items()
    }


def measure(task: str, root: str, count: int, rounds: int) -> dict[str, list[float]]:
    """Images per second of processor time, for each row in each round."""
    case = CASES[task]
    images = open_places(task, root, count)
    rows = {name: make(images, case) for name, make in ROWS.items()}
    rates: dict[str, list[float]] = {name: [] for name in rows}
    for turn in range(rounds + 1):
        for name, row in rows.items():
            start = time.process_time()
            for place in range(len(images)):
                row(place, turn)
            if turn:
                rates[name].append(len(images) / (time.process_time() - start))
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root")
    parser.add_argument("--task", choices=CASES, default="coco_panoptic")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--profile", action="store_true", help="only where the time of a training sample goes")
    options = parser.parse_args()
    # As the workers of a training run.
    use_one_thread(0)
    if options.profile:
        took = profile(options.task, options.root, options.images, options.rounds)
        print(f"{'ms per image':60}{'itself':>8}{'with what it calls':>20}")
        for name, (itself, total) in sorted(took.items(), key=lambda item: -item[1][0])[:20]:
            print(f"{name:60}{itself:8.2f}{total:20.2f}")
        return
    rates = measure(options.task, options.root, options.images, options.rounds)

    def ratio(name: str, other: str) -> float:
        return statistics.median(a / b for a, b in zip(rates[name], rates[other], strict=True))

    limit = statistics.median(rates["decode"])
    print(f"{options.task:16}{'images/s':>10}{'limit':>8}{'of limit':>10}{'of per mask':>13}")
    for name in rates:
        rate = statistics.median(rates[name])
        print(f"{name:16}{rate:10.1f}{limit:8.1f}{ratio(name, 'decode'):9.0%} {ratio(name, 'per mask'):12.1f}x")


if __name__ == "__main__":
    main()
