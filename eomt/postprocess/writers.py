"""Official result files, as a benchmark's own tools and servers take them, and their rows and colours."""

from __future__ import annotations

import json
import logging
import os
import struct
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from PIL import Image

from eomt.classes import Classes
from eomt.errors import InputError
from eomt.files import replacing
from eomt.photo import MAX_PIXELS
from eomt.postprocess.runs import coco_mask, row_blocks
from eomt.postprocess.types import Instances, Segmentation
from eomt.targets import ImageId

log = logging.getLogger("eomt")

Row = tuple[ImageId, str, str]
"""An image's id, the name by which rows are ordered, and its JSON text."""

LONGEST_NAME = 180  # bytes; file systems take 255, of which drafts and suffixes need some


class ResultWriter(ABC):
    """Base of the writers: each rank notes its own images, and rank 0 joins the notes.

    Every rank adds its own images; then all ranks call `flush`, wait for each other, and call `close`. An image that
    was added twice, as samplers pad the last batch of some ranks, is written once.

    Args:
        folder: the folder for the results, made if it is not there. Files of an earlier run are overwritten.
        classes: the dataset's classes; files hold their ids.
        rank, world_size: this process's rank and the number of ranks.

    Raises:
        InputError: if the folder cannot be written.
    """

    result: str  # name of the file or folder that `close` returns
    pictures: str = ""  # folder of the images' PNGs, if there are any

    def __init__(self, folder: str | Path, classes: Classes, rank: int = 0, world_size: int = 1):
        self.folder = Path(folder)
        self.classes = classes
        self.rank = rank
        self.world_size = world_size
        try:
            self._pictures.mkdir(parents=True, exist_ok=True)
            self._rows = self._part(rank).open("w")
        except OSError as error:
            raise InputError(
                f"cannot write results to {self.folder} ({error.strerror}): choose another folder"
            ) from error

    @staticmethod
    def file_name(name: str) -> str:
        """The name in the results of the image `name`."""
        return name

    def check_names(self, names: Iterable[str]) -> None:
        """Raise InputError if a PNG of the images `names`, of all ranks, would replace another's.

        Every rank may call it before the first image; after an error nothing can be added.
        """
        taken: dict[str, str] = {}
        for name in names if self.pictures else ():
            file_name = self.file_name(name)
            if file_name in taken:
                self._rows.close()
                self._part(self.rank).unlink()
                raise InputError(
                    f"the results of {taken[file_name]} and {name} would both be {file_name} in {self._pictures}: "
                    "rename one of the images, or evaluate without saving predictions"
                )
            taken[file_name] = name

    def add(self, prediction: Segmentation | Instances, name: str, image_id: ImageId) -> None:
        """Write an image's result, given its name or path in the dataset and the dataset's id."""
        self.note(*self.save(prediction, name, image_id))

    @abstractmethod
    def save(self, prediction: Segmentation | Instances, name: str, image_id: ImageId) -> Row:
        """Write an image's PNG, if there is one; give the row that `note` takes.

        The costly part of `add`: it may run in a thread, or in another process on a pickled copy of the writer.
        """

    def note(self, image_id: ImageId, file_name: str, text: str) -> None:
        """Keep an image's row for the result."""
        # JSON has no bare tab, so rank 0 need not parse the text again.
        self._rows.write(json.dumps([image_id, file_name]) + "\t" + text + "\n")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_rows": None}

    def flush(self) -> None:
        """Make this rank's rows visible to rank 0."""
        self._rows.flush()
        os.fsync(self._rows.fileno())

    def close(self) -> Path:
        """End writing, when every rank has flushed; rank 0 joins the rows in the order of their file names.

        Returns:
            The path of the result.
        """
        self._rows.close()
        path = self.folder / self.result
        if self.rank != 0:
            return path
        parts = [self._part(rank) for rank in range(self.world_size)]
        rows: dict[ImageId, tuple[str, str]] = {}
        for part in parts:
            with part.open() as lines:
                for line in lines:
                    key, text = line.rstrip("\n").split("\t", 1)
                    image_id, file_name = json.loads(key)
                    rows.setdefault(image_id, (file_name, text))
        document = self._document([text for _, text in sorted(rows.values(), key=lambda row: row[0])])
        if document:
            with replacing(path) as draft:
                draft.write_text(document)
        for part in parts:
            part.unlink()
        return path

    def _document(self, rows: list[str]) -> str:
        """The JSON file, from the images' JSON texts; empty if there is no such file."""
        return ""

    def _save_picture(self, ids: np.ndarray, values: Callable[[np.ndarray], np.ndarray], file_name: str) -> None:
        """Write a PNG of the values of a map."""
        with replacing(self._pictures / file_name, synced=False) as draft:
            if ids.size > MAX_PIXELS:
                write_large_png(draft, ids, values)
                return
            pixels = values(ids)
            # Segments are runs: run-length compression takes half the time of the default and no more space.
            Image.fromarray(pixels).save(draft, compress_type=zlib.Z_RLE)

    @property
    def _pictures(self) -> Path:
        return self.folder / self.pictures

    def _part(self, rank: int) -> Path:
        return self.folder / f".{Path(self.result).stem}.{rank}.jsonl"


