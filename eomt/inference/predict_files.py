"""Segmentation of image files: finding them, naming their results, and writing these."""

from __future__ import annotations

import glob
import json
import logging
import multiprocessing
import os
import pickle
import shutil
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import suppress
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path, PurePath
from typing import Any, cast

import torch

from eomt.errors import InputError
from eomt.files import write_json
from eomt.inference.result import Result
from eomt.inference.segmenter import Segmenter
from eomt.photo import IMAGE_SUFFIXES, ImageSource, files_below, is_image
from eomt.postprocess.writers import ResultWriter, Row, flat_name, shortened

log = logging.getLogger("eomt")

PICTURES, PREDICTIONS, INDEX = "pictures", "predictions", "images.json"
# In place of the index until that is written: all pictures that the run may leave.
_UNFINISHED = ".images.json"
LONGEST_JPEG = 65535  # pixels of a side


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
        InputError: if an entry matches no image. Other files of a folder, such as photo.heic, are counted in the log.
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


def predict_files(
    segmenter: Segmenter,
    folder: Path,
    files: Sequence[Path],
    out: str | Path,
    batch_size: int = 8,
    num_workers: int = 4,
    threshold: float | None = None,
    processes: Executor | None = None,
) -> Iterator[tuple[Path, InputError | None]]:
    """Segment files and write pictures and official results.

    `pictures/` receives a picture per image, in the images' own folders; `predictions/` the official result files of
    the kind of segmentation, in which images have numbers and names by `flat_name`; and at the end `images.json`, the
    images' numbers, names and sizes and the categories in COCO's form, which pycocotools takes as the results' data
    set. Sizes are those of the upright image.

    Args:
        segmenter: the segmenter.
        folder, files: the result of `find_images`.
        out: the folder to write to; made if it is not there. Results of an earlier run, by its `images.json`, are
            removed first: its pictures and `predictions/`, nothing else.
        batch_size, num_workers: see `Segmenter.stream`; as many threads more paint pictures and write results.
        threshold: leave segments with lower scores out of pictures and results. Default: pictures show
            instances from 0.5, and results have all.
        processes: paint and write in place of these threads, see `writing_processes`.

    Yields:
        Each file when it is done, with the error if it could not be read; their order may differ.

    Raises:
        InputError: if results cannot be written there, or another program's `images.json` is in the way.
    """
    out = Path(out)
    _remove_results(out)
    names = dict(zip(files, result_names([file.relative_to(folder) for file in files]), strict=True))
    planned = [Path(PICTURES, f"{name}{suffix}").as_posix() for name in names.values() for suffix in (".jpg", ".png")]
    write_json(out / _UNFINISHED, {"info": {"folder": str(folder)}, "images": [{"picture": name} for name in planned]})
    writer = segmenter.task.writer(out / PREDICTIONS, segmenter.classes)
    rows: list[dict[str, Any]] = []
    unread: deque[tuple[Path, InputError]] = deque()
    writing: deque[tuple[Future[Row], Callable[[], Row]]] = deque()

    def note_first() -> None:
        future, write = writing.popleft()
        try:
            row = future.result()
        except BrokenExecutor:  # a process was killed, mostly for want of memory
            row = write()
        writer.note(*row)

    def note_unread(file: ImageSource, error: InputError) -> None:
        unread.append((cast("Path", file), error))

    results = segmenter.stream(files, batch_size, num_workers, note_unread, threshold)
    with ThreadPoolExecutor(max(1, num_workers)) as threads:
        for result in results:
            source = cast("Path", result.source)
            name = names[source]
            height, width = result.size
            suffix = ".jpg" if max(result.size) <= LONGEST_JPEG * result.shrinking else ".png"
            picture = Path(PICTURES, name.with_name(name.name + suffix))
            image_id = len(rows) + 1
            if result.shrinking > 1:
                log.info("%s: its picture shows each %d. pixel; results are whole", source, result.shrinking)
            write = partial(_write, result, writer, flat_name(name), image_id, out / picture)
            writing.append((_submit(write, processes, threads), write))
            # Results and canvases of large images are large: bound the queue.
            if len(writing) > (2 if processes else 1) * num_workers:
                note_first()
            file_name = source.relative_to(folder).as_posix()
            size = {"height": height, "width": width}
            rows.append({"id": image_id, "file_name": file_name, **size, "picture": picture.as_posix()})
            yield source, None
            while unread:
                yield unread.popleft()
        while writing:
            note_first()
    writer.flush()
    writer.close()
    index = {"info": {"folder": str(folder)}, "images": rows, "categories": segmenter.classes.to_list()}
    for place in {Path(row["picture"]).parent for row in rows}:
        _remove_drafts(out / place)
    write_json(out / INDEX, index)
    (out / _UNFINISHED).unlink()
    yield from unread


