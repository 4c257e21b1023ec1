"""Builders of small photos and label PNGs, as folders or archives, and checks of the targets read from them."""

import io
import struct
import zipfile
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from datasets.readers.label_maps import VOID
from eomt.errors import InputError


def fails(match, function, *arguments, **options):
    """Check that a call raises InputError in one line that matches."""
    with pytest.raises(InputError, match=match) as caught:
        function(*arguments, **options)
    assert "\n" not in str(caught.value)


def photo(height, width, seed=0, kind="JPEG", mode="RGB", **options):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return encoded(Image.fromarray(pixels).convert(mode), kind, **options)


def turned(orientation):
    """EXIF data of an orientation."""
    exif = Image.Exif()
    exif[0x112] = orientation
    return exif


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def label_png(values, dtype=np.uint8):
    """A PNG of values [H, W] (grey) or [H, W, 3] (colours)."""
    return encoded(Image.fromarray(np.array(values, dtype=dtype)))


def narrow_png(values, depth):
    """A grey PNG of 1, 2 or 4 bits, which Pillow does not write."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width = np.shape(values)
    rows = b"".join(
        b"\0"
        + int("".join(f"{v:0{depth}b}" for v in row).ljust(-(-width * depth // 8) * 8, "0"), 2).to_bytes(
            -(-width * depth // 8), "big"
        )
        for row in values
    )
    header = struct.pack(">2I5B", width, height, depth, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def read(source, name, member):
    return b"".join(source.chunks(name, member))


def contents(source):
    return {name: read(source, name, member) for name, member in source.members().items()}


def write_folder(folder, files):
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def write_zip(path, files, method=zipfile.ZIP_STORED):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(zip_bytes(files, method))
    return path


def write_set(root, name, files, zipped):
    """Write a folder, or the archive of its name with that folder in it."""
    if zipped:
        return write_zip(root / f"{name}.zip", {f"{name}/{member}": data for member, data in files.items()})
    return write_folder(root / name, files)


def zip_bytes(files, method=zipfile.ZIP_STORED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def segments(targets):
    """Each class's mask, from targets without crowds on one plane."""
    assert targets.ids.dtype == torch.int16
    assert targets.ids.shape[0] == 1
    assert targets.areas is None
    assert not targets.crowd.any()
    assert targets.planes.tolist() == [0] * len(targets.labels)
    assert (targets.ids == 0).sum() + targets.masks().sum() == targets.ids.numel()
    return {label: mask.numpy() for label, mask in zip(targets.labels.tolist(), targets.masks(), strict=True)}


def check_classes(targets, expected):
    """Compare targets with a map of classes, VOID where there is none."""
    found = segments(targets)
    assert sorted(found) == sorted(set(np.unique(expected).tolist()) - {VOID})
    for label, mask in found.items():
        np.testing.assert_array_equal(mask, expected == label)
