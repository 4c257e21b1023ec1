"""Results: arrays, pictures and COCO's rows."""

import io
import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from eomt.errors import InputError
from eomt.inference.result import Result
from eomt.inference.segmenter import Segmenter
from eomt.postprocess.types import Instances
from eomt.tasks import task_of
from tests.random_networks import CLASSES, KINDS, OPTIONS, random_image, random_network


def segmenter_of(kind):
    return Segmenter(random_network(), task_of(kind, OPTIONS[kind]), CLASSES, "cpu")


def signed_area(ring):
    """The area within a ring, positive where it runs clockwise as seen."""
    (xs, ys), (following, below) = ring.T, np.roll(ring, -1, axis=0).T
    return (xs * below - following * ys).sum() / 2


def test_all_of_a_result():
    for kind in KINDS:
        result = segmenter_of(kind)(random_image(36, 52))
        count = len(result)
        assert count > 1
        masks = result.masks
        assert masks.shape == (count, 36, 52)
        assert masks.dtype == bool
        assert np.array_equal(result.areas, masks.sum((1, 2)))
        assert result.names == [CLASSES[label].name for label in result.labels]
        for mask, (left, top, right, bottom) in zip(masks, result.boxes.tolist(), strict=True):
            ys, xs = np.nonzero(mask)
            expected = (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) if len(xs) else (0, 0, 0, 0)
            assert (left, top, right, bottom) == expected
        labels = np.append(-1, result.labels)[result.map]
        assert np.array_equal(result.label_map, labels)
        middle = float(np.median(result.scores))
        some = result.above(middle)
        assert np.array_equal(some.scores, result.scores[result.scores >= middle])
        assert np.array_equal(some.masks, masks[result.scores >= middle])
        every = result.above(0)
        assert f"36x52: {np.sum(result.labels == result.labels[0])} {result.names[0]}" in repr(every)
        hidden = count - np.sum(result.scores >= 0.5) if kind == "instance" else 0
        assert (f"; {hidden} below 0.5)" in repr(result)) == (hidden > 0)
        assert hidden > 0 or kind != "instance"

        for number, (segment, mask, rings) in enumerate(zip(result, masks, result.polygons, strict=True)):
            assert np.array_equal(segment.mask, mask)
            assert np.array_equal(result[number - count].mask, mask)
            assert (segment.name, segment.score) == (result.names[number], result.scores[number])
            assert (segment.area, segment.box) == (result.areas[number], tuple(result.boxes[number]))
            assert sum(map(signed_area, rings)) == mask.sum()
        chosen = np.flatnonzero(result.scores >= middle)
        for index in (result.scores >= middle, torch.from_numpy(result.scores >= middle), chosen, chosen.tolist()):
            assert np.array_equal(result[index].masks, masks[chosen])
        assert np.array_equal(result[::-1].masks, masks[::-1])
        assert np.array_equal(result[::-1].scores, result.scores[::-1])
        assert len(result[[]]) == len(result[result.scores > 2]) == 0
        for index in (count, [0, 0], [True], [0.5]):
            with pytest.raises(IndexError):
                result[index]

        rows = json.loads(json.dumps(result.to_coco(17)))
        assert [row["category_id"] for row in rows] == [CLASSES.ids[label] for label in result.labels]
        assert {row["image_id"] for row in rows} == {17}
        assert np.allclose([row["score"] for row in rows], result.scores)
        for row, mask in zip(rows, masks, strict=True):
            assert np.array_equal(coco_mask.decode(row["segmentation"]), mask)
        if kind == "instance":
            with pytest.raises(InputError, match="overlap"):
                result.to_coco_panoptic(17, "x.png")
            continue
        row, colors = result.to_coco_panoptic(17, "x.png")
        row = json.loads(json.dumps(row))
        ids = colors.astype(int) @ [1, 256, 65536]
        assert (row["image_id"], row["file_name"]) == (17, "x.png")
        for segment, mask in zip(row["segments_info"], masks, strict=True):
            assert np.array_equal(ids == segment["id"], mask)
            assert segment["area"] == mask.sum()


