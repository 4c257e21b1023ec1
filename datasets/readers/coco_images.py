"""The images of a COCO JSON, and the files of them and of their PNGs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from datasets.files.finder import FileFinder
from datasets.files.source import Member, Source
from datasets.readers.coco_values import file_name, image_id, side
from datasets.readers.faults import Faults
from eomt.targets import ImageId


class CocoImages:
    """The images in the JSON's order.

    Args:
        faults: takes what is wrong with them.
        folders: the data set's folders, to which file names may be relative.

    Attributes:
        names, sizes, ids: the file name, (height, width) and id of each.
        index_of: the first image of each id.
        bad: those that are left out.
        remarks: lines on how files were found.
    """

    def __init__(self, faults: Faults, folders: Sequence[Path]):
        self.faults = faults
        self._folders = folders
        self.names: list[str] = []
        self.sizes: list[tuple[int, int]] = []
        self.ids: list[ImageId] = []
        self.index_of: dict[ImageId, int] = {}
        self.bad: set[int] = set()
        self.remarks: list[str] = []

    def add(self, row: Mapping) -> None:
        """Take an element of `images`; one of ROW_ERRORS if it breaks the format."""
        number, size, name = image_id(row, "id"), (side(row, "height"), side(row, "width")), file_name(row)
        self.index_of.setdefault(number, len(self.names))
        self.ids.append(number)
        self.sizes.append(size)
        self.names.append(name)

    def of(self, row: Mapping) -> int:
        """The index of the image to which an annotation belongs. ValueError if there is none."""
        number = image_id(row, "image_id")
        for written in (number, str(number), int(number) if str(number).isdecimal() else number):
            if written in self.index_of:
                return self.index_of[written]
        first = repr(next(iter(self.index_of)))[:60]
        raise ValueError(f"it belongs to the unknown image id {number!r}; the first image has the id {first}")

    def leave_out(self, image: int, line: str) -> None:
        """Note why an image is bad."""
        self.faults.add(line)
        self.bad.add(image)

    def check_names(self) -> None:
        """Leave out an image whose id or name is an earlier one's, and the earlier one of two images of one id."""
        for what, values in (("id", self.ids), ("file name", self.names)):
            first: dict[ImageId, int] = {}
            for image, value in enumerate(values):
                earlier = first.setdefault(value, image)
                if earlier != image and image not in self.bad:
                    self.leave_out(image, f"the image {what} {value!r} stands more than once among the images")
                if self.names[earlier] != self.names[image] and earlier not in self.bad:
                    both = f"{self.names[earlier]} and {self.names[image]}"
                    self.leave_out(earlier, f"the image id {value!r} is that of {both}: annotations may be of either")

    def find_files(self, source: Source, names: Mapping[int, str]) -> dict[int, tuple[str, Member]]:
        """Path and location of the files that images name; an image is bad if it has none, or an earlier one's."""
        finder, files, name_of = FileFinder(source, self._folders), {}, {}
        for image, name in names.items():
            try:
                found = finder.find(name)
            except ValueError as error:
                self.leave_out(image, str(error))
                continue
            if name_of.setdefault(found, name) != name:
                self.leave_out(image, f"{name_of[found]!r} and {name!r} are both the file {source.describe(found)}")
            files[image] = found, finder.members[found]
        if finder.guessed:
            name, found = next(iter(finder.guessed.items()))
            self.remarks.append(
                f"{len(finder.guessed)} of {len(names)} files are found by names like theirs, the first: {found} for "
                f"{name!r}; if that is wrong, write the files' own names into the JSON"
            )
        return files
