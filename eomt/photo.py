"""Photos of any kind as 8-bit red, green and blue, turned upright by their EXIF orientation."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from eomt.errors import InputError, reason

Form = Literal["upright", "stored"]

try:
    import pillow_heif  # the extra `heif`

    _HEIF = True
except ImportError:  # also of its libraries
    _HEIF = False

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", *["HEIF"] * _HEIF)
"""Pillow's names of the formats that are read; a file in others of its formats could start a program (EPS)."""

HEIF_SUFFIXES = (".heic", ".heif")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", *HEIF_SUFFIXES * _HEIF)
HEIF_HINT = "" if _HEIF else "; pip install pillow-heif reads HEIC photos"
"""Hint of messages where HEIC photos are not read."""

MAX_PIXELS = 178_956_970
"""The most pixels of an image unless `limit_pixels` changes it: Pillow's bound."""

_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}  # Pillow's modes by the number of channels
# What turns a stored photo upright, by its orientation (EXIF 2.3, tag 274).
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_STORED = _UPRIGHT | {6: _UPRIGHT[8], 8: _UPRIGHT[6]}  # the way back
_SIDEWAYS = 5  # from this orientation on, height and width change places


class Photo(NamedTuple):
    """A photo as it was taken from its file.

    Attributes:
        picture: an RGB image of Pillow's, or, of more than 8 bits, uint8 [H, W, 3].
        orientation: the EXIF orientation that the file tells, 1 to 8; 1 if it tells none.
        form: "upright" or "stored".
    """

    picture: Image.Image | NDArray[np.uint8]
    orientation: int
    form: Form

    @property
    def pixels(self) -> NDArray[np.uint8]:
        """uint8 [H, W, 3], red, green, blue, contiguous and writable."""
        return self.picture if isinstance(self.picture, np.ndarray) else np.array(self.picture)


def limit_pixels(count: int) -> None:
    """Change the most pixels that an image may have in this process; larger ones are refused by their headers."""
    # Pillow warns from its bound, and refuses from twice as many.
    Image.MAX_IMAGE_PIXELS = count / 2


def open_image(file: BinaryIO | Path) -> Image.Image:
    """Open an image file in one of `FORMATS`; its pixels are not read yet. HEIF is turned upright as it is opened."""
    if _HEIF and "HEIF" not in Image.OPEN:
        pillow_heif.register_heif_opener()
    return Image.open(file, formats=FORMATS)


def read_photo(
    file: BinaryIO,
    where: str,
    forms: Sequence[Form] = ("upright",),
    size: Callable[[], tuple[int, int] | None] | None = None,
) -> Photo:
    """Read a photo from an open file, as `load_image` does.

    Args:
        file: the open file.
        where: its name in messages.
        forms: the forms that may be taken, the preferred one first. An unusable EXIF block is no orientation.
        size: gives the (height, width) of the photo's ground truth, or None; called if it decides between two forms.
            Another form than the first is taken if only that has this size.

    Raises:
        InputError: if it is no image, damaged, or of more pixels than `limit_pixels` allows.
    """
    # Pillow refuses too many pixels; fewer in a small file may be a scan of an empty page.
    with _faults(where), open_image(file) as image:
        return _taken(image, forms, size)


def pil_photo(image: Image.Image) -> Photo:
    """The photo in a PIL image of any mode; see `read_photo`. An RGB image is itself its picture."""
    with _faults("the PIL image"):
        return _taken(image, ("upright",), None)


@contextmanager
def _faults(where: str) -> Iterator[None]:
    """Turn what is wrong with an image into an InputError that names it."""
    try:
        yield
    except MemoryError:
        raise
    except InputError as error:  # its cause tells whether reading again may help
        raise InputError(f"{where} cannot be read: {error}") from error.__cause__
    except Image.DecompressionBombError as error:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise InputError(
            f"{where} claims more than max_pixels={most:.0f} pixels: raise max_pixels= of predict.py, eval.py or "
            "Segmenter.load for files that you trust"
        ) from error
    except Exception as error:  # Pillow raises many kinds on files that are no images
        no_image = f"it is no image in {', '.join(FORMATS)}; convert it to JPEG or PNG{HEIF_HINT}"
        fault = no_image if isinstance(error, UnidentifiedImageError) else reason(error)
        raise InputError(f"{where} cannot be read: {fault}") from error


