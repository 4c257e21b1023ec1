"""Images in tiles, and mirrored ones: the same answers as of the whole image where the network's are exact."""

import json
import weakref
from concurrent.futures import Future

import numpy as np
import pytest
import torch
from PIL import Image

from eomt.errors import InputError
from eomt.inference.segmenter import Segmenter
from eomt.tasks import task_of
from eomt.views import Tiled, with_mirrored
from tests.colour_network import CLASSES, SKY, ColourNetwork, picture
from tests.random_networks import KINDS, random_image, random_network
from tests.running import typed

SIZES = [(150, 210), (33, 90), (32, 32), (20, 100), (97, 40), (25, 25)]


def segmenter_of(kind, network=None, **options):
    task = task_of(kind, {"top_k": 12} if kind == "instance" else {})
    return Segmenter(network or ColourNetwork(), task, CLASSES, "cpu", **options)


@pytest.mark.parametrize("side", [32, 50])
@pytest.mark.parametrize("size", [(150, 210), (33, 90), (20, 100), (97, 40)])
def test_objects_that_tiles_cut_are_whole(size, side):
    pixels, masks = picture(*size, discs=4 if min(size) < 90 else 12)
    masks = np.stack(masks)
    for kind in KINDS:
        result = segmenter_of(kind, ColourNetwork(side, len(masks)), tile=True)(pixels)
        if kind == "semantic":
            expected = np.full(pixels.shape[:2], 2)
            expected[masks[: len(masks) // 2].any(0)], expected[masks[len(masks) // 2 :].any(0)] = 1, 0
            assert (result.label_map == expected).all()
            assert (result.scores > 0.99).all()
            continue
        assert result.scores[result.labels < 2].min() > 0.99 if kind == "panoptic" else True
        sure = result.above(0.9)
        found = [mask for mask, label in zip(sure.masks, sure.labels, strict=True) if label < 2]
        assert len(found) == len(masks)
        for mask in masks:
            assert sum((mask == one).all() for one in found) == 1
        assert (sure.areas == sure.masks.sum((1, 2))).all()
        assert (sure.labels == 2).sum() == 1  # stuff is one segment


class Undecided(ColourNetwork):
    """A network that takes what it sees beside a white pixel for the other class."""

    def forward(self, images):
        (output,) = super().forward(images)
        logits = output.logits()
        for image, classes in zip(images, logits.class_logits, strict=True):
            if (image == 255).all(0).any():
                classes[1:, [0, 1]] = classes[1:, [1, 0]]
        return [output]


@pytest.mark.parametrize("kind", ["instance", "panoptic"])
def test_an_object_of_two_tiles_that_do_not_agree_is_not_lost(kind):
    """It lies in the strip of both for the most part, and each cuts it."""
    pixels = np.full((32, 56, 3), SKY, np.uint8)
    pixels[8:24, 22:34] = 200, 0, 0
    pixels[0, 55] = 255
    result = segmenter_of(kind, Undecided(32, 2), tile=True)(pixels).above(0.5)
    assert sorted(CLASSES.names[label] for label in result.labels if label < 2) == ["cup", "dog"]
    assert (result.map[8:24, 22:34] > 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_that_mirrors_with_the_image_gives_the_same_with_flip(kind):
    for size in SIZES:
        pixels, _ = picture(*size, discs=4)
        plain, flipped = (segmenter_of(kind, tta=tta)(pixels) for tta in (None, "flip"))
        assert np.array_equal(plain.labels, flipped.labels)
        assert np.array_equal(plain.masks, flipped.masks)
        assert np.allclose(plain.scores, flipped.scores, atol=1e-5)


class Waits(Future):
    """A background that runs nothing before it is asked for."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def result(self, timeout=None):
        return self.function()


def test_scores_of_tiles_are_joined_as_they_come():
    """A semantic tile's scores take more than its logits."""
    image, size, alive = picture(100, 130, discs=4)[0], (32, 32), weakref.WeakSet()
    tiled = Tiled(task_of("semantic"), True)

    def submit(function):
        assert len(alive) <= 1
        done = Future()
        done.set_result(function())
        alive.add(done.result())
        return done

    inputs, placement = tiled.geometry.prepare(image, size)
    assert len(inputs) > 9
    found = tiled.segment(
        lambda chosen, *_: ColourNetwork()(inputs[chosen])[-1].logits(),
        *(submit, [len(inputs)], [placement], size, CLASSES, len(inputs)),
    )
    assert torch.equal(found[0].ids, segmenter_of("semantic", tile=True)(image).prediction.ids)


@pytest.mark.parametrize("kind", KINDS)
def test_both_together_and_in_evaluations(kind):
    """An evaluation holds the logits of two calls of the network, and gives what a segmenter does."""
    size, network = (32, 32), ColourNetwork()
    images = [picture(*shape, discs=4)[0] for shape in ((100, 130), (30, 30), (64, 90))]
    for options in ({"tile": 48}, {"tile": True}, {"tile": True, "tta": "flip"}):
        segmenter = segmenter_of(kind, network, **options)
        tiled = Tiled(segmenter.task, options["tile"])
        prepared = [tiled.geometry.prepare(image, size) for image in images]
        inputs, placements = torch.cat([parts for parts, _ in prepared]), [placement for _, placement in prepared]
        alive, most = weakref.WeakSet(), 0

        def run(chosen, placements, counts, inputs=inputs, alive=alive):
            nonlocal most
            assert sum(counts) == chosen.stop - chosen.start
            assert len(placements) == len(counts) <= 3
            output = network(inputs[chosen])[-1].logits()
            alive.add(output.mask_logits)
            most = max(most, len(alive))
            return output

        counts = [len(parts) for parts, _ in prepared]
        found = tiled.segment(run, Waits, counts, placements, size, CLASSES, at_once=3)
        assert most == 2
        for image, one, parts, placement in zip(images, found, inputs.split(counts), placements, strict=True):
            expected = segmenter(image).prediction
            assert all(
                torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in zip(one, expected, strict=True)
            )
            view = tiled.geometry.view(parts, placement, size)
            assert view.shape[1:] == placement[2:]
            if options["tile"] is True and len(parts) > 2:
                assert np.array_equal(view.permute(1, 2, 0), image)


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_of_one_tile_is_seen_as_without_tiles(kind):
    image = random_image(30, 20)
    plain, tiled = (segmenter_of(kind, random_network(), tile=tile)(image) for tile in (False, 32))
    assert np.array_equal(plain.map, tiled.map)
    assert np.array_equal(plain.scores, tiled.scores)


def test_a_mirrored_input_is_rolled_by_whole_patches():
    """Their masks would lie beside those of the image otherwise."""
    task = with_mirrored(task_of("panoptic"), 14, tta="flip")
    (seen, mirrored), _ = task.geometry.prepare(random_image(42, 25), (42, 42))
    assert torch.equal(mirrored, seen.flip(-1).roll(-14, -1))


def test_tiles_that_are_longer_than_an_image_make_it_no_smaller():
    for tile, size, reduced in ((False, (20, 2000), True), (32, (20, 2000), False), (32, (20, 30), False)):
        task = task_of("semantic")
        geometry = (Tiled(task, tile) if tile else task).geometry
        assert geometry.is_reduced(geometry.prepare(random_image(*size), (32, 32))[1], (32, 32)) is reduced


def test_what_does_not_go_together_is_said():
    with pytest.raises(InputError, match="tta=scale is none of"):
        with_mirrored(task_of("panoptic"), 16, tta="scale")
    with pytest.raises(InputError, match="needs unpadded=false"):
        segmenter_of("panoptic", tta="flip", unpadded=True)
    with pytest.raises(InputError, match="without tile"):
        segmenter_of("semantic", tile=32).probabilities(random_image(40, 50))


@pytest.mark.slow
def test_eval_and_predict_take_the_keys(run, shapes, tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    options = ("tile=40", "tta=flip", "max_pixels=100000")
    folder = tmp_path / "eval"
    typed("eval", f"ckpt={run}", *options, "save_predictions=true", f"run_folder={folder}", "trainer.accelerator=cpu")
    scores = json.loads((folder / "metrics.json").read_text())
    assert "pq" in scores
    assert {key: scores.get(key) for key in ("tile", "tta", "unpadded")} == {
        "tile": 40,
        "tta": "flip",
        "unpadded": None,
    }
    images = sorted((folder / "predictions" / "panoptic").iterdir())
    assert len(images) == 10
    image = random_image(90, 110)
    Image.fromarray(image).save(tmp_path / "a.png")
    typed("predict", f"ckpt={run}", f"images={tmp_path / 'a.png'}", f"out={tmp_path / 'out'}", *options, "device=cpu")
    ids = np.asarray(Image.open(tmp_path / "out" / "predictions" / "panoptic" / "a.png"))
    segmenter = Segmenter.load(run, "cpu", tile=40, tta="flip", score_threshold=0)
    assert np.array_equal(ids[..., 0], segmenter(image).map)
    with pytest.raises(InputError, match="1 of 1 images"):
        typed("predict", f"ckpt={run}", f"images={tmp_path / 'a.png'}", f"out={tmp_path / 'no'}", "max_pixels=9899")
