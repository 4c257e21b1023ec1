"""Images as `Segmenter` is given them: of any form, one or several, and folders of them."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeAlias, TypeGuard, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from eomt.errors import InputError, reason
from eomt.inference.download import download, is_address, shown
from eomt.inference.find_images import files_below, is_image
from eomt.photo import HEIF_HINT, IMAGE_SUFFIXES, array_pixels, pil_photo, read_photo


class Readable(Protocol):
    """A file that is open for reading bytes."""

    def read(self) -> bytes: ...


ImageSource: TypeAlias = str | Path | bytes | Readable | Image.Image | NDArray[Any] | Tensor


def load_image(source: ImageSource) -> NDArray[np.uint8]:
    """Read an image.

    EXIF orientations are applied, as viewers do. Transparent pixels are put on white. 16-bit values are scaled, 65535
    to 255. The first of several frames or pages is read.

    Args:
        source: one of

            - a JPEG, PNG, TIFF, WebP, BMP, GIF or, where pillow-heif is installed, HEIC file, or the bytes of one, or
              one that is opened with "rb", which is read from where it stands,
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
    picture = load_picture(source)
    return picture if isinstance(picture, np.ndarray) else np.array(picture)


def load_picture(source: ImageSource) -> Image.Image | NDArray[np.uint8]:
    """Read an image as `load_image` does, but leave Pillow's where it is one: to resize it takes no copy."""
    if is_address(source):
        return read_photo(io.BytesIO(download(source)), shown(source)).picture
    if isinstance(source, str | Path):
        if not str(source):
            raise InputError("an image's path is empty")
        return _from_file(Path(source).expanduser())
    if is_file(source):
        return read_photo(io.BytesIO(_read(source)), "the image in this file").picture
    if isinstance(source, bytes | bytearray | memoryview):
        return read_photo(io.BytesIO(source), "the image in these bytes").picture
    if isinstance(source, Image.Image):
        return pil_photo(source).picture
    if isinstance(source, Tensor):
        values = source.detach()
        # NumPy has no bfloat16.
        values = (values.float() if values.is_floating_point() else values).numpy(force=True)
        return array_pixels(values if values.ndim != 3 else values.transpose(1, 2, 0), values.shape)
    if isinstance(source, np.ndarray):
        return array_pixels(source, source.shape)
    raise no_image(source)


def no_image(source: object) -> InputError:
    """The error about what is no image of any form."""
    hint = ", which cv2.imread gives for a file that it cannot read" if source is None else ""
    return InputError(
        'an image must be a path, an address, bytes, a file opened with "rb", a PIL image, a NumPy array or a tensor, '
        f"and several a list of these; found {type(source).__name__}{hint}"
    )


def is_file(source: object) -> TypeGuard[Readable]:
    """True for an open file, or what is read like one."""
    return callable(getattr(source, "read", None))


def content_of(source: ImageSource) -> bytes | None:
    """The bytes of what can be had only once, an address or an open file; None for any other image.

    Raises:
        InputError: see `download`; or if a file is closed, or opened as text.
    """
    return download(source) if is_address(source) else _read(source) if is_file(source) else None


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
            raise InputError(f"{image} has no image: names must end in {' '.join(IMAGE_SUFFIXES)}{HEIF_HINT}")
        yield from found


def _read(file: Readable) -> bytes:
    try:
        content = cast("object", file.read())  # a caller may be untyped
    except (OSError, ValueError) as error:  # closed, or binary but opened as text
        raise InputError(f'the image in this file cannot be read: {reason(error)}; open it with "rb"') from error
    if not content:
        raise InputError("this file has no bytes from where it stands: has it been read before? file.seek(0) goes back")
    if not isinstance(content, bytes):
        raise InputError(f'a file must give bytes, found {type(content).__name__}: open it with "rb"')
    return content


def _from_file(path: Path) -> Image.Image | NDArray[np.uint8]:
    if not path.is_file():
        raise InputError(f"{path} is a folder, not an image" if path.is_dir() else f"{path}: no such file")
    try:
        # Opened here: given a name, Pillow memory-maps uncompressed grey TIFFs and shears those with an orientation.
        with path.open("rb") as file:
            return read_photo(file, str(path)).picture
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
