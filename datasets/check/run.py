"""Check of a whole dataset: every image is read, and what is broken or odd is reported by name."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from datasets.check.contact_sheet import train_sheet, val_sheet
from datasets.check.images import ExaminedImages, Fault, odd_annotations, odd_image
from datasets.check.report import ERROR, WARNING, Report, Tally, log
from datasets.loader import BatchLoader
from datasets.module import SegmentationData, check_same_classes
from datasets.readers.base import Reader, Subset
from eomt.errors import InputError
from eomt.files import replacing
from eomt.photo import IMAGE_SUFFIXES

_TOGETHER = 8  # images that a worker sends at once


def check_data(
    data: SegmentationData, splits: Sequence[str], num_queries: int, folder: str | Path, shown: int, pictures: int
) -> None:
    """Check sets, log the findings, and write `report.json` and a contact sheet per set.

    Args:
        data: the sets.
        splits: "train", "val", or both.
        num_queries: the network's queries.
        folder: the folder for report and sheets.
        shown: findings of each kind in the log.
        pictures: rows of each contact sheet; 0 writes none.

    Raises:
        InputError: if anything is broken. Odd things are warnings.
    """
    report = Report()
    readers = {split: reader for split in splits if (reader := _opened(data, split, report)) is not None}
    seen: dict[bytes, tuple[str, str]] = {}
    usable = {split: _check_images(data, split, num_queries, seen, report) for split in readers}
    if len(readers) == 2:
        try:
            check_same_classes(readers["train"].classes, readers["val"].classes)
        except InputError as error:
            report.add("different_classes", "", "", str(error))
        _check_unused(readers.values(), report)

    path = Path(folder) / "report.json"
    report.write(path)
    report.log(shown)
    for split, indices in usable.items():
        draw = train_sheet if split == "train" else val_sheet
        sheet = draw(data, indices, pictures) if pictures and len(indices) else None
        if sheet is not None:
            with replacing(path.with_name(f"contact_{split}.png")) as temporary:
                Image.fromarray(sheet).save(temporary)
            log.info("pictures: %s", path.with_name(f"contact_{split}.png"))
    errors, warnings = report.count(ERROR), report.count(WARNING)
    if errors:
        raise InputError(f"the check found {errors} errors and {warnings} warnings, all of them in {path}")
    log.info("no errors, %d warnings; report: %s", warnings, path)


def _opened(data: SegmentationData, split: str, report: Report) -> Reader | None:
    try:
        return data.reader(split)
    except InputError as error:
        for line in error.details or (str(error),):
            report.add("not_opened", split, "", line)
    return None


def _check_images(
    data: SegmentationData, split: str, num_queries: int, seen: dict[bytes, tuple[str, str]], report: Report
) -> np.ndarray:
    """Read a set, in `data.num_workers` processes, and return the indices of the images that can be drawn.

    `seen` maps each digest to the set and name of its first image, and is extended.
    """
    reader: Any = data.reader(split)  # see `Reader` for what one may have
    for line in data.remarks(split):
        report.add("remark", split, "", line)
    for line in reader.left_out() if hasattr(reader, "left_out") else ():
        report.add("left_out", split, "", line)
    for what, value_of in (("name", reader.name), ("id", reader.image_id)):
        for value, times in Counter(map(value_of, range(len(reader)))).items():
            if times > 1:
                report.add("same_identity", split, str(value), f"this {what} stands for {times} images")
    tally = report.tallies[split] = Tally(reader.classes)
    usable = []
    loader = BatchLoader(ExaminedImages(reader), list, data.num_workers, data.timeout, batch_size=_TOGETHER)
    found = (image for batch in loader for image in batch)
    for index, image in enumerate(tqdm(found, f"reading {split}", len(reader), unit=" images", dynamic_ncols=True)):
        name = reader.name(index)
        if isinstance(image, Fault):
            report.add(image.kind, split, name, image.what)
            continue
        usable.append(index)
        tally.add(image)
        odd = list(odd_image(image, reader.classes, num_queries))
        if hasattr(reader, "annotated"):
            odd += odd_annotations(image, *reader.annotated(index), reader.classes)
        number = int(reader.numbers[index]) if isinstance(reader, Subset) else index
        photos = getattr(reader, "photos", None)
        if photos is not None and (what := photos.exif(number)):
            odd.append(("exif", what))
        first_split, first_name = first = seen.setdefault(image.digest, (split, name))
        if first != (split, name):
            kind = "duplicate" if first_split == split else "leak"
            odd.append((kind, f"has the same pixels as {first_name} of {first_split}"))
        for kind, what in odd:
            report.add(kind, split, name, what)
    if not usable:  # what is wrong with the images has been said
        return np.array(usable, dtype=np.int64)
    nowhere = f"no image shows it; {tally.percent(tally.unlabelled):.1f} % of all pixels are in no segment"
    for label in np.flatnonzero(tally.images == 0).tolist():
        report.add("unseen_class", split, reader.classes[label].name, nowhere)
    if split == "train" and not (tally.images.any() and reader.has_targets().any()):
        report.add(
            "nothing_to_train",
            split,
            "",
            "check that its annotations belong to its images, and data.crowd and data.ignore",
        )
    return np.array(usable, dtype=np.int64)


def _check_unused(readers: Iterable[Any], report: Report) -> None:
    """Report files that neither set uses: both may be parts of one folder."""
    used, there = set(), set()
    for reader in readers:
        if hasattr(reader, "files"):
            its_used, its_there = reader.files()
            used |= its_used
            there |= its_there
    for path in sorted(there - used):
        name = PurePath(path.rpartition(": ")[2])
        if os.path.islink(path) and not os.path.exists(path):
            report.add("unused_file", "", path, "a link to nothing")
        elif name.suffix.lower() in IMAGE_SUFFIXES and not name.name.startswith("."):
            report.add("unused_file", "", path, "nothing refers to it")
