"""Official result files, as a benchmark's own tools and servers take them."""

from __future__ import annotations

import itertools
import json
import os
import zlib
from collections.abc import Iterable
from pathlib import Path, PurePath

import numpy as np
import torch
from PIL import Image

from eomt.classes import Classes
from eomt.errors import InputError
from eomt.files import replacing
from eomt.postprocess.coco_format import ids_to_rgb, object_rows, panoptic_row
from eomt.postprocess.instance import encode_masks
from eomt.postprocess.types import Instances, Segmentation

LONGEST_NAME = 180  # bytes; file systems take 255, of which drafts and suffixes need some


class ResultWriter:
    """Base of the writers: each rank notes its own images, and rank 0 joins the notes.

    Every rank adds its own images; then all ranks call `flush`, wait for each other, and call `close`. Call
    `check_names` first where the images' names are given, so that a collision is found before the run. An image that
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
        """Check that no image's PNG would replace another's. Every rank may call it before the first image.

        Args:
            names: the names of all images, of all ranks.

        Raises:
            InputError: if two would share a file; nothing can be added then.
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

    def flush(self) -> None:
        """Make this rank's rows visible to rank 0."""
        self._rows.flush()
        os.fsync(self._rows.fileno())

    def close(self) -> Path:
        """End writing; rank 0 joins all ranks' rows, each image once, in the order of their file names.

        Call it when every rank has flushed.

        Returns:
            The path of the result.

        Raises:
            InputError: if two images share a file name, so that one's PNG has replaced the other's.
        """
        self._rows.close()
        path = self.folder / self.result
        if self.rank != 0:
            return path
        parts = [self._part(rank) for rank in range(self.world_size)]
        rows: dict[int | str, tuple[str, str]] = {}
        for part in parts:
            with part.open() as lines:
                for line in lines:
                    key, text = line.rstrip("\n").split("\t", 1)
                    image_id, file_name = json.loads(key)
                    rows.setdefault(image_id, (file_name, text))
        image_ids = sorted(rows, key=lambda image_id: rows[image_id][0])
        for one, other in itertools.pairwise(image_ids):
            if self.pictures and rows[one][0] == rows[other][0]:
                raise InputError(
                    f"images {one} and {other} share the name {rows[one][0]} in {self._pictures}: "
                    "give them different file names"
                )
        document = self._document([rows[image_id][1] for image_id in image_ids])
        if document:
            with replacing(path) as draft:
                draft.write_text(document)
        for part in parts:
            part.unlink()
        return path

    def _document(self, rows: list[str]) -> str:
        """The JSON file, from the images' JSON texts; empty if there is no such file."""
        return ""

    def _note(self, image_id: int | str, file_name: str, text: str = "") -> None:
        # JSON has no bare tab, so rank 0 need not parse the text again.
        self._rows.write(json.dumps([image_id, file_name]) + "\t" + text + "\n")

    def _save_picture(self, pixels: np.ndarray, file_name: str) -> None:
        """Write a PNG in one step."""
        path = self._pictures / file_name
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.{self.rank}")
        # Segments are runs: run-length compression takes half the time of the default and no more space.
        Image.fromarray(pixels).save(draft, format="PNG", compress_type=zlib.Z_RLE)
        os.replace(draft, path)

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

    def add(self, segmentation: Segmentation, name: str, image_id: int | str) -> None:
        """Write one image's PNG and note its row.

        Args:
            segmentation: the prediction, at the image's original size.
            name: the image's file name, or its path in the dataset.
            image_id: the dataset's id of the image.
        """
        file_name = self.file_name(name)
        self._save_picture(ids_to_rgb(segmentation.ids.to(torch.int32).numpy(force=True)), file_name)
        self._note(image_id, file_name, json.dumps(panoptic_row(segmentation, self.classes, image_id, file_name)))

    def _document(self, rows: list[str]) -> str:
        return f'{{"annotations": [{", ".join(rows)}], "categories": {json.dumps(self.classes.to_list())}}}'


class InstanceWriter(ResultWriter):
    """Writer of COCO's result format of objects: `instances.json`, one list of all images' objects.

    See `object_rows`. The file appears only when it is complete. Where no image has an object, the file has one with
    an empty mask and score 0: it changes no number, and pycocotools' `loadRes` fails on an empty list.
    """

    result = "instances.json"

    def __init__(self, folder: str | Path, classes: Classes, rank: int = 0, world_size: int = 1):
        super().__init__(folder, classes, rank, world_size)
        self._no_object = ""

    def add(self, instances: Instances, name: str, image_id: int | str) -> None:
        """Note one image's objects.

        Args:
            instances: the prediction, at the image's original size.
            name: the image's file name; images are ordered by it.
            image_id: the dataset's id of the image.
        """
        labels, scores = instances.labels.tolist(), instances.scores.tolist()
        if not labels and not self._no_object:
            empty = encode_masks(torch.zeros(1, *instances.size, dtype=torch.bool))
            self._no_object = json.dumps(object_rows(empty, [0], [0.0], self.classes, image_id))
        rows = object_rows(instances.rles, labels, scores, self.classes, image_id)
        self._note(image_id, name, json.dumps(rows)[1:-1])

    def _document(self, rows: list[str]) -> str:
        present = list(filter(None, rows))
        return f"[{', '.join(present)}]" if present else self._no_object or "[]"


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

    def add(self, segmentation: Segmentation, name: str, image_id: int | str) -> None:
        """Write one image's PNG.

        Args:
            segmentation: the prediction, at the image's original size.
            name: the image's file name, or its path in the dataset.
            image_id: the dataset's id of the image.
        """
        values = self._values[np.append(0, segmentation.labels.numpy(force=True) + 1)]
        file_name = self.file_name(name)
        self._save_picture(values[segmentation.ids.numpy(force=True)], file_name)
        self._note(image_id, file_name)


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
