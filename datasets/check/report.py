"""Findings of a dataset check by name and the histogram of classes, for the log and as JSON."""

from __future__ import annotations

import logging
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np

from datasets.check.images import ImageFacts
from datasets.readers.base import NOTES
from eomt.classes import Classes
from eomt.files import write_json

log = logging.getLogger("eomt")

ERROR, WARNING = "error", "warning"

# Kinds of findings: level and description.
KINDS = {
    "not_opened": (
        ERROR,
        "faults that keep a set from being opened; mend them, or data.skip_bad=true leaves out single rows and files",
    ),
    "unreadable": (ERROR, "images that cannot be read with their ground truth"),
    "bad_targets": (ERROR, "targets that are not as datasets.readers.base.Reader says"),
    "same_identity": (ERROR, "image names or ids that stand for several images, whose results would mix"),
    "different_classes": (ERROR, "training and validation differ in their classes"),
    "nothing_to_train": (ERROR, "no training image has a segment"),
    "leak": (WARNING, "images of validation whose pixels are also in training: scores come out too high"),
    "duplicate": (WARNING, "images with the same pixels as an earlier one of their set"),
    "remark": (WARNING, "what a run on the set says at its start"),
    "left_out": (WARNING, "faults of images and annotations that data.skip_bad=true leaves out"),
    **{kind: (WARNING, what) for kind, what in NOTES.items()},
    "crowd": (WARNING, "images with crowds (iscrowd 1); data.crowd says what they are"),
    "empty_segment": (WARNING, "images with segments that have no pixel"),
    "tiny_segment": (WARNING, "images with tiny segments"),
    "many_segments": (WARNING, "images with more segments than model.num_queries, which cannot all be matched"),
    "small_image": (WARNING, "images with a very short side"),
    "long_image": (WARNING, "images of extreme proportions"),
    "exif": (WARNING, "photos with an EXIF orientation; data.exif=upright or data.exif=stored decides for all"),
    "outside": (WARNING, "images with boxes or polygons that reach beyond the image"),
    "box": (WARNING, "images with boxes that do not fit their masks (training uses the masks alone)"),
    "area": (WARNING, "images with areas that do not fit their masks (average precision sorts objects by the areas)"),
    "unseen_class": (WARNING, "classes that a set never shows"),
    "unused_file": (WARNING, "files beside the images or the ground truth that neither set uses"),
}


class Finding(NamedTuple):
    """One broken or odd thing.

    Attributes:
        split: "train" or "val", or "" for both together.
        name: the image, file or class; may be empty.
        what: a description.
    """

    split: str
    name: str
    what: str


class Tally:
    """Counts of one set, over the images that could be read.

    Args:
        classes: the set's classes.

    Attributes:
        images, segments, pixels: int64 [C], by class: images that show it, its segments and their pixels, without
            crowds.
        sizes: (height, width) of each image.
        counts: segments of each image, without crowds.
        unlabelled: pixels in no segment, or in a crowd alone.
    """

    def __init__(self, classes: Classes):
        self.classes = classes
        self.images, self.segments, self.pixels = np.zeros((3, len(classes)), dtype=np.int64)
        self.sizes: list[tuple[int, int]] = []
        self.counts: list[int] = []
        self.unlabelled = 0

    def add(self, image: ImageFacts) -> None:
        labels, pixels = image.labels[~image.crowd], image.pixels[~image.crowd]
        self.sizes.append(image.size)
        self.counts.append(len(labels))
        self.images[np.unique(labels[pixels > 0])] += 1
        self.segments += np.bincount(labels, minlength=len(self.classes))
        np.add.at(self.pixels, labels, pixels)
        self.unlabelled += image.unlabelled

    def percent(self, pixels: int) -> float:
        """Share of all pixels. Objects that overlap count more than once."""
        return 100 * int(pixels) / max(sum(height * width for height, width in self.sizes), 1)

    def summary(self) -> dict:
        """Plain values: smallest, median and largest side and number of segments."""
        if not self.sizes:
            return {"images": 0}
        heights, widths = zip(*self.sizes, strict=True)
        columns = {"height": heights, "width": widths, "segments_per_image": self.counts}
        spread = {
            name: {"min": int(min(values)), "median": float(np.median(values)), "max": int(max(values))}
            for name, values in columns.items()
        }
        return {"images": len(self.sizes), **spread, "unlabelled_percent": round(self.percent(self.unlabelled), 3)}


