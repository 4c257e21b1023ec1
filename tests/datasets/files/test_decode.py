"""Decoding of label PNGs and photographs."""

import io

import numpy as np
import pytest
from PIL import Image

from datasets.files.decode import decode_color_map, decode_label_map, decode_rgb
from eomt.errors import InputError
from eomt.photo import load_image
from tests.label_files import encoded, label_png, narrow_png, photo

VALUES = np.array([[0, 1, 1, 255], [2, 0, 1, 255], [255, 255, 0, 0]])
TURNED = Image.Exif()
TURNED[0x112] = 6  # to be shown rotated by 90 degrees


@pytest.mark.parametrize(
    ("mode", "kind", "options"),
    [
        ("L", "JPEG", {}),
        ("CMYK", "JPEG", {}),
        ("RGB", "JPEG", {"exif": TURNED}),
        ("P", "PNG", {}),
    ],
)
def test_photographs_of_other_colours_become_rgb_and_stay_as_stored(mode, kind, options):
    data = photo(2, 3, 5, kind, mode, **options)
    image = decode_rgb(data, "x.jpg")
    np.testing.assert_array_equal(image, np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
    assert image.shape == (2, 3, 3)
    assert image.flags.writeable


@pytest.mark.parametrize("mode", ["I;16", "RGBA", "LA", "P with transparency", "1", "F"])
def test_photographs_are_the_same_in_training_and_prediction(mode, tmp_path):
    values = np.arange(48).reshape(6, 8)
    if mode == "I;16":
        image, kind = Image.fromarray((values * 1300).astype(np.uint16)), "PNG"
    elif mode == "F":
        image, kind = Image.fromarray((values / 48).astype(np.float32)), "TIFF"
    else:
        image, kind = Image.fromarray((values * 5).astype(np.uint8)).convert("RGBA"), "PNG"
        image.putalpha(Image.fromarray((values * 3).astype(np.uint8)))
        image = image.convert(mode[:2].strip()) if mode != "RGBA" else image
    image.save(tmp_path / "x", kind, **({"transparency": 0} if "transparency" in mode else {}))
    read = decode_rgb((tmp_path / "x").read_bytes(), "x")
    np.testing.assert_array_equal(read, load_image(tmp_path / "x"))
    assert read.min() < 250
    assert read.max() > 60


def test_values_of_no_photograph_end_in_one_line():
    data = encoded(Image.fromarray(np.full((2, 2), 70000, dtype=np.int32)), kind="TIFF")
    with pytest.raises(InputError, match=r"x\.tif: its values go from 70000 to 70000; save it with 8 or 16 bits"):
        decode_rgb(data, "x.tif")


def indexed(values, **options):
    image = Image.fromarray(np.array(values, dtype=np.uint8)).convert("P")
    image = Image.frombytes("P", image.size, np.array(values, dtype=np.uint8).tobytes())
    image.putpalette([200, 30, 7] * 256)  # colours that say nothing
    return encoded(image, **options)


BITS = np.array([[0, 1, 1], [1, 0, 0]])
NIBBLES = np.array([[0, 1, 15, 7], [3, 2, 0, 9]])
WIDE = np.array([[0, 255, 256], [65535, 40000, 1]])


@pytest.mark.parametrize(
    ("data", "values"),
    [
        (label_png(VALUES), VALUES),
        (indexed(VALUES), VALUES),
        (indexed(NIBBLES, bits=4), NIBBLES),
        (narrow_png(NIBBLES, 4), NIBBLES),
        (narrow_png(NIBBLES % 4, 2), NIBBLES % 4),
        (narrow_png(BITS, 1), BITS),
        (encoded(Image.fromarray(BITS.astype(bool))), BITS),
        (label_png(WIDE, np.uint16), WIDE),
    ],
    ids=["8 bit", "palette", "4-bit palette", "4 bit", "2 bit", "1 bit", "mode 1", "16 bit"],
)
def test_label_values_are_as_stored(data, values):
    decoded = decode_label_map(data, "x.png")
    assert decoded.dtype in (np.uint8, np.uint16)
    np.testing.assert_array_equal(decoded, values)


def test_colours_of_every_kind_of_png():
    pixels = np.array([[[1, 2, 3], [255, 0, 7]], [[0, 0, 0], [1, 2, 3]]], dtype=np.uint8)
    codes = pixels.astype(np.uint32) @ np.array([1, 256, 65536], dtype=np.uint32)
    image = Image.fromarray(pixels)
    for kind in (image, image.convert("RGBA"), image.quantize(4)):
        np.testing.assert_array_equal(decode_color_map(encoded(kind), "x.png"), codes)
    grey = decode_color_map(label_png([[0, 9]]), "x.png")
    assert grey.tolist() == [[0, 0x090909]]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (photo(2, 2, kind="PNG"), r"x\.png must be a grey or palette PNG, .* but its mode is RGB"),
        (photo(2, 2), r"x\.png must be a PNG, but it is a JPEG"),
        (label_png(VALUES)[:-30], r"x\.png cannot be decoded"),
        (b"", r"x\.png cannot be decoded"),
    ],
)
def test_no_label_png(data, message):
    with pytest.raises(InputError, match=message):
        decode_label_map(data, "x.png")
