"""Photos of any kind as 8-bit red, green and blue, turned upright by their EXIF orientation."""

from __future__ import annotations

import http.client
import io
import re
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple, Protocol, TypeAlias, TypeGuard

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor

from eomt.errors import InputError, reason
from eomt.files import walk


class Readable(Protocol):
    """A file that is open for reading bytes."""

    def read(self) -> bytes: ...


ImageSource: TypeAlias = str | Path | bytes | Readable | Image.Image | NDArray[Any] | Tensor
Form = Literal["upright", "stored"]

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
"""Pillow's names of the formats that are read; a file in others of its formats could start a program (EPS)."""

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
MOST_BYTES = 128 * 2**20
"""The largest image that is downloaded, in bytes."""
MAX_PIXELS = 178_956_970
"""The most pixels of an image unless `limit_pixels` changes it: Pillow's bound."""

# Seconds for a server's next bytes, and for all of them.
_PATIENCE, _LONGEST = 10, 60
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")

CHANNELS = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}  # Pillow's modes by the number of channels
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
        pixels: uint8 [H, W, 3], red, green, blue.
        orientation: the EXIF orientation that the file tells, 1 to 8; 1 if it tells none.
        form: "upright" or "stored".
    """

    pixels: NDArray[np.uint8]
    orientation: int
    form: Form


def load_image(source: ImageSource) -> NDArray[np.uint8]:
    """Read an image.

    EXIF orientations are applied, as viewers do. Transparent pixels are put on white. 16-bit values are scaled, 65535
    to 255. The first of several frames or pages is read.

    Args:
        source: one of

            - a JPEG, PNG, TIFF, WebP, BMP or GIF file, or the bytes of one, or one that is opened with "rb", which is
              read from where it stands,
            - the http:// or https:// address of one, see `download`,
            - a PIL image of any mode,
            - an array [H, W] (grey) or [H, W, K], or a tensor [H, W] or [K, H, W], with K = 1 grey, 2 grey and
              alpha, 3 RGB, or 4 RGB and alpha; uint8, uint16, bool, or floating point 0..1. OpenCV's arrays are
              blue, green, red: give `array[..., ::-1]`.

    Returns:
        uint8 [H, W, 3], red, green, blue; the given array itself where it is in this form.

    Raises:
        InputError: if the file is missing, damaged or no image, or values or shape are none of those above.
    """
    if is_address(source):
        return read_photo(io.BytesIO(download(source)), _shown(source)).pixels
    if isinstance(source, str | Path):
        if not str(source):
            raise InputError("an image's path is empty")
        return _from_file(Path(source).expanduser())
    if is_file(source):
        return read_photo(io.BytesIO(_read(source)), "the image in this file").pixels
    if isinstance(source, bytes | bytearray | memoryview):
        return read_photo(io.BytesIO(source), "the image in these bytes").pixels
    if isinstance(source, Image.Image):
        return _from_pil(source, "the PIL image").pixels
    if isinstance(source, Tensor):
        values = source.detach()
        # NumPy has no bfloat16.
        values = (values.float() if values.is_floating_point() else values).numpy(force=True)
        return _from_array(values if values.ndim != 3 else values.transpose(1, 2, 0), list(values.shape))
    if isinstance(source, np.ndarray):
        return _from_array(source, list(source.shape))
    raise no_image(source)


def no_image(source: object) -> InputError:
    """The error about what is no image of any form."""
    hint = ", which cv2.imread gives for a file that it cannot read" if source is None else ""
    return InputError(
        'an image must be a path, an address, bytes, a file opened with "rb", a PIL image, a NumPy array or a tensor, '
        f"and several a list of these; found {type(source).__name__}{hint}"
    )


def limit_pixels(count: int) -> None:
    """Change the most pixels that an image may have in this process; larger ones are refused by their headers."""
    # Pillow warns from its bound, and refuses from twice as many.
    Image.MAX_IMAGE_PIXELS = count / 2


def files_below(folder: Path) -> Iterator[Path]:
    """The files in a folder and all below it, without hidden ones."""
    for parent, names in walk(folder, hidden=False):
        yield from (Path(parent, name) for name in names if not name.startswith("."))


def is_image(path: Path) -> bool:
    """True for a file with an image's suffix."""
    return path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()


def is_address(source: object) -> TypeGuard[str]:
    """True for an address such as https://host/photo.jpg. A file of that name is none."""
    return isinstance(source, str) and bool(_ADDRESS.match(source)) and not Path(source).is_file()


def is_file(source: object) -> TypeGuard[Readable]:
    """True for an open file, or what is read like one."""
    return callable(getattr(source, "read", None))


def content_of(source: ImageSource) -> bytes | None:
    """The bytes of what can be had only once, an address or an open file; None for any other image.

    Raises:
        InputError: see `download`; or if a file is closed, or opened as text.
    """
    return download(source) if is_address(source) else _read(source) if is_file(source) else None


def _read(file: Readable) -> bytes:
    try:
        content: object = file.read()
    except (OSError, ValueError) as error:  # closed, or binary but opened as text
        raise InputError(f'the image in this file cannot be read: {reason(error)}; open it with "rb"') from error
    if not content:
        raise InputError("this file has no bytes from where it stands: has it been read before? file.seek(0) goes back")
    if not isinstance(content, bytes):
        raise InputError(f'a file must give bytes, found {type(content).__name__}: open it with "rb"')
    return content


