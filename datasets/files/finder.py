"""Files under the names that annotation tools give them."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from urllib.parse import unquote

from datasets.files.source import Source, is_hidden

_DEEPEST = 16  # the last parts of a path by which a file is found
_ELSEWHERE = re.compile(r"/|[A-Za-z]:/|[A-Za-z][\w+.-]*://")
_QUERY = re.compile(r"(?<=.)[?#].*", re.DOTALL)


class FileFinder:
    """Finder of a source's files.

    A name is a path from the source, from one of `folders`, or from the root of the file system. Where there is no
    such file, a name may differ from a file's path in what tools and systems change (case, Unicode's normal form,
    `%20`, spaces at the ends), and in the folders that stand before one of the two; of a URL or an absolute name, which
    another machine has written, folders do not matter.

    Args:
        source: the archive or folder.
        folders: the data set's other folders.

    Attributes:
        members: all files of the source.
        guessed: the files found of which the name is not the path, by that name.
    """

    def __init__(self, source: Source, folders: Sequence[Path]):
        self.members = source.members()
        self.guessed: dict[str, str] = {}
        self._source = source
        # Normal, for images may be "../photos"; with a slash at the end.
        self._folders = tuple(os.path.join(os.path.normpath(folder), "") for folder in (source.path, *folders))

    def find(self, name: str) -> str:
        """The path within the source of the file that a name stands for.

        Raises:
            ValueError: if there is none, if it may be one of several, or if the name is that of a file elsewhere in
                the data set. The message is a sentence.
        """
        if name in self.members:
            return name
        slashed = name.strip().replace("\\", "/")
        start = self._folders[0]
        paths = list(dict.fromkeys(os.path.normpath(os.path.join(folder, slashed)) for folder in self._folders))
        for path in paths:
            if path.startswith(start) and path.removeprefix(start) in self.members:
                return path.removeprefix(start)
        foreign = bool(_ELSEWHERE.match(slashed))
        found = self._alike(slashed, foreign)
        for path in paths:
            own = not foreign or path.startswith(self._folders)
            if own and not path.startswith(start) and os.path.isfile(path) and not self._is_same(path, found):
                raise ValueError(f"{name!r} is {path}, not in {self._source.path}: choose a folder that holds it")
        if found is None:
            missing = self._source.describe(name.strip())
            raise ValueError(f"{missing} is missing")
        self.guessed[name] = found
        return found

    def _is_same(self, path: str, found: str | None) -> bool:
        with suppress(OSError):
            return found is not None and os.path.samefile(path, self._source.path / found)
        return False

    def _alike(self, name: str, foreign: bool) -> str | None:
        whole, ends = self._listed
        parts = _parts(name)
        for k in range(len(parts)):
            found = whole.get(parts[k:]) or (ends.get(parts[k:]) if k == 0 or foreign else None)
            if found:
                if len(found) > 1:
                    both = " or ".join(map(self._source.describe, found))
                    raise ValueError(f"{name!r} may be {both}: write in the JSON which of them")
                return found[0]
        return None

    @cached_property
    def _listed(self) -> tuple[dict[tuple[str, ...], list[str]], dict[tuple[str, ...], list[str]]]:
        """Two of the files of each path, and of each end of a path."""
        whole, ends = {}, {}
        for name in sorted(self.members):
            # A folder gives bytes that are no UTF-8 as halves of characters.
            if is_hidden(name) or name.encode(errors="ignore").decode() != name:
                continue
            parts = _parts(name)
            for table, first in ((whole, 0), *((ends, k) for k in range(max(0, len(parts) - _DEEPEST), len(parts)))):
                alike = table.setdefault(parts[first:], [])
                if len(alike) < 2:
                    alike.append(name)
        return whole, ends


def _parts(name: str) -> tuple[str, ...]:
    """The folders and the file of a path, without what tools and systems change."""
    name = name.replace("_gtFine_leftImg8bit.", "_leftImg8bit.")  # Cityscapes' own tool writes panoptic JSONs so
    name = unquote(_QUERY.sub("", name) if "://" in name else name)
    parts = (part.strip() for part in unicodedata.normalize("NFC", name.casefold()).split("/"))
    return tuple(part for part in parts if part not in ("", ".", ".."))
