"""Decoding of label PNGs."""

import cv2
import numpy as np
import pytest
from PIL import Image

from datasets.files.decode import decode_color_map, decode_id_map, decode_label_map
from eomt.errors import InputError
from tests.label_files import encoded, label_png, narrow_png, photo

VALUES = np.array([[0, 1, 1, 255], [2, 0, 1, 255], [255, 255, 0, 0]])


def indexed(values, **options):
    image = Image.fromarray(np.array(values, dtype=np.uint8)).convert("P")
    image = Image.frombytes("P", image.size, np.array(values, dtype=np.uint8).tobytes())
    image.putpalette([200, 30, 7] * 256)  # colours that say nothing
    return encoded(image, **options)


def encoded_16_bits():
    """Three equal colours of 16 bits, which Pillow cannot write."""
    return cv2.imencode(".png", np.full((2, 2, 3), 3, dtype=np.uint16))[1].tobytes()


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
        *((encoded(Image.fromarray(VALUES.astype(np.uint8)).convert(mode)), VALUES) for mode in ("LA", "RGB", "RGBA")),
    ],
    ids=["8 bit", "palette", "4-bit palette", "4 bit", "2 bit", "1 bit", "mode 1", "16 bit", "LA", "RGB", "RGBA"],
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
        (photo(2, 2, kind="PNG"), r"x\.png holds colours.*data\.color_labels=true"),
        (photo(2, 2), r"x\.png must be a PNG, but it is a JPEG"),
        (label_png(VALUES)[:-30], r"x\.png cannot be decoded"),
        (b"", r"x\.png cannot be decoded"),
        (encoded_16_bits(), r"x\.png has colours of 16 bits: save it with 8"),
    ],
)
def test_no_label_png(data, message):
    with pytest.raises(InputError, match=message):
        decode_label_map(data, "x.png")


@pytest.mark.parametrize("decode", [decode_color_map, decode_id_map])
def test_colours_that_are_not_exact(decode):
    for data, message in (
        (encoded_16_bits(), "has colours of 16 bits"),
        (photo(2, 2), "must be a PNG, but it is a JPEG"),
    ):
        with pytest.raises(InputError, match=message):
            decode(data, "x.png")