class Report:
    """Findings and counts of a check.

    Attributes:
        findings: by kind.
        tallies: by set.
    """

    def __init__(self):
        self.findings: dict[str, list[Finding]] = defaultdict(list)
        self.tallies: dict[str, Tally] = {}

    def add(self, kind: str, split: str, name: str, what: str) -> None:
        self.findings[kind].append(Finding(split, name, what))

    def count(self, level: str) -> int:
        """The number of errors or warnings."""
        return sum(len(found) for kind, found in self.findings.items() if KINDS[kind][0] == level)

    def write(self, path: str | Path) -> None:
        """Write everything as JSON."""
        found = {}
        for kind, (level, meaning) in KINDS.items():
            if items := [finding._asdict() for finding in self.findings.get(kind, ())]:
                found[kind] = {"level": level, "meaning": meaning, "count": len(items), "items": items}
        summaries = {split: tally.summary() for split, tally in self.tallies.items()}
        counts = {"errors": self.count(ERROR), "warnings": self.count(WARNING)}
        write_json(path, {**counts, "findings": found, "sets": summaries, "classes": self._histogram()})

    def log(self, shown: int) -> None:
        """Log the histogram and the first `shown` findings of each kind."""
        for line in self._table():
            log.info("%s", line)
        for split, tally in self.tallies.items():
            log.info("%s: %s", split, _sentence(tally.summary()))
        for level, write in ((WARNING, log.warning), (ERROR, log.error)):
            for kind in [kind for kind in KINDS if KINDS[kind][0] == level and self.findings.get(kind)]:
                found = self.findings[kind]
                write("%s (%d): %s", level, len(found), KINDS[kind][1])
                for finding in found[:shown]:
                    write("  %s", ": ".join(filter(None, finding)))
                if len(found) > shown:
                    write("  and %d more, all of them in report.json", len(found) - shown)

    def _histogram(self) -> list[dict]:
        """A row per class, with the counts of each set that has it."""
        rows: dict[tuple, dict] = {}
        for split, tally in self.tallies.items():
            for k, item in enumerate(tally.classes):
                row = {"id": item.id, "name": item.name, "isthing": int(item.is_thing)}
                rows.setdefault(tuple(row.values()), row)[split] = {
                    "images": int(tally.images[k]),
                    "segments": int(tally.segments[k]),
                    "pixels": int(tally.pixels[k]),
                    "pixels_percent": round(tally.percent(tally.pixels[k]), 4),
                }
        return list(rows.values())

    def _table(self) -> list[str]:
        """The histogram as lines of text."""
        rows = self._histogram()
        if not rows:
            return []
        width = max(8, *(len(row["name"]) for row in rows))
        lines = [
            " " * width + "".join(f"{split:>30}" for split in self.tallies),
            "class".ljust(width) + len(self.tallies) * "    images  segments  pixels %",
        ]
        cell = "{images:>10}{segments:>10}{pixels_percent:>10.2f}"
        for row in rows:
            cells = (cell.format(**row[split]) if split in row else " " * 30 for split in self.tallies)
            lines.append(row["name"].ljust(width) + "".join(cells).rstrip())
        none = (f"{tally.percent(tally.unlabelled):>30.2f}" for tally in self.tallies.values())
        return [*lines, "none".ljust(width) + "".join(none)]


def _sentence(summary: dict) -> str:
    if not summary["images"]:
        return "no image could be read"
    parts = [f"{summary['images']} images read"]
    for name in ("height", "width", "segments_per_image"):
        parts.append("{} {min} to {max}, median {median:g}".format(name.replace("_", " "), **summary[name]))
    return "; ".join(parts)
