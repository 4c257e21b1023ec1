"""Pictures: the position and colour of what is painted; their looks are judged by eye."""

import numpy as np
import pytest
import torch

from eomt.classes import Classes, SegmentClass
from eomt.postprocess.draw import contact_sheet, draw_segments, segment_colors, side_by_side

CLASSES = Classes(
    (
        SegmentClass(1, "cup", (200, 40, 40), True),
        SegmentClass(2, "sky", (40, 40, 200), False),
        SegmentClass(3, "a cup with a long name", (90, 190, 40), True),
    )
)


def scene(height=400, width=500):
    """A cup on the left, sky on the right, nothing in the last rows."""
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    ids = np.where(np.arange(width) < width // 2, 1, 2) * np.ones((height, 1), dtype=np.int64)
    ids[-20:] = 0
    return image, ids


def test_segments_are_tinted_and_the_rest_is_left_alone():
    image, ids = scene()
    before = image.copy()
    picture = draw_segments(image, ids, [0, 1], CLASSES, alpha=0.25)
    assert picture.shape == image.shape
    assert picture.dtype == np.uint8
    assert np.array_equal(image, before)
    assert np.array_equal(picture[-15:], image[-15:])
    for pixel, label in (((5, 5), 0), ((5, 490), 1)):
        expected = 0.75 * image[pixel] + 0.25 * np.array(CLASSES[label].color)
        assert np.abs(picture[pixel] - expected).max() <= 1
    # A light line lies between the two.
    assert picture[5, 250].min() > 150


@pytest.mark.parametrize("name", ["background", "_background_", "Background"])
def test_a_background_class_is_left_unpainted(name):
    image, ids = scene()
    classes = Classes((CLASSES[0], SegmentClass(2, name, (40, 40, 200), False)))
    picture = draw_segments(image, ids, [0, 1], classes, [0.9, 0.9])
    assert np.array_equal(picture[:, 255:], image[:, 255:])
    assert not np.array_equal(picture[:, :245], image[:, :245])


def test_tensors_and_arrays_give_one_picture():
    image, ids = scene()
    arrays = draw_segments(image, ids, np.array([0, 1]), CLASSES, np.array([0.5, 1.0]))
    tensors = draw_segments(
        image, torch.tensor(ids, dtype=torch.int16), torch.tensor([0, 1]), CLASSES, torch.tensor([0.5, 1.0])
    )
    assert np.array_equal(arrays, tensors)


def changed_columns(picture, other):
    return np.flatnonzero((picture != other).any(axis=(0, 2)))


def test_each_segment_bears_its_name_and_score():
    image, ids = scene()
    cup_only, sky_only = np.where(ids == 1, 1, 0), np.where(ids == 2, 2, 0)
    for one in (cup_only, sky_only):
        named = draw_segments(image, one, [0, 1], CLASSES)
        scored = draw_segments(image, one, [0, 1], CLASSES, [0.91, 0.99])
        columns = changed_columns(named, scored)
        # The longer text, and the middle of it in the segment.
        assert len(columns) > 30
        assert one[100, round(columns.mean())] != 0
        # White letters.
        assert (scored == 255).all(axis=2).sum() > 20


def test_small_segments_bear_no_name_and_names_do_not_hide_each_other():
    image = np.zeros((400, 400, 3), np.uint8)
    ids = np.zeros((400, 400), np.int64)
    ids[100:104, 100:300] = 1
    thin = draw_segments(image, ids, [0], CLASSES)
    assert not thin[:99].any()
    assert not thin[106:].any()
    # Sixteen small segments in a cluster, with names wider than they: all letters of the names that found
    # room are readable, hence white pixels come in whole multiples of one name's.
    ids[:] = 0
    ids[200:230, 200:230] = 1
    single = (draw_segments(image, ids, [2], CLASSES) == 255).all(axis=2).sum()
    for k in range(16):
        ids[100 + 30 * (k // 4) : 130 + 30 * (k // 4), 150 + 30 * (k % 4) : 180 + 30 * (k % 4)] = k + 1
    many = (draw_segments(image, ids, [2] * 16, CLASSES) == 255).all(axis=2).sum()
    assert single > 0
    assert many >= 4 * single
    assert many % single == 0


def test_of_names_that_collide_the_surest_is_written():
    ids = np.zeros((400, 400), np.int64)
    ids[180:220, 160:200], ids[180:220, 200:240] = 1, 2
    for scores, left in (((0.9, 0.6), True), ((0.6, 0.9), False)):
        drawn = draw_segments(np.zeros((400, 400, 3), np.uint8), ids, [2, 2], CLASSES, scores)
        columns = np.nonzero((drawn == 255).all(axis=2))[1]
        assert (columns.mean() < 200) == left


def test_things_of_one_class_differ_and_stuff_does_not():
    colors = segment_colors(np.array([0, 1, 0, 0, 1]), CLASSES)
    assert tuple(colors[0]) == (200, 40, 40)
    assert tuple(colors[1]) == tuple(colors[4]) == (40, 40, 200)
    things = colors[[0, 2, 3]].astype(int)
    for a in range(3):
        for b in range(a):
            assert np.abs(things[a] - things[b]).max() > 25


@pytest.mark.parametrize(("size", "factor"), [((96, 96), 4), ((96, 130), 3), ((384, 200), 1), ((383, 383), 2)])
def test_small_images_are_enlarged_by_a_whole_factor(size, factor):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    picture = draw_segments(image, np.zeros(size, np.int64), [], CLASSES)
    assert np.array_equal(picture, np.kron(image, np.ones((factor, factor, 1), np.uint8)))


def test_side_by_side_shows_every_picture_whole():
    image = np.full((100, 120, 3), 10, np.uint8)
    pictures = [
        ("truth", np.full((200, 240, 3), 90, np.uint8)),
        ("result", np.full((200, 240, 3), 170, np.uint8)),
    ]
    sheet = side_by_side(image, pictures, title="night.jpg")
    assert sheet.dtype == np.uint8
    for value in (10, 90, 170):
        assert (sheet == value).all(axis=2).sum() >= 200 * 240
    # Titles stand above each, dark on white.
    top = np.flatnonzero((sheet == 90).all(axis=2).any(axis=1))[0]
    assert (sheet[:top].min(axis=(0, 2)) < 80).sum() > 30
    assert (sheet[-1] == 255).all()


def test_contact_sheet_stacks_rows_of_any_width():
    rows = [np.full((10, 30, 3), 1, np.uint8), np.full((20, 50, 3), 2, np.uint8)]
    sheet = contact_sheet(rows)
    assert sheet.shape == (30, 50, 3)
    assert (sheet[:10, 30:] == 255).all()
    assert np.array_equal(sheet[10:], rows[1])
