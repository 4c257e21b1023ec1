"""Images whose ground truth is a label PNG: every pixel's value, or colour, stands for a class."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from unicodedata import normalize

import numpy as np

from datasets.files.decode import decode_color_map, decode_label_map
from datasets.files.index import Index, open_index, text_columns
from datasets.files.photos import Photos
from datasets.files.source import IndexedFiles, Member, Source, file_columns, is_hidden, without_heic_twins
from datasets.readers.base import MOST_DETAILS, NAMED, SKIP_BAD, check_size, index_remarks, left_out, listed
from eomt.classes import Classes
from eomt.errors import InputError
from eomt.photo import Form, photo_size
from eomt.targets import ImageTargets, runs, targets_from_id_map

VOID = -1
"""Class of a pixel that belongs to no segment."""

_VERSION = 6  # part of the index's key: raise it when the arrays or their meaning change


class LabelTable:
    """Classes of the values of label PNGs.

    Args:
        class_of: the class, 0..C-1 or VOID, of each value 0..65535, or with `colors` of red + 256 * green +
            65536 * blue. Several values may stand for one class.
        remedy: the way out for a value that is not in it, for messages.
        colors: the PNGs' colours are the values.
    """

    def __init__(self, class_of: Mapping[int, int], remedy: str, colors: bool = False):
        self._values = np.array(sorted(class_of), dtype=np.int64)
        self._classes = np.array([class_of[value] for value in sorted(class_of)], dtype=np.int64)
        self._remedy = remedy
        self.colors = colors

    def decode(self, data: bytes, where: str) -> np.ndarray:
        """Decode a PNG: unsigned integers [H, W], its values. InputError if it is damaged."""
        return (decode_color_map if self.colors else decode_label_map)(data, where)

    def classes(self, values: np.ndarray, where: str) -> np.ndarray:
        """int64, of the shape of `values`: the class of each, or VOID.

        Raises:
            InputError: if one is not in the table; the message names `where`, the file, and the values.
        """
        row = np.searchsorted(self._values, values).clip(max=len(self._values) - 1)
        unknown = self._values[row] != values
        if unknown.any():
            unknown = np.unique(values[unknown])
            what = ("colour" if self.colors else "value") + "s" * (len(unknown) > 1)
            raise InputError(f"{where} has the {what} {self.describe(unknown)}, but no class for it: {self._remedy}")
        return self._classes[row]

    def describe(self, values: Iterable[int], most: int = NAMED) -> str:
        """Values in words, no more than `most` of them: "1, 2", or "[1, 2, 3], [4, 5, 6]"."""
        values = map(int, values)
        return listed([[v & 255, v >> 8 & 255, v >> 16] if self.colors else v for v in values], most=most)


class LabelMaps:
    """Semantic segmentation from label PNGs; a `datasets.readers.base.Reader`.

    An image's segments are the classes that its PNG shows, by class, none a crowd. `has_targets` is True for all
    images: finding those without a class would take decoding every PNG. Such files hold no image ids: `image_id`
    counts the images from 1 in the order of their names, and `name` is the path of the image.

    Args:
        images, truths, index: what `pair_files` found; the first truths are the label PNGs.
        classes: at most 32767 of them.
        table: the classes of the PNGs' values.
        exif, usual: see `Photos`.
    """

    one_per_class = True

    def __init__(
        self,
        images: IndexedFiles,
        truths: Sequence[IndexedFiles],
        index: Index,
        classes: Classes,
        table: LabelTable,
        exif: Form | None = None,
        usual: Form = "upright",
    ):
        most = np.iinfo(np.int16).max  # segments of an image: targets number them in int16
        if len(classes) > most:
            raise InputError(f"the dataset has {len(classes)} classes, more than {most}")
        self.classes = classes
        self._images = images
        self.photos = Photos(images, exif, usual)
        self._truths = truths
        self._index = index
        self._table = table

    def __len__(self) -> int:
        return len(self._images)

    def has_targets(self) -> np.ndarray:
        return np.ones(len(self), dtype=bool)

    def name(self, index: int) -> str:
        return self._images.name(index)

    def image_id(self, index: int) -> int:
        return index + 1

    def remarks(self) -> list[str]:
        """Remarks on the set, which a run says: files that are left out."""
        return index_remarks(self._index)

    def left_out(self) -> list[str]:
        """The images that `data.skip_bad` passes over."""
        return left_out(self._index)

    def files(self) -> tuple[set[str], set[str]]:
        """The files of images and ground truth that are used, and all that lie beside them."""
        used, there = zip(*(files.compared() for files in (self._images, *self._truths)), strict=True)
        return set().union(*used), set().union(*there)

    def read(self, index: int) -> tuple[np.ndarray, ImageTargets]:
        image, where = self.photos.read(index, lambda: photo_size(self._truths[0].read(index)[0]))
        return image, self._targets(index, image.shape[:2], where)

    def _targets(self, index: int, size: tuple[int, int], image: str) -> ImageTargets:
        data, where = self._truths[0].read(index)
        pixels = self._table.decode(data, where)
        check_size(pixels.shape, size, where, image)
        values, lengths = runs(pixels)
        classes = self._table.classes(values, where)
        return targets_from_runs(classes, classes, lengths, size)


def targets_from_runs(
    segments: np.ndarray, labels: np.ndarray, lengths: np.ndarray, size: tuple[int, int]
) -> ImageTargets:
    """Targets of one plane, in the order of the segments' numbers.

    Args:
        segments: int64 [R], the number of each run's segment, or VOID.
        labels: int64 [R], the class of each run, equal in all runs of a segment.
        lengths: int64 [R], pixels of each run, row after row.
        size: (height, width) of the plane.
    """
    numbers, first = np.unique(segments, return_index=True)
    found = numbers != VOID
    id_map = np.repeat(segments, lengths).reshape(size)
    return targets_from_id_map(id_map, numbers[found], labels[first[found]])


def pair_files(
    images: Source,
    image_endings: Sequence[str],
    truths: Sequence[tuple[Source, str]],
    skip_bad: bool | None = None,
    only: Sequence[str] | None = None,
) -> tuple[IndexedFiles, list[IndexedFiles], Index]:
    """Find images, in the order of their names, and the file of each in every source of ground truth.

    An image and its ground truth have the same relative path, but for their endings; a HEIC file beside another image
    of its name is left out. Their locations are found
    once and kept in an index: see `datasets.files.index`.

    Args:
        images: the source of images.
        image_endings: endings of their names, as (".jpg",), in any case of letters.
        truths: sources of ground truth, each with the ending of its names, likewise.
        skip_bad: True leaves out images that lack a file. Otherwise they are an error, whose message names
            `data.skip_bad` as a way out unless this is None.
        only: the relative paths, without endings, of the images that are taken; default all.

    Returns:
        The images, the files of each source of ground truth, and the index, whose `meta` and texts are as
        `index_remarks` takes them.

    Raises:
        InputError: if there is no image, two images differ in nothing but their endings, or one lacks a file.
    """
    endings = tuple(image_endings)
    settings = (endings, [ending for _, ending in truths], skip_bad, only)
    state = blake2b(repr(settings).encode("utf-8", "surrogateescape"), digest_size=16)
    for source in (images, *(source for source, _ in truths)):
        state.update(source.fingerprint())
    key = f"pairs-{_VERSION}-{state.hexdigest()}"
    index = open_index(key, lambda: _pair_columns(images, endings, truths, skip_bad, only))
    found = [IndexedFiles(source, index, f"truth{kind}") for kind, (source, _) in enumerate(truths)]
    return IndexedFiles(images, index, "image"), found, index


def _pair_columns(
    images: Source,
    endings: Sequence[str],
    truths: Sequence[tuple[Source, str]],
    skip_bad: bool | None,
    only: Sequence[str] | None,
) -> tuple[dict[str, np.ndarray], dict]:
    photos = _by_stem(images, endings)
    if not photos:
        patterns = " or ".join(f"*{ending}" for ending in endings)
        raise InputError(f"there are no images {images.describe(patterns)}{_others(images)}")
    stems = sorted(photos if only is None else {normalize("NFC", stem) for stem in only})
    found = [_by_stem(source, (ending,)) for source, ending in truths]
    missing = {stem: f"the image {images.describe(stem)} is missing" for stem in stems if stem not in photos}
    if only is not None:
        photos = {stem: photos.get(stem, (stem, Member())) for stem in stems}
        found = [{stem: file for stem, file in files.items() if stem in photos} for files in found]
    remarks = []
    # An index serves all sets of the same file names, wherever they lie: its texts name no folder.
    for (_, ending), files in zip(truths, found, strict=True):
        for stem in stems:
            if stem not in files:
                missing.setdefault(stem, f"{stem + ending} is missing, the ground truth of {photos[stem][0]}")
        if left_over := sorted(file for stem, (file, _) in files.items() if stem not in photos):
            others = _others(images, photos.values(), "lie beside the images")
            remarks.append(
                f"{len(left_over)} files of ground truth have no image and are not used: {listed(left_over)}{others}"
            )
    lines = list(missing.values())
    if missing and (not skip_bad or len(missing) == len(stems)):
        where = " or ".join(source.describe("") for source, _ in truths)
        way_out = "complete the files, or move those images away" if skip_bad is None else SKIP_BAD
        if len(missing) == len(stems):
            way_out = "ground truth has the name of its image, but for the ending"
            way_out += "".join(f" {ending}{_others(source)}" for source, ending in truths)
        raise InputError(
            f"{len(missing)} of {len(stems)} images in {images.describe('')} have no ground truth in {where}: "
            f"{listed([photos[stem][0] for stem in missing])}; {way_out}",
            [f"{where}: {line}" for line in lines],
        )
    stems = [stem for stem in stems if stem not in missing]
    arrays = file_columns("image", (photos[stem] for stem in stems))
    for kind, files in enumerate(found):
        arrays |= file_columns(f"truth{kind}", (files[stem] for stem in stems))
    arrays |= text_columns("left_out", (line.encode() for line in lines[:MOST_DETAILS]))
    return arrays, {"remarks": remarks, "left_out": len(lines)}


def _others(source: Source, used: Iterable[tuple[str, Member]] = (), where: str = "are there") -> str:
    """The other files of a source, in words: those under other names, or of another kind."""
    names = sorted(source.members().keys() - {name for name, _ in used})
    names = [name for name in names if not is_hidden(name)]
    return f"; {len(names)} other files {where}, the first: {names[0]}" if names else ""


def _by_stem(source: Source, endings: Sequence[str]) -> dict[str, tuple[str, Member]]:
    """Name and location of the files with one of the endings, by their names without it."""
    found: dict[str, tuple[str, Member]] = {}
    members = source.members()
    endings = tuple(ending.lower() for ending in endings)
    for name in without_heic_twins(n for n in members if n.lower().endswith(endings) and not is_hidden(n)):
        ending = next(ending for ending in endings if name.lower().endswith(ending))
        try:
            name.encode()
        except UnicodeEncodeError as error:  # a folder gives this for bytes that it cannot decode
            raise InputError(f"{source.describe(ascii(name))} has a name that is no UTF-8: rename the file") from error
        stem = normalize("NFC", name[: -len(ending)])  # systems write accents in two ways
        if stem in found:
            names = " and ".join(sorted((found[stem][0], name)))
            raise InputError(f"{source.describe('')} has both {names}: files are matched by name, so keep one of them")
        found[stem] = name, members[name]
    return found