def test_smaller_objects_show_on_larger_ones():
    masks = np.zeros((3, 6, 8), np.uint8)
    masks[0, 2:4, 2:4] = masks[1] = masks[2, 2:4, 3:5] = 1
    codes = [coco_mask.encode(np.asfortranarray(mask)) for mask in masks]
    scores, areas = torch.tensor([0.6, 0.9, 0.7]), torch.tensor([4, 48, 4])
    labels = torch.tensor([0, 1, 0])
    result = Result(Instances((6, 8), codes, labels, scores, areas, labels), CLASSES)
    assert result.map[2].tolist() == [2, 2, 1, 3, 3, 2, 2, 2]
    assert (result.map == 2).sum() == 42


def test_pictures_show_the_image_that_was_given(tmp_path):
    image = random_image(400, 420)
    path = tmp_path / "image.png"
    Image.fromarray(image).save(path)
    segmenter = segmenter_of("instance")
    result = segmenter(path)
    assert result.source == path
    one = np.array(result.picture(threshold=0.0))
    assert one.shape == image.shape
    assert np.array_equal(one, result.picture(image, threshold=0.0))
    assert np.array_equal(one, segmenter(image).picture(threshold=0.0))
    with path.open("rb") as file:
        assert np.array_equal(one, segmenter(file).picture(threshold=0.0))
    for wrong in (result.above, lambda threshold: result.picture(threshold=threshold)):
        with pytest.raises(InputError, match=r"threshold='0\.5' must be a number from 0 to 1"):
            wrong("0.5")
    assert not np.array_equal(one, result.picture(alpha=0.1, threshold=0.0))
    assert np.array_equal(result.picture(threshold=1.0), image)
    # The default leaves unlikely instances out.
    for kind in KINDS:
        prediction = segmenter_of(kind)(image).prediction
        scores = torch.where(torch.arange(len(prediction.labels)) == 0, 0.51, 0.49)
        result = Result(prediction._replace(scores=scores), CLASSES, image)
        some, every = (np.array(result.picture(threshold=threshold)) for threshold in (0.5, 0.0))
        assert not np.array_equal(some, every)
        assert np.array_equal(result.picture(), some if kind == "instance" else every)
    with pytest.raises(InputError, match="needs an image of"):
        result.picture(image[:-1])
    with pytest.raises(InputError, match="has no image"):
        Result(result.prediction, CLASSES).picture()


def test_pictures_are_saved_and_shown_in_notebooks(tmp_path):
    result = segmenter_of("panoptic")(random_image(400, 420))
    result.save(tmp_path / "new" / "picture.png")
    assert np.array_equal(Image.open(tmp_path / "new" / "picture.png"), result.picture())
    result.save(tmp_path / "picture.jpg")
    assert Image.open(tmp_path / "picture.jpg").size == (420, 400)
    for name in ("picture.mask", "picture"):
        with pytest.raises(InputError, match=r"use \.png or \.jpg"):
            result.save(tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "picture.jpg"]
    assert np.array_equal(Image.open(io.BytesIO(result._repr_png_())), result.picture())
    large = segmenter_of("panoptic")(random_image(900, 1800))
    assert Image.open(io.BytesIO(large._repr_png_())).size == (1024, 512)
    assert Result(result.prediction, CLASSES)._repr_png_() is None


def test_supervision_takes_all_segments(monkeypatch):
    results = [segmenter_of(kind)(random_image(36, 52)) for kind in KINDS]
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(InputError, match="pip install supervision"):
        results[0].to_supervision()
    monkeypatch.undo()
    pytest.importorskip("supervision", reason="supervision is no requirement")
    for result in (*results, results[0].above(1)):
        found = result.to_supervision()
        assert len(found) == len(result)
        assert np.array_equal(found.mask, result.masks)
        assert np.array_equal(found.xyxy, result.boxes)
        assert found.data["class_name"].tolist() == result.names
        assert np.array_equal(found.area, result.areas)
