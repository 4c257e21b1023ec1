"""A trained network as a function from images to results."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from eomt.classes import Classes
from eomt.errors import InputError
from eomt.inference.load_image import load_image
from eomt.inference.result import Result
from eomt.inference.segmenter import Segmenter
from eomt.postprocess.types import Instances
from eomt.tasks import task_of
from tests.random_networks import CLASSES, KINDS, OPTIONS, assert_same, random_image, random_network, write_checkpoint


def segmenter_of(kind, network=None):
    return Segmenter(network or random_network(), task_of(kind, OPTIONS[kind]), CLASSES, "cpu")


@pytest.mark.parametrize("kind", KINDS)
def test_results_are_the_networks_whatever_the_batch(kind):
    # In float64, where what a batch does to the rounding moves no pixel.
    segmenter = segmenter_of(kind, random_network().double())
    images = [random_image(*size, seed) for seed, size in enumerate([(40, 50), (30, 30), (20, 90), (64, 32), (1, 7)])]
    taken = []
    hook = segmenter.network.register_forward_hook(lambda module, args, output: taken.extend(args[0]))
    together = segmenter(images)
    hook.remove()
    assert isinstance(together, list)
    for image, result in zip(images, together, strict=True):
        inputs, placement = segmenter.task.geometry.prepare(image, (32, 32))
        with torch.no_grad():
            output = segmenter.network(inputs)[-1]
        direct = segmenter.task.predict(output, placement, (32, 32), CLASSES)
        assert len(direct.labels) > 0
        assert_same(result, Result(direct, CLASSES), 1e-6)
        assert result.size == image.shape[:2]
    # Semantic models take several windows of each.
    assert len(taken) == (5 if kind != "semantic" else 2 + 1 + 5 + 2 + 7)
    for batch_size, num_workers in ((1, 0), (2, 3), (3, 0), (100, 2)):
        for one, other in zip(segmenter(images, batch_size, num_workers), together, strict=True):
            assert_same(one, other, 1e-6)


def test_the_network_takes_no_more_than_a_batch_and_uses_no_masks():
    segmenter = segmenter_of("semantic")
    taken = []
    segmenter.network.register_forward_hook(lambda module, args, output: taken.append((len(args[0]), len(output))))
    images = (random_image(20, 90, seed) for seed in range(3))
    assert len(segmenter(images, batch_size=4)) == 3
    # Five windows each, which do not wait for each other's image.
    assert taken == [(4, 1), (4, 1), (4, 1), (3, 1)]
    assert not segmenter.network.training


def test_a_stream_asks_for_images_as_it_goes():
    segmenter = segmenter_of("panoptic")
    asked = []

    def images():
        for k in range(100):
            asked.append(k)
            yield random_image(30, 30, k)

    stream = segmenter.stream(images(), batch_size=2)
    next(stream)
    assert len(asked) == 2
    stream = segmenter.stream(images(), batch_size=2, num_workers=2)
    asked.clear()
    next(stream)
    stream.close()
    assert len(asked) < 10


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_input_gives_the_files_answer(kind, tmp_path):
    segmenter = segmenter_of(kind)
    image = random_image(36, 52)
    path = tmp_path / "image.png"
    Image.fromarray(image).save(path)
    expected = segmenter(path)
    assert isinstance(expected, Result)
    assert len(expected) > 0
    planes = torch.from_numpy(image).permute(2, 0, 1)
    opaque = np.dstack([image, np.full(image.shape[:2], 255, np.uint8)])
    for same in (
        str(path),
        Image.open(path),
        Image.fromarray(opaque),
        image,
        opaque,
        image.astype(np.uint16) * 257,
        image / 255,
        (image / 255).astype(np.float32),
        planes,
        planes / 255,
        torch.from_numpy(opaque).permute(2, 0, 1),
    ):
        assert_same(segmenter(same), expected)
    for several in ([image, path], (image for _ in range(2)), np.stack([image, image]), torch.stack([planes, planes])):
        results = segmenter(several)
        assert len(results) == 2
        for result in results:
            assert_same(result, expected, 1e-5)


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
        assert f"36x52: {np.sum(result.labels == result.labels[0])} {result.names[0]}" in repr(result)

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


def test_a_checkpoint_is_the_network_that_it_holds(tmp_path):
    image = random_image(36, 52)
    for kind in KINDS:
        saved = {"config": {"postprocess": OPTIONS[kind] | {"max_bytes": None}}}
        path = write_checkpoint(tmp_path / f"{kind}.ckpt", kind, **saved)
        segmenter = Segmenter.load(path, device="cpu")
        assert segmenter.precision == "32"
        assert segmenter.task == task_of(kind, OPTIONS[kind])
        assert segmenter.classes == CLASSES
        assert_same(segmenter(image), segmenter_of(kind)(image))
    over = Segmenter.load(tmp_path / "panoptic.ckpt", device="cpu", score_threshold=0.99, max_bytes=1)
    assert over.task == task_of("panoptic", OPTIONS["panoptic"] | {"score_threshold": 0.99, "max_bytes": 1})
    mixed = Segmenter.load(tmp_path / "semantic.ckpt", device="cpu", precision="bf16")
    assert mixed(image).size == (36, 52)


def test_what_cannot_be_loaded_is_named(tmp_path, monkeypatch):
    path = write_checkpoint(tmp_path / "one.ckpt", "panoptic")
    for options, message in (
        ({"device": "abacus"}, "device=abacus"),
        ({"device": "cuda:99"}, "device=cuda:99"),
        ({"precision": "8"}, "precision=8 is none of 32, bf16, 16"),
        ({"top_k": 3}, "top_k is no option of panoptic"),
    ):
        with pytest.raises(InputError, match=message):
            Segmenter.load(path, **options)
    with pytest.raises(InputError, match="no such file"):
        Segmenter.load(tmp_path / "none.ckpt")
    network = random_network()
    network.spec["num_queries"] = 9
    with pytest.raises(InputError, match="other weights than its network has"):
        Segmenter.load(write_checkpoint(tmp_path / "two.ckpt", "panoptic", network), device="cpu")
    with pytest.raises(InputError, match="3 classes apart, but 1"):
        Segmenter(random_network(), task_of("semantic"), Classes(CLASSES.items[:1]), "cpu")
    # A task of someone's own is code that would run; a reader's is not, as it is not used.
    (tmp_path / "someones.py").write_text("raise SystemExit('ran')")
    monkeypatch.syspath_prepend(tmp_path)
    foreign = write_checkpoint(tmp_path / "foreign.ckpt", "someones.Task")
    with pytest.raises(InputError, match=r"would run someones\.Task"):
        Segmenter.load(foreign, device="cpu")
    with pytest.raises(SystemExit, match="ran"):
        Segmenter.load(foreign, device="cpu", trust_code=True)
    reader = {"config": {"data": {"train": {"_target_": "someones.Reader"}}}}
    Segmenter.load(write_checkpoint(tmp_path / "reader.ckpt", "panoptic", **reader), device="cpu")


def test_unreadable_images_are_errors_or_left_out(tmp_path):
    segmenter = segmenter_of("panoptic")
    image = random_image(30, 30)
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    images = [image, tmp_path / "broken.jpg", image, tmp_path / "none.jpg"]
    with pytest.raises(InputError, match=r"broken\.jpg cannot be read: it is no image"):
        segmenter(images)
    failed = []
    for num_workers in (0, 2):
        results = segmenter.stream(images, 2, num_workers, lambda source, error: failed.append((source, str(error))))
        assert len(list(results)) == 2
    assert [source for source, _ in failed] == images[1::2] * 2
    assert failed[1][1].endswith("none.jpg: no such file")
    assert segmenter([]) == []
    with pytest.raises(InputError, match="batch_size=0"):
        segmenter(image, batch_size=0)

    def run_out(*args):
        raise torch.OutOfMemoryError

    segmenter.network.register_forward_hook(run_out)
    with pytest.raises(InputError, match="batch_size=2 does not fit into the memory of cpu"):
        segmenter([image] * 5, batch_size=2)


def test_files_of_all_depths_and_colours(tmp_path):
    rgb = random_image(20, 30)
    grey = rgb[..., 0]
    deep = grey.astype(np.uint16) * 257
    white = np.full_like(rgb, 255)
    alpha = np.where(np.arange(30) < 10, 0, 255).astype(np.uint8) * np.ones((20, 1), np.uint8)
    over_white = np.where(alpha[..., None] > 0, rgb, white)
    palette = Image.fromarray(rgb).quantize(16)
    clear = palette.copy()
    clear.info["transparency"] = int(np.asarray(palette)[0, 0])
    seen = np.array(palette.convert("RGB"))
    cases = {
        "grey.png": (Image.fromarray(grey), np.dstack([grey] * 3)),
        "deep.png": (Image.fromarray(deep), np.dstack([grey] * 3)),
        "deep.tif": (Image.fromarray(deep), np.dstack([grey] * 3)),
        "wide.tif": (Image.fromarray(deep.astype(np.int32)), np.dstack([grey] * 3)),
        "float.tif": (Image.fromarray((grey / 255).astype(np.float32)), np.dstack([grey] * 3)),
        "bits.png": (Image.fromarray(grey > 99), np.dstack([(grey > 99) * np.uint8(255)] * 3)),
        "alpha.png": (Image.fromarray(np.dstack([rgb, alpha])), over_white),
        "alpha.webp": (Image.fromarray(np.dstack([rgb, alpha])), over_white),
        "grey_alpha.png": (
            Image.fromarray(np.dstack([grey, alpha]), "LA"),
            np.where(alpha[..., None] > 0, grey[..., None], white),
        ),
        "palette.png": (palette, seen),
        "clear.png": (clear, np.where((np.asarray(palette) == np.asarray(palette)[0, 0])[..., None], white, seen)),
        "rgb.bmp": (Image.fromarray(rgb), rgb),
        "inks.tif": (Image.fromarray(np.dstack([255 - rgb, np.zeros_like(grey)]), "CMYK"), rgb),
    }
    for name, (image, expected) in cases.items():
        image.save(tmp_path / name, **({"lossless": True} if name.endswith("webp") else {}))
        found = load_image(tmp_path / name)
        assert found.dtype == np.uint8, name
        assert np.array_equal(found, expected), name
    # The nearest of the 256 values that 16 bits stand for.
    assert load_image(np.array([[0, 128, 129, 65535]], np.uint16))[0, :, 0].tolist() == [0, 0, 1, 255]
    frames = [Image.fromarray(rgb), Image.fromarray(255 - rgb)]
    frames[0].save(tmp_path / "frames.tif", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "frames.gif", save_all=True, append_images=frames[1:])
    assert np.array_equal(load_image(tmp_path / "frames.tif"), rgb)
    assert np.abs(load_image(tmp_path / "frames.gif").astype(int) - rgb).mean() < 10


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_upright(orientation, tmp_path):
    rgb = random_image(20, 30)
    # EXIF 2.3, tag 274: where row 0 and column 0 of what is stored belong.
    turned = {
        1: rgb,
        2: rgb[:, ::-1],
        3: rgb[::-1, ::-1],
        4: rgb[::-1],
        5: rgb.transpose(1, 0, 2),
        6: np.rot90(rgb, -1),
        7: rgb[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(rgb, 1),
    }[orientation]
    exif = Image.Exif()
    exif[0x112] = orientation
    deep = rgb[..., 0].astype(np.uint16) * 257
    for name in ("a.png", "a.tif", "a.jpg"):
        Image.fromarray(rgb).save(tmp_path / name, exif=exif, **({"quality": 95} if name == "a.jpg" else {}))
        with Image.open(tmp_path / name) as opened:
            for found in (load_image(tmp_path / name), load_image(opened)):
                assert found.shape == turned.shape
                assert np.abs(found.astype(int) - turned).mean() < (9 if name == "a.jpg" else 1e-9)
    for name in ("deep.png", "deep.tif"):
        Image.fromarray(deep).save(tmp_path / name, exif=exif)
        assert np.array_equal(load_image(tmp_path / name), turned[..., :1].repeat(3, axis=2)), name


def test_bad_images_are_named(tmp_path):
    rgb = random_image(60, 60)
    for suffix in ("jpg", "png", "tif", "webp"):
        path = tmp_path / f"cut.{suffix}"
        Image.fromarray(rgb).save(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(InputError, match=rf"cut\.{suffix} cannot be read") as caught:
            load_image(path)
        assert "\n" not in str(caught.value)
    (tmp_path / "empty.png").touch()
    Image.fromarray(np.full((4, 4), 70_000, np.int32)).save(tmp_path / "wide.tif")
    for source, message in (
        (tmp_path / "empty.png", r"empty\.png cannot be read: it is no image"),
        (tmp_path / "wide.tif", r"wide\.tif cannot be read: its values go from 70000 to 70000"),
        (tmp_path, "is a folder, not an image"),
        (np.zeros((3, 8, 8), np.uint8), r"found shape \[3, 8, 8\]"),
        (torch.zeros(8, 8, 3, dtype=torch.uint8), r"found shape \[8, 8, 3\]"),
        (np.zeros((0, 8, 3), np.uint8), "at least one pixel"),
        (rgb.astype(np.float32), "must lie in 0..1"),
        (np.full((4, 4), np.nan), "must lie in 0..1"),
        (rgb.astype(np.int64), "found int64"),
        (None, "found NoneType"),
    ):
        with pytest.raises(InputError, match=message):
            load_image(source)


def test_classes_must_be_classes(tmp_path):
    with pytest.raises(InputError, match=r"Classes\.from_categories"):
        Segmenter.load(tmp_path / "x.ckpt", classes=["a", "b"])
