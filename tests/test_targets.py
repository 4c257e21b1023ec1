"""Compact targets: layered id maps and what they expand to."""

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from eomt.targets import (
    check_rle,
    collate_targets,
    id_type,
    targets_from_id_map,
    targets_from_rles,
)
from tests.coco_objects import targets_from_masks


def random_id_map(seed, ids, height=24, width=31, block=4):
    """Blocks of random ids, as runs of equal pixels need."""
    rng = np.random.default_rng(seed)
    small = rng.choice(ids, (-(-height // block), -(-width // block)))
    return np.kron(small, np.ones((block, block), dtype=small.dtype))[:height, :width]


def random_masks(seed, count, height=13, width=17):
    """Rectangles that overlap."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((count, height, width), dtype=bool)
    for mask in masks:
        top, left = rng.integers(0, height - 3), rng.integers(0, width - 3)
        mask[top : top + rng.integers(1, height), left : left + rng.integers(1, width)] = True
    return masks


def check_types(targets):
    assert targets.ids.dtype == torch.int16
    assert targets.labels.dtype == targets.planes.dtype == torch.int64
    assert targets.crowd.dtype == torch.bool
    assert len(targets.labels) == len(targets.planes) == len(targets.crowd)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.uint32, np.int64])
@pytest.mark.parametrize("block", [1, 4])
@pytest.mark.parametrize("transposed", [False, True])
def test_id_map_to_masks(dtype, block, transposed):
    present = np.array([0, 3, 200, 7, 90, 255])
    id_map = random_id_map(0, present.astype(dtype), block=block)
    if transposed:  # not contiguous
        id_map = id_map.T
    wanted, labels, crowd = [200, 3, 90, 7], [5, 0, 5, 2], [False, True, False, False]
    targets = targets_from_id_map(id_map, wanted, labels, crowd)
    check_types(targets)
    assert targets.ids.shape == (1, *id_map.shape)
    assert targets.labels.tolist() == labels
    assert targets.crowd.tolist() == crowd
    masks = targets.masks().numpy()
    for mask, value in zip(masks, wanted, strict=True):
        np.testing.assert_array_equal(mask, id_map == value)
    np.testing.assert_array_equal(masks.any(0), np.isin(id_map, wanted))


def test_large_ids_and_an_absent_one():
    id_map = np.array([[2**24 - 1, 2**24 - 1, 0], [2**23, 1, 0]], dtype=np.uint32)
    targets = targets_from_id_map(id_map, [2**23, 17, 2**24 - 1], [0, 1, 2])
    assert targets.ids.tolist() == [[[3, 3, 0], [1, 0, 0]]]
    assert targets.masks().sum((1, 2)).tolist() == [1, 0, 2]
    assert targets.crowd.tolist() == [False] * 3


def test_id_map_without_wanted_segments():
    targets = targets_from_id_map(np.full((4, 5), 9), [], [])
    check_types(targets)
    assert targets.ids.shape == (1, 4, 5)
    assert not targets.ids.any()
    assert targets.masks().shape == (0, 4, 5)


@pytest.mark.parametrize("seed", range(4))
def test_overlapping_masks_come_back(seed):
    masks = random_masks(seed, 12)
    labels, crowd = list(range(12)), [k % 3 == 0 for k in range(12)]
    targets = targets_from_masks(masks, labels, crowd)
    check_types(targets)
    np.testing.assert_array_equal(targets.masks(), masks)
    assert targets.labels.tolist() == labels
    assert targets.crowd.tolist() == crowd
    assert len(targets.ids) == targets.planes.max() + 1
    # No plane too many: every segment meets, on each earlier plane, a segment that came before it.
    planes = targets.planes.numpy()
    for t, plane in enumerate(planes):
        for k in range(plane):
            assert (masks[t] & masks[:t][planes[:t] == k].any(0)).any()


def compressed(masks):
    return [coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"] for mask in masks]


@pytest.mark.parametrize("shape", [(13, 17), (40, 300), (1, 1), (200, 3)])
@pytest.mark.parametrize("count", [0, 1, 12])
def test_run_lengths_give_the_targets_of_their_masks(shape, count):
    noise = np.random.default_rng(count).random((count, *shape))
    masks = noise > np.linspace(0, 1, count)[:, None, None]  # from full to empty
    masks[count // 2 :, shape[0] // 2 :] = False
    labels, crowd, areas = list(range(count)), [k % 2 == 0 for k in range(count)], [k / 4 for k in range(count)]
    targets = targets_from_rles(compressed(masks), shape, labels, crowd, areas)
    check_types(targets)
    assert (targets.labels.tolist(), targets.crowd.tolist()) == (labels, crowd)
    np.testing.assert_array_equal(targets.masks(), masks)
    assert targets.areas.dtype == torch.float64
    assert targets.areas.tolist() == areas
    assert targets.rles == tuple(compressed(masks))
    assert targets_from_rles(compressed(masks), shape, labels).areas is None


def test_an_empty_mask_stays_and_takes_no_plane():
    masks = np.zeros((3, 4, 5), dtype=bool)
    masks[0], masks[2] = True, True
    targets = targets_from_rles(compressed(masks), (4, 5), [7, 8, 9])
    assert targets.planes.tolist() == [0, 0, 1]
    assert targets.masks().sum((1, 2)).tolist() == [20, 0, 20]


def test_collate_pads_planes_and_segments():
    stacked = np.ones((3, 4, 5), dtype=bool)  # three planes
    targets = [
        targets_from_masks(stacked, [4, 5, 6]),
        targets_from_id_map(random_id_map(1, [0, 1, 2, 3, 4], 4, 5, 1), [1, 2, 3, 4], [0, 1, 2, 3]),
        targets_from_id_map(np.zeros((4, 5), dtype=int), [], []),
    ]
    batch = collate_targets(targets)
    assert batch.ids.shape == (3, 3, 4, 5)
    assert batch.counts == (3, 4, 0)
    assert batch.labels.tolist() == [[4, 5, 6, -1], [0, 1, 2, 3], [-1] * 4]
    assert batch.planes.tolist() == [[0, 1, 2, 0], [0] * 4, [0] * 4]
    assert batch.ids.dtype == torch.int16
    for b, own in enumerate(targets):
        planes = len(own.ids)
        assert torch.equal(batch.ids[b, :planes], own.ids)
        assert not batch.ids[b, planes:].any()


def test_a_batch_has_the_smallest_type_that_holds_its_numbers():
    assert [id_type(count) for count in (0, 127, 128, 32767)] == [np.int8, np.int8, np.int16, np.int16]
    few, many = (
        targets_from_id_map(np.arange(1, 201).reshape(10, 20), range(1, 1 + count), [0] * count) for count in (127, 200)
    )
    few = few._replace(ids=few.ids.to(torch.int8))
    alone, together = collate_targets([few, few]), collate_targets([few, many])
    assert alone.ids.dtype == torch.int8
    assert together.ids.dtype == torch.int16
    for batch in (alone, together):
        assert torch.equal(batch.ids[0].int(), few.ids.int())
    assert torch.equal(together.ids[1], many.ids)
    assert torch.equal(few.masks(), few._replace(ids=few.ids.short()).masks())


def test_long_runs_and_runs_of_nothing():
    # The longest numbers of a code, and runs of zero length, which other tools write.
    size = (1 << 15, 1 << 14)
    for lengths in ([1 << 28, (1 << 28) - 5, 5], [5, 0, 7, 2, 0, 1, 0, 0, (1 << 29) - 15, 0]):
        code = coco_mask.frPyObjects({"size": size, "counts": lengths}, *size)["counts"]
        check_rle(code, size[0] * size[1])
        with pytest.raises(ValueError, match="do not make up"):
            check_rle(code, size[0] * size[1] - 1)
    code = coco_mask.frPyObjects({"size": (4, 5), "counts": [5, 0, 7, 2, 0, 1, 5, 0]}, 4, 5)["counts"]
    assert targets_from_rles([code], (4, 5), [0]).ids[0].T.ravel().tolist() == [0] * 12 + [1] * 3 + [0] * 5


@pytest.mark.parametrize(
    ("code", "what"),
    [
        (b"", "no compressed code"),
        (b"P", "no compressed code"),
        (b"4\x20", "no compressed code"),
        (b"4p", "no compressed code"),
        (b"PPPPPPPP4", "too large"),
        (b"4", "do not make up 12 pixels"),
        (b"4\x3a", "do not make up 12 pixels"),
        (b"O=", "do not make up 12 pixels"),
    ],
)
def test_damaged_run_lengths(code, what):
    """pycocotools alone reads beyond the end of some of these."""
    for codes in ([code], [b"<", code], [code, b"<"]):
        with pytest.raises(ValueError, match=what):
            targets_from_rles(codes, (3, 4), [0] * len(codes))
