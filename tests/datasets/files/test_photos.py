"""Photos of a set: upright or as stored, by their EXIF orientation and the size of their ground truth."""

import errno
import io
import pickle

import numpy as np
import pytest
from PIL import Image

from datasets.files.photos import Photos
from eomt.errors import InputError
from eomt.photo import photo_size
from tests.label_files import encoded, turned

WIDE = np.arange(6 * 8 * 3, dtype=np.uint8).reshape(6, 8, 3)
SQUARE = WIDE[:, :6]
TURN = {3: lambda a: a[::-1, ::-1], 5: lambda a: a.transpose(1, 0, 2), 6: lambda a: np.rot90(a, -1)}


class Files(list):
    """Image files in memory, with the methods of `IndexedFiles` that photos need."""

    def read(self, index):
        return self[index], f"{index}.png"


def stored(pixels, orientation, kind="PNG", **options):
    return encoded(Image.fromarray(np.ascontiguousarray(pixels)), kind, exif=turned(orientation), **options)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize(
    ("orientation", "pixels", "exif", "usual", "size", "form"),
    [
        (6, WIDE, None, "upright", (8, 6), "upright"),
        (5, WIDE, None, "upright", (6, 8), "stored"),
        (6, WIDE, None, "upright", (7, 7), "upright"),  # neither fits, which the reader says
        (6, WIDE, None, "upright", None, "upright"),
        (6, SQUARE, None, "upright", (6, 6), "upright"),
        (3, WIDE, None, "upright", (6, 8), "upright"),
        (3, WIDE, None, "stored", (6, 8), "stored"),
        (6, SQUARE, None, "stored", (6, 6), "stored"),
        (6, WIDE, None, "stored", (8, 6), "upright"),
        (6, WIDE, "stored", "upright", (8, 6), "stored"),
        (5, WIDE, "upright", "stored", (6, 8), "upright"),
        (1, WIDE, None, "upright", (8, 6), "stored"),
    ],
)
def test_the_form_that_fits(orientation, pixels, exif, usual, size, form, kind):
    photos = Photos(Files([stored(pixels, orientation, kind)]), exif, usual)
    taken, where = photos.read(0, lambda: size)
    expected = TURN[orientation](pixels) if form == "upright" else pixels
    np.testing.assert_array_equal(taken, expected)
    assert taken.flags.c_contiguous
    assert taken.flags.writeable
    assert (f"orientation {orientation}, " in where) == (orientation != 1)
    assert ("turned upright" in where) == (form == "upright")
    note, _ = photos.note()
    # What is typed or has no orientation needs no remark.
    assert bool(note) == (orientation != 1 and exif is None)


def test_what_was_done_is_counted_over_processes():
    files = [stored(WIDE, 6), stored(WIDE, 6), stored(SQUARE, 3), stored(WIDE, 1), stored(WIDE, 8)]
    photos = Photos(Files(files))
    for k, size in enumerate([(8, 6), (6, 8), (6, 6), (6, 8)]):
        photos.read(k, lambda size=size: size)
    note, kinds = photos.note()
    assert note.startswith(
        "3 of the 4 photos read so far have an EXIF orientation: 2 are turned upright, 1 are taken as"
    )
    assert "1 are taken as stored, as only so" in note
    assert "if all were annotated so, set data.exif=stored" in note
    assert len(kinds) == 2
    assert [photos.exif(k)[:13] for k in range(5)] == ["orientation 6", "orientation 6", "orientation 3", "", ""]
    assert photos.record.is_shared()
    pickle.loads(pickle.dumps(photos)).read(4, lambda: None)


@pytest.mark.parametrize(
    "block",
    [
        b"",
        b"Exif\0\0",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\xff" * 40,
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x09\0\0\0\0\0\0\0",  # orientation 9
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x02\0\0\0\x36\0\0\0\0\0\0\0",  # a text
        b"\x00" * 5000,
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_damaged_blocks_are_no_orientation(block):
    for kind in ("JPEG", "PNG", "WEBP"):
        data = encoded(Image.fromarray(WIDE), kind, exif=block)
        photos = Photos(Files([data]))
        taken, where = photos.read(0, lambda: (8, 6))
        np.testing.assert_array_equal(taken, np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
        assert where == "0.png"


def test_a_disk_that_fails_for_a_moment_is_told_from_a_damaged_photo():
    def size():
        raise InputError("cannot read truth.png") from OSError(errno.EIO, "Input/output error")

    with pytest.raises(InputError, match=r"0\.png cannot be read: cannot read truth\.png") as caught:
        Photos(Files([stored(WIDE, 6)])).read(0, size)
    assert caught.value.__cause__.errno == errno.EIO, "as `read_with_retry` asks"


def test_sizes_from_headers():
    assert photo_size(encoded(Image.fromarray(WIDE))) == (6, 8)
    assert photo_size(stored(WIDE, 6, "JPEG")) == (8, 6)
    assert photo_size(stored(WIDE, 6, "JPEG"), "stored") == (6, 8)
    assert photo_size(b"no image") is None
