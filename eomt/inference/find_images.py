"""Image files: finding them, and naming their results."""

from __future__ import annotations

import glob
import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path, PurePath

from eomt.errors import InputError
from eomt.files import walk
from eomt.photo import HEIF_HINT, IMAGE_SUFFIXES
from eomt.postprocess.writers import flat_name, shortened

log = logging.getLogger("eomt")

PICTURES, PREDICTIONS = "pictures", "predictions"
"""The folders of results."""


def files_below(folder: Path) -> Iterator[Path]:
    """The files in a folder and all below it, without hidden ones."""
    for parent, names in walk(folder, hidden=False):
        yield from (Path(parent, name) for name in names if not name.startswith("."))


def is_image(path: Path) -> bool:
    """True for a file with an image's suffix."""
    return path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()


def find_images(given: str | Sequence[str], out: str | Path) -> tuple[Path, list[Path]]:
    """Find image files.

    Args:
        given: a file, a folder (with all below it), a pattern such as `photos/*.jpg` or `photos/**/*.png`, or several
            of these. Hidden files are left out, and in folders and patterns those without an image's suffix. A name
            that exists is no pattern, whatever characters it has.
        out: the folder that `predict_files` writes to; its results there are left out.

    Returns:
        The files' common folder, and their absolute paths, each once.

    Raises:
        InputError: if an entry matches no image. Other files of a folder, such as photo.cr2, are counted in the log.
    """
    entries = [given] if isinstance(given, str) else [str(entry) for entry in given]
    written = [Path(os.path.abspath(out), name) for name in (PICTURES, PREDICTIONS)]
    folders: list[Path] = []
    files: dict[Path, None] = {}
    for entry in entries:
        folder, found, others = _expand(entry)
        found, others = (
            [path for path in paths if not any(path.is_relative_to(own) for own in written)]
            for paths in (found, others)
        )
        kinds = ", ".join(
            f"{count} {kind or 'without a suffix'}" for kind, count in Counter(p.suffix for p in others).items()
        )
        kinds += HEIF_HINT * (".hei" in kinds.lower())
        if not found:
            raise InputError(
                f"images={entry} has no image: names must end in {' '.join(IMAGE_SUFFIXES)}"
                + f", found {kinds}" * bool(kinds)
            )
        if kinds:
            log.info("images=%s: left out, as they do not end in %s: %s", entry, " ".join(IMAGE_SUFFIXES), kinds)
        folders.append(folder)
        files |= dict.fromkeys(found)
    return Path(os.path.commonpath(folders)), list(files)


def _expand(entry: str) -> tuple[Path, list[Path], list[Path]]:
    """An entry's folder, the images that it matches, and what else a folder holds."""
    path = Path(os.path.abspath(os.path.expanduser(entry)))
    if path.is_file():
        return path.parent, [path], []
    if path.is_dir():
        files = sorted(files_below(path))
        return path, list(filter(is_image, files)), [file for file in files if not is_image(file)]
    # The part of a pattern that exists is no pattern: a folder may be named "set [1]".
    folder = next(parent for parent in path.parents if parent.is_dir())
    pattern = str(path.relative_to(folder))
    if not glob.has_magic(pattern):
        raise InputError(f"images={entry}: no such file or folder")
    if "**" not in path.parts:
        return folder, sorted(filter(is_image, map(folder.joinpath, glob.glob(pattern, root_dir=folder)))), []
    # Not glob, which runs in circles of links.
    parts = Path(pattern).parts
    files = filter(is_image, files_below(folder))
    return folder, sorted(file for file in files if _fits(file.relative_to(folder).parts, parts)), []


def _fits(parts: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    """True if a path fits a pattern in which `**` stands for any folders."""
    first, rest = pattern[0], pattern[1:]
    if first == "**":
        return any(_fits(parts[k:], rest or ("*",)) for k in range(len(parts)))
    return fnmatchcase(parts[0], first) and (_fits(parts[1:], rest) if rest and parts[1:] else not rest + parts[1:])


def result_names(files: Sequence[PurePath]) -> list[PurePath]:
    """Names for the results of images: their relative paths without suffix.

    Names differ also as file names (`flat_name`) and without regard to case. Where images differ by their suffixes
    alone, these are kept: x.jpg and x.png become x_jpg and x_png.
    """
    alike = Counter(flat_name(file.with_suffix("")).casefold() for file in files)
    taken: set[str] = set()
    names: list[PurePath] = []
    for file in files:
        stem = file.with_suffix("")
        if alike[flat_name(stem).casefold()] > 1:
            stem = stem.with_name(f"{stem.name}_{file.suffix[1:]}")
        name, number = stem, 1
        while flat_name(name).casefold() in taken:
            number += 1
            name = stem.with_name(f"{stem.name}-{number}")
        taken.add(flat_name(name).casefold())
        names.append(name.with_name(shortened(name.name)))
    return names
