"""Training images per second and core: the data path beside bare decoding and one mask per segment.

    python benchmarks/data.py ROOT --task coco_panoptic
    python benchmarks/data.py ROOT --task ade20k_semantic --profile

ROOT is a folder as the task's reader takes it; the task's configuration gives reader, size and augmentation. Rows:

- decode: JPEG, and PNG where the ground truth is one, to arrays, from memory: the limit
- read: images with targets by the reader's `read`
- train: a training sample as a data worker makes it, read and transformed
- per mask: read, then torchvision's transforms with one boolean mask per segment, the usual way

All rows run in one process and on one thread, in turns, each over the same images, after a round to warm up. Printed
are medians over the rounds of images per second of processor time, and of each round's ratios. `--profile` prints
where the time of a training sample goes, in milliseconds an image.
"""

from __future__ import annotations

import argparse
import cProfile
import io
import pstats
import statistics
import sys
import time
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

sys.path.insert(0, str(Path(__file__).parents[1]))

from hydra import compose, initialize_config_dir

from datasets.files.decode import decode_id_map, decode_label_map
from datasets.module import SegmentationData
from datasets.sampler import SampleKey
from datasets.samples import TrainingSet
from datasets.transforms import TrainTransform
from eomt.cli.build import build_data
from eomt.photo import read_photo

CONFIGS = str(Path(__file__).parents[1] / "configs")
# How a task's ground truth is decoded; None where it is in the annotations.
DECODE = {"coco_panoptic": decode_id_map, "coco_instance": None, "ade20k_semantic": decode_label_map}
Row = Callable[[int, int], None]  # of the image's position and the round


def open_data(task: str, root: str) -> SegmentationData:
    """The data module of the task's configuration."""
    with initialize_config_dir(CONFIGS, version_base="1.3"):
        return build_data(compose("train", overrides=[f"task={task}", f"data.root='{Path(root).resolve()}'"]))


def stored_files(root: Path, stems: set[str]) -> dict[str, list[tuple[str, bytes]]]:
    """The suffix and bytes of the JPEG and PNG files with these stems, in the root's archives and those within."""

    def members(archive: zipfile.ZipFile) -> Iterator[tuple[str, bytes]]:
        for name in archive.namelist():
            path = Path(name)
            if path.suffix == ".zip":
                with zipfile.ZipFile(io.BytesIO(archive.read(name))) as inner:
                    yield from members(inner)
            elif path.suffix in (".jpg", ".png") and path.stem in stems:
                yield name, archive.read(name)

    found = defaultdict(list)
    for path in sorted(root.glob("*.zip")):
        with zipfile.ZipFile(path) as archive:
            for name, content in members(archive):
                found[Path(name).stem].append((Path(name).suffix, content))
    return found


def decode_row(training: TrainingSet, chosen: list[int], root: str, task: str) -> Row:
    """Decode the files from memory."""
    stems = [Path(training.reader.name(int(training.indices[k]))).stem for k in chosen]
    stored = stored_files(Path(root), set(stems))
    decode = {".jpg": lambda content, stem: read_photo(io.BytesIO(content), stem).pixels, ".png": DECODE[task]}

    def run(position: int, turn: int) -> None:
        for suffix, content in stored[stems[position]]:
            if decode[suffix]:
                decode[suffix](content, stems[position])

    return run


def per_mask_row(training: TrainingSet, chosen: list[int], data: SegmentationData, jitter: bool) -> Row:
    """The same augmentation by torchvision, on one mask per segment."""
    colors = v2.RandomPhotometricDistort((1 - 32 / 255, 1 + 32 / 255), (0.5, 1.5), (0.5, 1.5), (-0.05, 0.05))
    steps = v2.Compose(
        [
            *([colors] if jitter else []),
            v2.RandomHorizontalFlip(),
            v2.ScaleJitter(data.image_size, data.scale_range),
            v2.RandomCrop(data.image_size, pad_if_needed=True),
        ]
    )

    def run(position: int, turn: int) -> None:
        image, targets = training.reader.read(int(training.indices[chosen[position]]))
        masks = tv_tensors.Mask(targets.masks()[~targets.crowd])
        _, masks = steps(tv_tensors.Image(torch.from_numpy(image).permute(2, 0, 1)), masks)
        _ = masks[masks.flatten(1).any(1)]

    return run


def print_profile(row: Row, count: int, rounds: int) -> None:
    """Print the functions that take the most processor time."""
    profiler = cProfile.Profile(time.process_time)
    for turn in range(rounds + 1):
        if turn:
            profiler.enable()
        for position in range(count):
            row(position, turn)
        profiler.disable()
    print(f"{'ms per image':60}{'itself':>8}{'with what it calls':>20}")
    rows = [
        (1e3 * itself / (rounds * count), 1e3 * total / (rounds * count), f"{Path(file).name} {name}")
        for (file, _, name), (_, _, itself, total, _) in pstats.Stats(profiler).stats.items()
    ]
    for itself, total, name in sorted(rows, reverse=True)[:20]:
        print(f"{name:60}{itself:8.2f}{total:20.2f}")


def main() -> None:
    """Print the rows of one task."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root")
    parser.add_argument("--task", choices=DECODE, default="coco_panoptic")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--profile", action="store_true", help="only where the time of a training sample goes")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    data = open_data(options.task, options.root)
    transform = TrainTransform(data.image_size, data.scale_range, data.augmentations)
    training = TrainingSet(data.reader("train"), transform, seed=0)
    count = min(options.images, len(training))
    chosen = [k * len(training) // count for k in range(count)]
    rows: dict[str, Row] = {
        "decode": decode_row(training, chosen, options.root, options.task),
        "read": lambda position, turn: training.reader.read(int(training.indices[chosen[position]])),
        "train": lambda position, turn: training[SampleKey(turn, chosen[position], 0)],
        "per mask": per_mask_row(training, chosen, data, bool(data.augmentations)),
    }
    if options.profile:
        print_profile(rows["train"], count, options.rounds)
        return
    rates: dict[str, list[float]] = {name: [] for name in rows}
    for turn in range(options.rounds + 1):
        for name, row in rows.items():
            start = time.process_time()
            for position in range(count):
                row(position, turn)
            if turn:
                rates[name].append(count / (time.process_time() - start))
    print(f"{options.task}, {count} images\n\n| | images/s | of decode | of per mask |\n|---|---|---|---|")
    for name, values in rates.items():
        ratios = [
            statistics.median(a / b for a, b in zip(values, rates[o], strict=True)) for o in ("decode", "per mask")
        ]
        print(f"| {name} | {statistics.median(values):.1f} | {ratios[0]:.0%} | {ratios[1]:.1f} x |")


if __name__ == "__main__":
    main()
