"""Decoding of ground truth that is stored as PNGs."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from eomt.errors import InputError
from eomt.photo import open_image

_PNG_BIT_DEPTH = 24  # offset of that byte: section 11.2.1 of the PNG specification (IHDR)


def decode_id_map(data: bytes, where: str) -> np.ndarray:
    """Decode a panoptic PNG: uint32 [H, W], R + 256 * G + 65536 * B (COCO's panoptic format).

    Raises:
        InputError: if it is no complete PNG, or not one of three colours of 8 bits.
    """
    image = _load(data, where)
    if image.mode not in ("RGB", "RGBA"):
        raise InputError(f"{where} must hold segment ids in red, green and blue, but its mode is {image.mode}")
    return _color_codes(image)


def decode_color_map(data: bytes, where: str) -> np.ndarray:
    """Decode a PNG whose colours stand for classes: uint32 [H, W], R + 256 * G + 65536 * B.

    Grey and palette files are read as the colours that they show; transparency is ignored.

    Raises:
        InputError: if they are no complete PNG of at most 8 bits.
    """
    image = _load(data, where)
    if image.mode not in ("1", "L", "LA", "P", "RGB", "RGBA"):
        raise InputError(f"{where} must be a PNG of colours, but its mode is {image.mode}")
    return _color_codes(image.convert("RGB"))


def color_code(color: Sequence[int]) -> int:
    """The value of a colour [red, green, blue] in `decode_color_map`."""
    red, green, blue = color
    return red | green << 8 | blue << 16


def decode_label_map(data: bytes, where: str) -> np.ndarray:
    """Decode a label PNG: uint8 or uint16 [H, W], the numbers as the file stores them.

    The file is grey of 1 to 16 bits, also stored as three equal colours, or holds palette indices. Viewers scale grey
    of fewer than 8 bits to 0..255; labels are not scaled. Transparency is ignored.

    Raises:
        InputError: if they are no complete PNG, or a coloured one.
    """
    image = _load(data, where)
    if image.mode in ("LA", "RGB", "RGBA"):
        image = _grey(image, where)
    if image.mode.startswith("I"):
        return np.asarray(image).astype(np.uint16)
    values, depth = np.asarray(image, dtype=np.uint8), data[_PNG_BIT_DEPTH]
    return values // (255 // ((1 << depth) - 1)) if image.mode == "L" and depth < 8 else values


def _grey(image: Image.Image, where: str) -> Image.Image:
    """The level of a picture whose colours are equal, as editors store grey; InputError if they are not."""
    level, *others = image.split()[: 1 if image.mode == "LA" else 3]
    if any(channel.tobytes() != level.tobytes() for channel in others):
        raise InputError(
            f"{where} holds colours, whereas the values of a grey or palette PNG stand for classes: "
            "data.color_labels=true takes the colours as classes"
        )
    return level


def _color_codes(image: Image.Image) -> np.ndarray:
    # Pillow gives four bytes a pixel: read as little-endian integers they are the codes, apart from the fourth.
    pixels = np.frombuffer(image.tobytes("raw", "RGBX" if image.mode == "RGB" else "RGBA"), dtype="<u4")
    return (pixels & 0xFFFFFF).reshape(image.height, image.width)


def _load(data: bytes, where: str) -> Image.Image:
    try:
        image = open_image(io.BytesIO(data))
        image.load()
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly any kind on damaged files
        raise InputError(f"{where} cannot be decoded ({error or type(error).__name__}); replace the file") from error
    if image.format != "PNG":
        raise InputError(f"{where} must be a PNG, but it is a {image.format}: export it anew")
    if image.mode in ("LA", "RGB", "RGBA") and data[_PNG_BIT_DEPTH] > 8:  # Pillow gives their upper halves
        raise InputError(f"{where} has colours of 16 bits: save it with 8, or as grey")
    return image
