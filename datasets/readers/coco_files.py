"""Where the files of COCO's formats lie: the official archives, the same extracted, or a JSON of one's own."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

from datasets.files.archive import ZipArchive, find_source
from datasets.files.source import Folder, Member, Source
from eomt.errors import InputError


class JsonFile(NamedTuple):
    """An annotation file in an archive or a folder.

    Attributes:
        source: what holds it.
        name: its name there.
        member: its place there.
    """

    source: Source
    name: str
    member: Member

    @property
    def stem(self) -> str:
        return self.name.removesuffix(".json")

    def describe(self) -> str:
        """How messages call it."""
        return self.source.describe(self.name)

    def digest(self) -> bytes:
        """Changes when its contents do."""
        return self.source.digest(self.name)

    def chunks(self) -> Iterator[bytes]:
        """Its bytes in pieces of about 1 MiB."""
        return self.source.chunks(self.name, self.member)

    def beside(self) -> Source | None:
        """The archive or folder of the same stem beside it, where there is one."""
        if isinstance(self.source, Folder):
            return find_source(self.source.path, self.stem)
        name = f"{self.stem}.zip"
        member = self.source.members().get(name)
        return self.source.nested(name, member, self.stem) if member else None


def open_root(root: str | Path | None, needs: str) -> Path:
    """The folder that holds a dataset, absolute.

    Args:
        root: as configured.
        needs: what the folder must hold, for the message.

    Raises:
        InputError: if none is given or it is no folder.
    """
    if root is None:
        raise InputError("data.root is not set: give the folder that holds the dataset, as in data.root=DIR")
    path = Path(root).expanduser().absolute()
    if not path.is_dir():
        raise InputError(f"data.root: {path} is no folder; it must hold {needs}, as downloaded")
    return path


def is_path(annotations: str) -> bool:
    """Whether annotations are given as a path to their JSON, not by their name among the official ones."""
    return annotations.endswith(".json")


def find_json(root: Path, annotations: str, archive: str) -> Iterator[JsonFile]:
    """The places where a JSON is found, the one to prefer first.

    Args:
        root: the dataset's folder.
        annotations: a path ending in .json, absolute or below the root; or a name without suffix, which stands for
            `annotations/NAME.json` in the archive, or else below the root.
        archive: the file name of the official archive.
    """
    extracted = Path(root, annotations) if is_path(annotations) else root / "annotations" / f"{annotations}.json"
    if not is_path(annotations) and (root / archive).is_file():
        packed = ZipArchive(root / archive, "annotations")
        member = packed.members().get(extracted.name)
        if member:
            yield JsonFile(packed, extracted.name, member)
    if extracted.is_file():
        yield JsonFile(Folder(extracted.parent), extracted.name, Member(0, 0, 0, 0, 0, 0))


def require(root: Path, found: dict[str, object]) -> None:
    """Say what is missing, all at once.

    Args:
        root: the dataset's folder.
        found: by how messages call it, each thing that was looked for, None where it was not found.

    Raises:
        InputError: if one is None.
    """
    missing = " and ".join(what for what, thing in found.items() if thing is None)
    if missing:
        raise InputError(
            f"data.root: {root} lacks {missing}; download it, no need to unpack it, or name files of your own by "
            "`images` and `annotations` of data.train and data.val"
        )


def index_key(kind: str, json: JsonFile, *sources: Source) -> str:
    """A key for `open_index` that changes with the JSON's contents and with the files beside it."""
    state = blake2b(json.digest(), digest_size=16)
    for source in sources:
        state.update(source.fingerprint())
    return f"{kind}-{json.stem[:80]}-{state.hexdigest()}"