def photo_size(data: bytes | bytearray, form: Form = "upright") -> tuple[int, int] | None:
    """The (height, width) of an image file in one of its forms, from its header; None if it is none."""
    try:
        with open_image(io.BytesIO(data)) as image:
            is_turned = form == "upright" and _orientation(image) >= _SIDEWAYS
            return image.size if is_turned else (image.height, image.width)
    except Exception:  # what is wrong with it is said where it is decoded
        return None


def _taken(image: Image.Image, forms: Sequence[Form], size: Callable[[], tuple[int, int] | None] | None) -> Photo:
    """See `read_photo`."""
    # Pillow turns TIFFs as it loads them. PNGs tell their orientation only then.
    found: Form = "upright" if image.format == "TIFF" else "stored"
    orientation = _orientation(image) if found == "upright" else 1
    image.load()
    orientation = _orientation(image) if found == "stored" else orientation
    form = _chosen((image.height, image.width), found, orientation, forms, size)
    if form != found and orientation != 1:
        image = image.transpose((_UPRIGHT if form == "upright" else _STORED)[orientation])
    return Photo(_to_rgb(image), orientation, form)


def _orientation(image: Image.Image) -> int:
    with suppress(Exception):  # damaged EXIF data are no reason to refuse the pixels
        value = image.getexif().get(ExifTags.Base.Orientation)
        return int(value) if value in _UPRIGHT else 1
    return 1


def _chosen(
    shape: tuple[int, int],
    found: Form,
    orientation: int,
    forms: Sequence[Form],
    size: Callable[[], tuple[int, int] | None] | None,
) -> Form:
    """The first form, or the only one of the size that is wanted; `shape` is that of the form `found`."""
    if len(forms) > 1 and size is not None and orientation >= _SIDEWAYS and shape[0] != shape[1]:
        wanted = size()
        for form in forms:
            if wanted == (shape if form == found else shape[::-1]):
                return form
    return forms[0]


def _to_rgb(image: Image.Image) -> Image.Image | NDArray[np.uint8]:
    """Convert a loaded PIL image of any mode, see `Photo.picture`.

    Transparent pixels are put on white; 16-bit values are scaled, 65535 to 255.

    Raises:
        InputError: if its values fit neither 8 nor 16 bits.
    """
    if image.mode.startswith("I") or image.mode == "F":
        # Pillow's own conversion would clip all that is above 255 to white.
        values = np.asarray(image)
        if values.dtype == np.int32:
            if values.min() < 0 or values.max() > 65535:
                raise InputError(f"its values go from {values.min()} to {values.max()}; save it with 8 or 16 bits")
            values = values.astype(np.uint16)
        return array_pixels(values, values.shape)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image)
        image = white
    return image if image.mode == "RGB" else image.convert("RGB")


def array_pixels(values: NDArray[Any], shape: Sequence[int]) -> NDArray[np.uint8]:
    """The pixels of an array [H, W] or [H, W, K] of any type, uint8 [H, W, 3]; see `read_photo`.

    Args:
        values: the array; it is returned itself where it is in this form.
        shape: that of the image as it was given, for messages.

    Raises:
        InputError: if it has another shape, or values that are none of these.
    """
    if values.ndim == 2:
        values = values[..., None]
    if values.ndim != 3 or values.shape[2] not in _MODES or values.size == 0:
        raise InputError(
            f"an image must be an array [H, W] or [H, W, K] or a tensor [H, W] or [K, H, W] with K = 1 (grey), "
            f"2, 3 (RGB) or 4, and at least one pixel; found shape {list(shape)}"
        )
    values = _as_8_bit(values)
    if values.shape[2] == 3:
        return np.ascontiguousarray(values)
    image = Image.fromarray(values[..., 0] if values.shape[2] == 1 else values, _MODES[values.shape[2]])
    return np.array(_to_rgb(image))


def _as_8_bit(values: NDArray[Any]) -> NDArray[np.uint8]:
    if values.dtype == np.uint8:
        return values
    if values.dtype.kind == "u" and values.dtype.itemsize == 2:
        return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if values.dtype.kind == "b":
        return values.astype(np.uint8) * 255
    if values.dtype.kind != "f":
        raise InputError(f"an image must hold uint8, uint16, bool or floating point 0..1, found {values.dtype}")
    low, high = values.min(), values.max()
    # Resizing may overshoot a little; written so that NaN is refused.
    if not (low >= -0.01 and high <= 1.01):
        raise InputError(
            f"an image of floating point must lie in 0..1, found {low:.4g} to {high:.4g}; divide by 255, or give uint8"
        )
    return np.rint(values.clip(0, 1) * 255).astype(np.uint8)