class PanopticWriter(ResultWriter):
    """Writer of COCO's panoptic result format: `panoptic.json` and one PNG per image in `panoptic/`.

    COCO has the PNGs in one folder, so that a path becomes a name: the PNG of x.jpg is x.png, that of a/x.jpg is
    a_x.png. A pixel's segment id is R + 256 G + 65536 B of the PNG, 0 where no segment is. The JSON file appears
    only when it is complete.
    """

    result = "panoptic.json"
    pictures = "panoptic"

    @staticmethod
    def file_name(name: str) -> str:
        """The PNG's name in `panoptic/`."""
        return f"{flat_name(_relative(name).with_suffix(''))}.png"

    def save(self, segmentation: Segmentation, name: str, image_id: ImageId) -> Row:
        file_name = self.file_name(name)
        self._save_picture(segmentation.ids.numpy(force=True), ids_to_rgb, file_name)
        return image_id, file_name, json.dumps(panoptic_row(segmentation, self.classes, image_id, file_name))

    def _document(self, rows: list[str]) -> str:
        return f'{{"annotations": [{", ".join(rows)}], "categories": {json.dumps(self.classes.to_list())}}}'


class InstanceWriter(ResultWriter):
    """Writer of COCO's result format of objects: `instances.json`, one list of all images' objects.

    See `object_rows`. The file appears only when it is complete. Where no image has an object, it holds one of no
    pixels and score 0: pycocotools' `loadRes` fails on an empty list, and no score counts that object.
    """

    result = "instances.json"
    _NOTHING = "nothing: "  # before the row of an image without an object

    def save(self, instances: Instances, name: str, image_id: ImageId) -> Row:
        labels, scores = instances.labels.tolist(), instances.scores.tolist()
        rows = object_rows(instances.rles, labels, scores, self.classes, image_id)
        if rows:
            return image_id, name, json.dumps(rows)[1:-1]
        height, width = instances.size
        empty = coco_mask.frPyObjects({"size": [height, width], "counts": [height * width]}, height, width)
        (nothing,) = object_rows([empty], [0], [0.0], self.classes, image_id)
        return image_id, name, self._NOTHING + json.dumps(nothing)

    def _document(self, rows: list[str]) -> str:
        found = [row for row in rows if not row.startswith(self._NOTHING)]
        if rows and not found:
            log.info("no image has an object: %s holds an empty one of score 0, so that it can be loaded", self.result)
            found = [rows[-1].removeprefix(self._NOTHING)]
        return f"[{', '.join(found)}]"


class SemanticWriter(ResultWriter):
    """Writer of label maps: one PNG per image in `semantic/`, whose values are the dataset's own class ids.

    The PNGs are in folders as the images are: that of a/x.jpg is `semantic/a/x.png`. Pixels without a class are 0,
    or, where 0 is a class, 255. Files are of 8 bits, or, where the values need more, of 16 bits; pixels without a
    class are then 65535 if 0 is a class.

    Raises:
        InputError: if the folder cannot be written, or the ids do not fit into 16 bits.
    """

    result = "semantic"
    pictures = "semantic"

    def __init__(self, folder: str | Path, classes: Classes, rank: int = 0, world_size: int = 1):
        largest = max(classes.ids)
        nothing = 0 if 0 not in classes.ids else 255 if largest < 255 else 65535
        if min(classes.ids) < 0 or largest > 65535 or nothing in classes.ids:
            raise InputError(
                f"category ids from {min(classes.ids)} to {largest} do not fit into a label PNG: "
                "use ids from 1 to 65535 in the dataset's categories"
            )
        dtype = np.uint8 if max(largest, nothing) <= 255 else np.uint16
        self._values = np.array([nothing, *classes.ids], dtype=dtype)
        super().__init__(folder, classes, rank, world_size)

    @staticmethod
    def file_name(name: str) -> str:
        """The PNG's path in `semantic/`."""
        return _relative(name).with_suffix(".png").as_posix()

    def save(self, segmentation: Segmentation, name: str, image_id: ImageId) -> Row:
        values = self._values[np.append(0, segmentation.labels.numpy(force=True) + 1)]
        file_name = self.file_name(name)
        self._save_picture(segmentation.ids.numpy(force=True), values.__getitem__, file_name)
        return image_id, file_name, ""


