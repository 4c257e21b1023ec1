"""Photos of any kind as 8-bit red, green and blue, turned upright by their EXIF orientation."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from eomt.errors import InputError

ImageSource = str | Path | Image.Image | np.ndarray | Tensor

CHANNELS = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}  # Pillow's modes by the number of channels


def load_image(source: ImageSource) -> np.ndarray:
    """Read an image.

    EXIF orientations are applied, as viewers do. Transparent pixels are put on white. 16-bit values are scaled, 65535
    to 255. The first of several frames or pages is read.

    Args:
        source: one of

            - a file that Pillow reads, such as JPEG, PNG, TIFF, WebP or BMP,
            - a PIL image of any mode,
            - an array [H, W] (grey) or [H, W, K], or a tensor [H, W] or [K, H, W], with K = 1 grey, 2 grey and
              alpha, 3 RGB, or 4 RGB and alpha; uint8, uint16, bool, or floating point 0..1.

    Returns:
        uint8 [H, W, 3], red, green, blue; the given array itself where it is in this form.

    Raises:
        InputError: if the file is missing, damaged or no image, or values or shape are none of those above.
    """
    if isinstance(source, str | Path):
        return _from_file(Path(source).expanduser())
    if isinstance(source, Image.Image):
        return _from_pil(source, "the PIL image")
    if isinstance(source, Tensor):
        values = source.detach()
        # NumPy has no bfloat16.
        values = (values.float() if values.is_floating_point() else values).numpy(force=True)
        return _from_array(values if values.ndim != 3 else values.transpose(1, 2, 0), list(values.shape))
    if isinstance(source, np.ndarray):
        return _from_array(source, list(source.shape))
    raise InputError(f"an image must be a path, a PIL image, a NumPy array or a tensor, found {type(source).__name__}")


def _from_file(path: Path) -> np.ndarray:
    if not path.is_file():
        raise InputError(f"{path} is a folder, not an image" if path.is_dir() else f"{path}: no such file")
    try:
        # Opened here: given a name, Pillow memory-maps uncompressed grey TIFFs and shears those with an orientation.
        with path.open("rb") as file, Image.open(file) as image:
            return _from_pil(image, str(path))
    except (InputError, MemoryError):
        raise
    except Exception as error:  # Pillow raises many kinds on files that are no images
        reason = "it is no image that Pillow knows" if isinstance(error, UnidentifiedImageError) else error
        raise InputError(f"{path} cannot be read: {reason}") from error


def to_rgb(image: Image.Image) -> np.ndarray:
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


def _from_pil(image: Image.Image, where: str) -> np.ndarray:
    try:
        image.load()
        # Damaged EXIF data are no reason to refuse the pixels. After loading: Pillow itself turns TIFFs.
        with suppress(Exception):
            image = ImageOps.exif_transpose(image)
        return to_rgb(image)
    except MemoryError:
        raise
    except Exception as error:
        raise InputError(f"{where} cannot be read: {error or type(error).__name__}") from error


def _as_rgb(image: Image.Image) -> np.ndarray:
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image)
        image = white
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def _from_array(values: np.ndarray, shape: list[int]) -> np.ndarray:
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


def _as_8_bit(values: np.ndarray) -> np.ndarray:
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
