"""Goes through a whole dataset and notes, by name, what is broken or odd."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import PurePath

import numpy as np
from tqdm import tqdm

from datasets.check.facts import Fault, ImageFacts, examined
from datasets.check.report import Report, Tally
from datasets.check.rules import odd_annotations, odd_image
from datasets.module import SegmentationData, check_same_classes
from datasets.readers.base import Reader
from datasets.readers.folder import IMAGE_ENDINGS
from eomt.errors import InputError


def check_data(data: SegmentationData, splits: Sequence[str], num_queries: int) -> tuple[Report, dict[str, np.ndarray]]:
    """Read every image of the sets in `data.num_workers` processes each.

    Args:
        data: the sets.
        splits: "train", "val", or both.
        num_queries: of the network.

    Returns:
        The report, and for each set that could be opened the indices of the images that are fit to be drawn.
    """
    report = Report()
    readers = {split: reader for split in splits if (reader := _opened(data, split, report)) is not None}
    fit: dict[str, np.ndarray] = {}
    seen: dict[bytes, tuple[str, str]] = {}
    for split, reader in readers.items():
        _check_identities(reader, split, report)
        fit[split] = _check_images(data, split, num_queries, seen, report)
    if len(readers) == 2:
        try:
            check_same_classes(readers["train"].classes, readers["val"].classes)
        except InputError as error:
            report.add("different_classes", "", "", str(error))
        _check_unused(list(readers.values()), report)
    return report, fit


def _opened(data: SegmentationData, split: str, report: Report) -> Reader | None:
    try:
        return data.reader(split)
    except InputError as error:
        for line in error.details or (str(error),):
            report.add("not_opened", split, "", line)
    return None


def _check_identities(reader: Reader, split: str, report: Report) -> None:
    indices = range(len(reader))
    for what, of in (("name", reader.name), ("id", reader.image_id)):
        for value, times in Counter(map(of, indices)).items():
            if times > 1:
                report.add("same_identity", split, str(value), f"this {what} stands for {times} images")


def _check_images(
    data: SegmentationData,
    split: str,
    num_queries: int,
    seen: dict[bytes, tuple[str, str]],
    report: Report,
) -> np.ndarray:
    """Read a set. `seen` has the set and name of the image with each digest, and receives this set's."""
    reader = data.reader(split)
    classes, annotated = reader.classes, reader.annotated() if hasattr(reader, "annotated") else None
    tally = report.tallies[split] = Tally(classes)
    fit = []
    with tqdm(total=len(reader), desc=f"reading {split}", unit=" images", dynamic_ncols=True) as bar:
        index = 0
        for batch in examined(reader, data.num_workers, data.timeout):
            for found in batch:
                name = reader.name(index)
                if isinstance(found, Fault):
                    report.add(found.kind, split, name, found.what)
                else:
                    _tally(found, tally)
                    odd = list(odd_image(found, classes, num_queries))
                    if annotated is not None:
                        odd += odd_annotations(found, *annotated.of(index), classes)
                    for kind, what in odd:
                        report.add(kind, split, name, what)
                    _check_repeated(found.digest, split, name, seen, report)
                    fit.append(index)
                index += 1
            bar.update(len(batch))
    for label in np.flatnonzero(tally.images == 0):
        report.add("unseen_class", split, classes[label].name, "no image shows it")
    if split == "train" and not (tally.images.any() and reader.has_targets().any()):
        report.add("nothing_to_train", split, "", "check that its annotations belong to its images")
    return np.array(fit, dtype=np.int64)


def _tally(image: ImageFacts, tally: Tally) -> None:
    counted = ~image.crowd
    tally.add(image.size, image.labels[counted], image.pixels[counted], image.unlabelled)


def _check_repeated(digest: bytes, split: str, name: str, seen: dict[bytes, tuple[str, str]], report: Report) -> None:
    first = seen.setdefault(digest, (split, name))
    if first != (split, name):
        kind = "duplicate" if first[0] == split else "leak"
        report.add(kind, split, name, f"has the same pixels as {first[1]} of {first[0]}")


def _check_unused(readers: Sequence[Reader], report: Report) -> None:
    """Of both sets together: they may be parts of one folder."""
    used, there = set(), set()
    for reader in readers:
        if hasattr(reader, "files"):
            its_used, its_there = reader.files()
            used |= its_used
            there |= its_there
    for path in sorted(there - used):
        name = PurePath(path.rpartition(": ")[2])
        if name.suffix.lower() in IMAGE_ENDINGS and not name.name.startswith("."):
            report.add("unused_file", "", path, "nothing refers to it")
