"""Official result files: what a benchmark's own tools and servers score."""

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
from eomt.postprocess.types import Instances, Segmentation

LONGEST_NAME = 180  # bytes; file systems take 255, of which drafts and suffixes need some


class ResultWriter:
    """What all writers share: each rank notes its own images, rank 0 joins them.

    Every rank adds its own images; then all ranks call `flush`, wait for each other, and call `close`. Who
    does not choose the images' names calls `check_names` first, so that no long run ends in vain. An image that was
    added twice, as samplers pad the last batch of some ranks, stands in the results once.

    Args:
        folder: made if it is not there. Files of an earlier run are overwritten.
        classes: ids in the files are the dataset's own.
        rank, world_size: of this process.

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
        """How an image of this name is called in the results."""
        return name

    def check_names(self, names: Iterable[str]) -> None:
        """See that no image's PNG would replace another's. All ranks can ask the same before the first image.

        Args:
            names: of all images, also of those that other ranks add.

        Raises:
            InputError: if one would; nothing can be added then.
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
        # JSON has no bare tab, and rank 0 need not parse the text again.
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
    """Writes COCO's panoptic result format: `panoptic.json` and one PNG per image in `panoptic/`.

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
            segmentation: at the image's original size.
            name: the image's file name, or its path in the dataset.
            image_id: the dataset's id of the image.
        """
        file_name = self.file_name(name)
        self._save_picture(ids_to_rgb(segmentation.ids.to(torch.int32).numpy(force=True)), file_name)
        self._note(image_id, file_name, json.dumps(panoptic_row(segmentation, self.classes, image_id, file_name)))

    def _document(self, rows: list[str]) -> str:
        return f'{{"annotations": [{", ".join(rows)}], "categories": {json.dumps(self.classes.to_list())}}}'


class InstanceWriter(ResultWriter):
    """Writes COCO's result format of objects: `instances.json`, one list of all images' objects.

    Each has image_id, category_id, segmentation (compressed run lengths), score and bbox. The file appears
    only when it is complete. An image without objects leaves no trace in it.
    """

    result = "instances.json"

    def add(self, instances: Instances, name: str, image_id: int | str) -> None:
        """Note one image's objects.

        Args:
            instances: at the image's original size.
            name: the image's file name, by which the images are ordered.
            image_id: the dataset's id of the image.
        """
        labels, scores = instances.labels.tolist(), instances.scores.tolist()
        rows = object_rows(instances.rles, labels, scores, self.classes, image_id)
        self._note(image_id, name, json.dumps(rows)[1:-1])

    def _document(self, rows: list[str]) -> str:
        return f"[{', '.join(filter(None, rows))}]"


class SemanticWriter(ResultWriter):
    """Writes label maps: one PNG per image in `semantic/`, whose values are the dataset's own class ids.

    The PNGs stand in folders as the images do: that of a/x.jpg is `semantic/a/x.png`. Pixels without a
    class are 0, or, where 0 is a class, 255. Files are of 8 bits; if the values need more, of 16 bits, and pixels
    without a class are then 65535 if 0 is a class.

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
            segmentation: at the image's original size.
            name: the image's file name, or its path in the dataset.
            image_id: the dataset's id of the image.
        """
        values = self._values[np.append(0, segmentation.labels.numpy(force=True) + 1)]
        file_name = self.file_name(name)
        self._save_picture(values[segmentation.ids.numpy(force=True)], file_name)
        self._note(image_id, file_name)


def _relative(name: str) -> PurePath:
    """A name as a path that leads nowhere but downwards: results stay in their folder."""
    path = PurePath(name)
    return PurePath(*(part for part in path.parts if part not in (path.anchor, "..")))


def flat_name(name: PurePath) -> str:
    """A relative path as the name of one file: a/x becomes a_x. Of a long one the end is kept."""
    return shortened("_".join(name.parts))


def shortened(name: str) -> str:
    """The end of a file name, as much as leaves room for suffixes."""
    return os.fsencode(name)[-LONGEST_NAME:].decode(errors="ignore")