def download(address: str) -> bytes:
    """Download a file of at most `MOST_BYTES` within a minute, by http or https alone, also where it is redirected.

    Raises:
        InputError: if the address is another, or the server cannot be reached, refuses, is too slow or sends too much.
    """
    name, deadline = _shown(address), time.monotonic() + _LONGEST
    if address.partition("://")[0].lower() not in ("http", "https"):
        raise InputError(f"{name}: only http:// and https:// addresses are read; download the file and give its path")
    # Not urllib's default opener, which a redirection may lead to ftp.
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    content = io.BytesIO()
    try:
        request = urllib.request.Request(address, headers={"User-Agent": "eomt"})
        with opener.open(request, timeout=_PATIENCE) as response:
            while part := response.read1(2**16):
                content.write(part)
                if content.tell() > MOST_BYTES:
                    raise InputError(f"{name} has more than {MOST_BYTES >> 20} MiB: download it and give its path")
                if time.monotonic() > deadline:
                    raise InputError(f"{name} takes longer than {_LONGEST} s: download it and give its path")
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise InputError(f"{name} cannot be downloaded: {reason(error)}") from error
    return content.getvalue()


def _shown(address: str) -> str:
    """An address in messages: without its query, which may hold a secret."""
    return address.partition("?")[0]


def read_photo(
    file: BinaryIO,
    where: str,
    forms: Sequence[Form] = ("upright",),
    size: Callable[[], tuple[int, int] | None] | None = None,
) -> Photo:
    """Read a photo from an open file, as `load_image` does; pixels are writable.

    Args:
        file: the open file.
        where: its name in messages.
        forms: the forms that may be taken, the preferred one first. An unusable EXIF block is no orientation.
        size: gives the (height, width) of the photo's ground truth, or None; called if it decides between two forms.
            Another form than the first is taken if only that has this size.

    Raises:
        InputError: if it is no image, damaged, or of more pixels than `limit_pixels` allows.
    """
    try:
        # Pillow refuses too many pixels; fewer in a small file may be a scan of an empty page.
        with Image.open(file, formats=FORMATS) as image:
            return _from_pil(image, where, forms, size)
    except (InputError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise InputError(
            f"{where} claims more than max_pixels={most:.0f} pixels: raise max_pixels= of predict.py, eval.py or "
            "Segmenter.load for files that you trust"
        ) from error
    except Exception as error:  # Pillow raises many kinds on files that are no images
        reason = (
            f"it is no image in {', '.join(FORMATS)}; convert it to JPEG or PNG"
            if isinstance(error, UnidentifiedImageError)
            else error
        )
        raise InputError(f"{where} cannot be read: {reason}") from error


def photo_size(data: bytes | bytearray, form: Form = "upright") -> tuple[int, int] | None:
    """The (height, width) of an image file in one of its forms, from its header; None if it is none."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            is_turned = form == "upright" and _orientation(image) >= _SIDEWAYS
            return image.size if is_turned else (image.height, image.width)
    except Exception:  # what is wrong with it is said where it is decoded
        return None


def _from_file(path: Path) -> NDArray[np.uint8]:
    if not path.is_file():
        raise InputError(f"{path} is a folder, not an image" if path.is_dir() else f"{path}: no such file")
    try:
        # Opened here: given a name, Pillow memory-maps uncompressed grey TIFFs and shears those with an orientation.
        with path.open("rb") as file:
            return read_photo(file, str(path)).pixels
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error


def _to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    """Convert a loaded PIL image of any mode: uint8 [H, W, 3], red, green, blue, contiguous and writable.

    Transparent pixels are put on white; 16-bit values are scaled, 65535 to 255.

    Raises:
        InputError: if its values fit neither 8 nor 16 bits.
    """
    if not (image.mode.startswith("I") or image.mode == "F"):
        return _as_rgb(image)
    # Pillow's own conversion would clip all that is above 255 to white.
    values = np.asarray(image)
    if values.dtype == np.int32:
        if values.min() < 0 or values.max() > 65535:
            raise InputError(f"its values go from {values.min()} to {values.max()}; save it with 8 or 16 bits")
        values = values.astype(np.uint16)
    return _from_array(values, list(values.shape))


def _from_pil(
    image: Image.Image,
    where: str,
    forms: Sequence[Form] = ("upright",),
    size: Callable[[], tuple[int, int] | None] | None = None,
) -> Photo:
    try:
        # Pillow turns TIFFs as it loads them. PNGs tell their orientation only then.
        found: Form = "upright" if image.format == "TIFF" else "stored"
        orientation = _orientation(image) if found == "upright" else 1
        image.load()
        orientation = _orientation(image) if found == "stored" else orientation
        form = _chosen((image.height, image.width), found, orientation, forms, size)
        if form != found and orientation != 1:
            image = image.transpose((_UPRIGHT if form == "upright" else _STORED)[orientation])
        return Photo(_to_rgb(image), orientation, form)
    except MemoryError:
        raise
    except InputError as error:  # its cause tells whether reading again may help
        raise InputError(f"{where} cannot be read: {error}") from error.__cause__
    except Exception as error:
        raise InputError(f"{where} cannot be read: {error or type(error).__name__}") from error


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


def _as_rgb(image: Image.Image) -> NDArray[np.uint8]:
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image)
        image = white
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def _from_array(values: NDArray[Any], shape: list[int]) -> NDArray[np.uint8]:
    if values.ndim == 2:
        values = values[..., None]
    if values.ndim != 3 or values.shape[2] not in CHANNELS or values.size == 0:
        raise InputError(
            f"an image must be an array [H, W] or [H, W, K] or a tensor [H, W] or [K, H, W] with K = 1 (grey), "
            f"2, 3 (RGB) or 4, and at least one pixel; found shape {shape}"
        )
    values = _as_8_bit(values)
    if values.shape[2] == 3:
        return np.ascontiguousarray(values)
    return _as_rgb(Image.fromarray(values[..., 0] if values.shape[2] == 1 else values, CHANNELS[values.shape[2]]))


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