def check_out(out: str | Path, overwrite: bool) -> None:
    """Raise InputError if a folder has results, unless they are of `predict_files` and `overwrite` is set. Of other
    files it is said that they stay."""
    names = {name for name in (INDEX, _UNFINISHED, PICTURES, PREDICTIONS) if Path(out, name).exists()}
    if names and not names & {INDEX, _UNFINISHED}:
        raise InputError(f"out={out} holds {min(names)}, which predict.py has not written: choose another folder")
    if names and not overwrite:
        what = "results already" if INDEX in names else "the results of a run that was interrupted"
        raise InputError(f"out={out} has {what}: choose another folder, or set overwrite=true")
    others = [] if names or not Path(out).is_dir() else [p for p in Path(out).iterdir() if not p.name.startswith(".")]
    others = [path.name for path in others if path.suffix != ".log"]
    if others:
        log.info("note: out=%s holds %d other files or folders (%s), which stay", out, len(others), min(others))


def _remove_results(out: Path) -> None:
    """Remove the results of earlier `predict_files`, also of one that was interrupted: a folder holds those of one."""
    for index in (out / INDEX, out / _UNFINISHED):
        if index.exists():
            _remove_listed(out, index)


def _remove_listed(out: Path, index: Path) -> None:
    pictures: list[PurePath] = []
    try:
        found = json.loads(index.read_text(encoding="utf-8"))
        pictures = [PurePath(row["picture"]) for row in found["images"]]
        ours = isinstance(found["info"]["folder"], str)
    except (ValueError, KeyError, TypeError):
        ours = False
    # Another program's file must not decide on what is removed.
    if not ours or any(picture.parts[:1] != (PICTURES,) or ".." in picture.parts for picture in pictures):
        raise InputError(f"{index} was not written by predict.py, and would be replaced: choose another folder by out=")
    try:
        for picture in pictures:
            (out / picture).unlink(missing_ok=True)
        for folder in sorted({parent for picture in pictures for parent in picture.parents[:-1]}, reverse=True):
            _remove_drafts(out / folder)
            with suppress(OSError):  # of a folder that is not empty
                (out / folder).rmdir()
        if (out / PREDICTIONS).exists():
            shutil.rmtree(out / PREDICTIONS)
        # Last: an interrupted removal can be resumed from it.
        index.unlink()
    except OSError as error:
        raise InputError(
            f"the earlier results in {out} cannot be removed ({error.strerror or error}): choose another folder by out="
        ) from error


def _remove_drafts(folder: Path) -> None:
    """Remove what a killed process has left of `replacing`."""
    for draft in folder.glob(f".*.{'[0-9a-f]' * 32}.*"):
        draft.unlink()


def writing_processes(count: int) -> Executor | None:
    """Processes that paint and write for `predict_files`: threads would take turns, and hold up a GPU's.

    They are forked at once: call it before a network or a GPU is in use.

    Returns:
        None where processes cannot be forked.
    """
    if count < 1 or "fork" not in multiprocessing.get_all_start_methods():
        return None
    pool = ProcessPoolExecutor(count, multiprocessing.get_context("fork"), _start_writing)
    pool.submit(int).result()
    return pool


def _start_writing() -> None:
    # Ctrl-C ends the main process, which ends these. Locks of other threads may be held for ever in a fork.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _submit(write: Callable[[], Row], processes: Executor | None, threads: Executor) -> Future[Row]:
    """Start `write` in a process, or in a thread if there is none (any more)."""
    if processes is not None:
        with suppress(BrokenExecutor):
            # As bytes: tensors would go through shared memory, of which there may be little.
            return processes.submit(_unpickle_and_write, pickle.dumps(write))
    return threads.submit(write)


def _unpickle_and_write(write: bytes) -> Row:
    return pickle.loads(write)()


def _write(result: Result, writer: ResultWriter, name: str, image_id: int, picture: Path) -> Row:
    result.save(picture, synced=False)
    return writer.save(result.prediction, f"{name}.png", image_id)
