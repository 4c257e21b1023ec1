"""Segmentation of image files, with pictures and official results."""

from __future__ import annotations

import io
import json
import logging
import multiprocessing
import os
import pickle
import shutil
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path, PurePath
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eomt.errors import InputError
from eomt.files import write_json
from eomt.inference.find_images import PICTURES, PREDICTIONS, result_names
from eomt.inference.result import Result
from eomt.inference.segmenter import Segmenter
from eomt.inference.sources import ImageSource
from eomt.postprocess.writers import ResultWriter, Row, flat_name

log = logging.getLogger("eomt")

INDEX = "images.json"
# In place of the index until that is written: all pictures that the run may leave.
_UNFINISHED = ".images.json"
LONGEST_JPEG = 65535  # pixels of a side
MOST_PROCESSES = 12
_WAITING_PIXELS = 2**27  # of results that wait to be written: with what is sent, 6 bytes each


def predict_files(
    segmenter: Segmenter,
    folder: Path,
    files: Sequence[Path],
    out: str | Path,
    batch_size: int = 8,
    num_workers: int = 4,
    threshold: float | None = None,
    processes: Executor | None = None,
    num_processes: int = 1,
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
        processes, num_processes: paint and write in place of these threads, see `writing_processes`.

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
    writing: deque[tuple[Future[Row], Callable[[], Row], int]] = deque()
    # Enough that processes have work while a batch is computed.
    most = max(2 * num_processes, batch_size + num_processes) if processes else num_workers

    def note_first() -> None:
        future, write, _ = writing.popleft()
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
            writing.append((_submit(write, processes, threads), write, height * width))
            # Results and canvases of large images are large: bound the queue.
            while len(writing) > 1 and (len(writing) > most or sum(size for *_, size in writing) > _WAITING_PIXELS):
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


def processes_beside(threads: int) -> int:
    """How many processes should write while as many threads read: painting takes longer than reading."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(threads, min(MOST_PROCESSES, cores - threads)) if threads else 0


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
            return processes.submit(_unpickle_and_write, _pickled(write))
    return threads.submit(write)


class _Pickler(pickle.Pickler):
    """Pickler of tensors as arrays, of 16 bits where these hold an image's segments.

    PyTorch's own takes several times as long, in the thread that feeds the GPU, or goes through shared memory, of which
    there may be little.
    """

    def reducer_override(self, obj: Any) -> Any:
        if not isinstance(obj, Tensor):
            return NotImplemented
        values = obj.numpy(force=True)
        fits = values.dtype == np.int32 and values.size > 0 and values.min() >= 0 and values.max() < 2**15
        return _tensor, (values.astype(np.int16) if fits else values, obj.dtype)


def _tensor(values: NDArray[Any], dtype: torch.dtype) -> Tensor:
    return torch.as_tensor(values, dtype=dtype)


def _pickled(write: Callable[[], Row]) -> bytes:
    file = io.BytesIO()
    _Pickler(file, pickle.HIGHEST_PROTOCOL).dump(write)
    return file.getvalue()


def _unpickle_and_write(write: bytes) -> Row:
    return pickle.loads(write)()


def _write(result: Result, writer: ResultWriter, name: str, image_id: int, picture: Path) -> Row:
    result.save(picture, synced=False)
    return writer.save(result.prediction, f"{name}.png", image_id)