def write_large_png(path: Path, ids: np.ndarray, values: Callable[[np.ndarray], np.ndarray]) -> None:
    """Write the values of a map as a PNG some rows at a time, which Pillow cannot.

    Args:
        path: the file.
        ids: the map, int32 [H, W].
        values: makes uint8 or uint16 [h, W], or uint8 [h, W, 3], of some rows.
    """
    first = values(ids[:1])
    kind = struct.pack(">IIBBBBB", ids.shape[1], ids.shape[0], 8 * first.itemsize, 2 if first.ndim == 3 else 0, 0, 0, 0)
    packed = zlib.compressobj(6, zlib.DEFLATED, 15, 9, zlib.Z_RLE)
    above = np.zeros((1, ids.shape[1] * first.itemsize * (3 if first.ndim == 3 else 1)), dtype=np.uint8)
    with path.open("wb") as file:

        def chunk(name: bytes, data: bytes) -> None:
            file.write(struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)))

        file.write(b"\x89PNG\r\n\x1a\n")
        chunk(b"IHDR", kind)
        for rows in row_blocks(ids):
            pixels = values(rows)
            pixels = np.ascontiguousarray(pixels, dtype=pixels.dtype.newbyteorder(">"))
            lines = np.concatenate([above, pixels.view(np.uint8).reshape(len(rows), -1)])
            above = lines[-1:]
            # The filter "up": differences to the row above, mostly zeros.
            chunk(b"IDAT", packed.compress(np.pad(np.diff(lines, axis=0), ((0, 0), (1, 0)), constant_values=2).data))
        chunk(b"IDAT", packed.flush())
        chunk(b"IEND", b"")


def flat_name(name: PurePath) -> str:
    """A relative path as the name of one file: a/x becomes a_x. The end of a long one is kept."""
    return shortened("_".join(name.parts))


def shortened(name: str) -> str:
    """The end of a file name, short enough for suffixes."""
    return os.fsencode(name)[-LONGEST_NAME:].decode(errors="ignore")


def _relative(name: str) -> PurePath:
    """A name as a path that only leads downwards: results stay in their folder."""
    path = PurePath(name)
    return PurePath(*(part for part in path.parts if part not in (path.anchor, "..")))


def object_rows(
    rles: Sequence[dict], labels: Sequence[int], scores: Sequence[float], classes: Classes, image_id: ImageId
) -> list[dict[str, Any]]:
    """An image's S objects in COCO's result format, plain values fit for JSON.

    Args:
        rles: S masks as compressed run lengths, {"size": [H, W], "counts": bytes}.
        labels, scores: S classes and scores.
        classes: the dataset's classes; the rows name their ids.
        image_id: the dataset's id of the image.

    Returns:
        S rows of image_id, category_id, segmentation and score. No `bbox`: pycocotools' `loadRes` takes an object's
        area from its box where there is one, and so sorts it among small, medium and large ones.
    """
    return [
        {
            "image_id": image_id,
            "category_id": classes[label].id,
            "segmentation": {"size": list(code["size"]), "counts": code["counts"].decode("ascii")},
            "score": score,
        }
        for code, label, score in zip(rles, labels, scores, strict=True)
    ]


def panoptic_row(segmentation: Segmentation, classes: Classes, image_id: ImageId, file_name: str) -> dict[str, Any]:
    """An image's segments in COCO's panoptic format, plain values fit for JSON.

    Args:
        segmentation: the segments, at the image's original size.
        classes: the dataset's classes; the row names their ids.
        image_id: the dataset's id of the image.
        file_name: the name of the PNG.

    Returns:
        image_id, file_name and segments_info: id, category_id, area and bbox (left, top, width, height in whole
        pixels) of each segment.
    """
    columns = segmentation.labels.tolist(), segmentation.areas.tolist(), segmentation.boxes().tolist()
    segments = [
        {"id": number, "category_id": classes[label].id, "area": area, "bbox": box}
        for number, (label, area, box) in enumerate(zip(*columns, strict=True), start=1)
    ]
    return {"image_id": image_id, "file_name": file_name, "segments_info": segments}


def ids_to_rgb(ids: np.ndarray) -> np.ndarray:
    """COCO's colours for segment ids 0..2^24-1: [H, W] to uint8 [H, W, 3], id = R + 256 G + 65536 B."""
    return np.ascontiguousarray(ids, dtype="<u4").view(np.uint8).reshape(*ids.shape, 4)[..., :3]
