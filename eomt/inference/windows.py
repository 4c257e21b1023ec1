"""Reading a picture by windows: a TIFF without decoding all of it, where rasterio (extra `large`) is installed."""

# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
# pyright: reportMissingImports=false

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from eomt.errors import InputError
from eomt.inference.sources import ImageSource, load_image
from eomt.photo import MAX_PIXELS

log = logging.getLogger("eomt")

Read = Callable[[int, int, int, int], NDArray[np.uint8]]
"""Takes top, left, bottom and right, and returns uint8 [h, w, 3]."""

# Bytes of decoded blocks; and no files beside the TIFF.
_GDAL: dict[str, Any] = {"GDAL_CACHEMAX": 64 * 2**20, "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR"}
_PLAIN, _BLACK_IS_ZERO, _RGB, _YCBCR = ("L", "LA", "RGB", "RGBA", "I;16"), 1, 2, 6


@contextmanager
def opened(source: ImageSource) -> Generator[tuple[tuple[int, int], Read], None, None]:
    """Open a picture: its height and width, and a function that reads a window of it, as `load_image` reads all.

    Raises:
        InputError: see `load_image`; also while windows are read.
    """
    with ExitStack() as stack:
        file = _open_tiff(source, stack)
        if file is None:
            pixels = load_image(source)
            yield pixels.shape[:2], lambda top, left, bottom, right: pixels[top:bottom, left:right]
        else:
            yield file.shape, partial(_read, file, source)


def load_thinned(source: ImageSource, step: int) -> NDArray[np.uint8]:
    """Each `step`-th pixel of each `step`-th row of a picture: uint8 [ceil(H / step), ceil(W / step), 3]."""
    if step == 1:
        return load_image(source)
    with opened(source) as ((height, width), read):
        rows = [read(top, 0, top + 1, width)[:, ::step] for top in range(0, height, step)]
    return np.concatenate(rows)


def _read(file: Any, source: object, top: int, left: int, bottom: int, right: int) -> NDArray[np.uint8]:
    import rasterio.errors  # pyright: ignore[reportMissingTypeStubs]

    try:
        with rasterio.Env(**_GDAL):
            values = file.read(window=((top, bottom), (left, right)))
    except rasterio.errors.RasterioError as error:
        raise InputError(f"{source} cannot be read: {error.__cause__ or error}") from error
    return load_image(values.transpose(1, 2, 0))


def _open_tiff(source: ImageSource, stack: ExitStack) -> Any:
    """A TIFF that rasterio reads as Pillow does; None for any other picture, which is decoded whole."""
    if not isinstance(source, str | Path) or Path(source).suffix.lower() not in (".tif", ".tiff"):
        return None
    source = Path(source).expanduser()
    # What is wrong with it, and with its size, is said where it is decoded.
    with suppress(Exception), Image.open(source, formats=("TIFF",)) as image:
        tags: Any = image.getexif()
        plain = image.mode in _PLAIN and tags.get(262) in (_BLACK_IS_ZERO, _RGB, _YCBCR) and tags.get(274, 1) == 1
        size = image.size
        if plain:
            try:
                import rasterio.errors  # pyright: ignore[reportMissingTypeStubs]
            except ImportError:
                if size[0] * size[1] > MAX_PIXELS:
                    log.warning("%s is decoded whole; pip install rasterio reads it by windows", source)
                return None
            with warnings.catch_warnings(), rasterio.Env(**_GDAL):
                warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
                file = stack.enter_context(rasterio.open(source, driver="GTiff"))
            if (file.width, file.height) == size and file.count == len(image.getbands()):
                return file
    return None
