"""Images as `Segmenter` is given them: one or several, and folders of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypeGuard, cast

import numpy as np
from PIL import Image
from torch import Tensor

from eomt.errors import InputError
from eomt.photo import IMAGE_SUFFIXES, ImageSource, files_below, is_address, is_file, is_image, no_image


def is_single(images: object) -> TypeGuard[ImageSource]:
    """True for one source, a folder's among them, of which many could be iterated over."""
    if isinstance(images, np.ndarray | Tensor):
        return images.ndim < 4
    return isinstance(images, str | Path | bytes | bytearray | memoryview | Image.Image) or is_file(images)


def listed(images: ImageSource | Iterable[ImageSource]) -> Iterable[ImageSource]:
    """Images one by one, of a single one as well; InputError for what is none and holds none."""
    if is_single(images):
        return [images]
    if isinstance(images, Mapping) or not isinstance(images, Iterable):
        raise no_image(cast("object", images))
    return cast("Iterable[ImageSource]", images)


def is_folder(image: object) -> bool:
    """True for the path of a folder on this machine."""
    # An empty path would be the folder that we are in.
    path = str(image) if isinstance(image, str | Path) and not is_address(image) else ""
    return path != "" and Path(path).expanduser().is_dir()


def expanded(images: Iterable[ImageSource]) -> Iterator[ImageSource]:
    """Images, with those in each folder in its place."""
    for image in images:
        if not (isinstance(image, str | Path) and is_folder(image)):
            yield image
            continue
        found = sorted(filter(is_image, files_below(Path(image).expanduser())))
        if not found:
            raise InputError(f"{image} has no image: names must end in {' '.join(IMAGE_SUFFIXES)}")
        yield from found
