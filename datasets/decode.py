"""Image files' bytes to arrays."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from eomt.errors import InputError


def decode_rgb(data: bytes, where: str) -> np.ndarray:
    """Decode a photograph: uint8 [H, W, 3], red, green, blue, contiguous and writable.

    Grey and CMYK files become RGB. An EXIF orientation is not followed: annotations are drawn on the
    pixels as stored.

    Args:
        data: the file's bytes.
        where: names the file in the message.

    Raises:
        InputError: if they are no complete image.
    """
    image = _load(data, where)
    # Pillow's convert copies even where there is nothing to convert.
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def decode_id_map(data: bytes, where: str) -> np.ndarray:
    """Decode a panoptic PNG: uint32 [H, W], R + 256 * G + 65536 * B (COCO's panoptic format).

    Raises:
        InputError: if it is no complete image, or not one of three colours.
    """
    image = _load(data, where)
    if image.mode not in ("RGB", "RGBA"):
        raise InputError(f"{where} must hold segment ids in red, green and blue, but its mode is {image.mode}")
    # Pillow keeps four bytes a pixel: read as little-endian integers they are the ids, but for the fourth.
    pixels = np.frombuffer(image.tobytes("raw", "RGBX" if image.mode == "RGB" else "RGBA"), dtype="<u4")
    return (pixels & 0xFFFFFF).reshape(image.height, image.width)


def _load(data: bytes, where: str) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly any kind on damaged files
        raise InputError(f"{where} cannot be decoded ({error or type(error).__name__}); replace the file") from error
    return image
