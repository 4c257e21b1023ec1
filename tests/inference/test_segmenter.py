"""A trained network as a function from images to results, and its loading."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from eomt.classes import Classes
from eomt.errors import InputError
from eomt.inference.result import Result
from eomt.inference.segmenter import Segmenter
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


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(60_000, 1), (1, 100_000)])
def test_images_of_extreme_proportions(kind, shape, caplog):
    result = segmenter_of(kind)(random_image(*shape))
    assert result.size == shape
    assert result.picture().size == shape[::-1]
    assert ("too long for 32 windows" in caplog.text) == (kind == "semantic")


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
def test_every_form_of_an_image_gives_the_files_result(kind, tmp_path):
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
        path.read_bytes(),
        bytearray(path.read_bytes()),
        io.BytesIO(path.read_bytes()),
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
        if isinstance(same, io.BytesIO):
            same.seek(0)
        (one,) = segmenter.stream(same)
        assert_same(one, expected)
    for several in ([image, path], (image for _ in range(2)), np.stack([image, image]), torch.stack([planes, planes])):
        results = segmenter(several)
        assert len(results) == 2
        for result in results:
            assert_same(result, expected, 1e-5)


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
        ({"device": "abacus"}, "device=abacus is no device of PyTorch: choose cpu"),
        ({"device": ["cpu"]}, r"device=\['cpu'\] is no device of PyTorch"),
        ({"device": "cuda:99"}, r"device=cuda:99 cannot be used \(.*\): choose cpu"),
        ({"tile": -1}, "tile=-1 must be true, false or a whole number of at least 1 and at most 65536"),
        ({"tile": "abc"}, "tile='abc' must be true, false or a whole number"),
        ({"unpadded": "no"}, "unpadded='no' must be true or false"),
        ({"tta": "x"}, "tta=x is none of null, flip"),
        ({"compile": ["x"]}, r"compile=\['x'\] is none of true, false, max-autotune"),
        ({"max_pixels": "x"}, "max_pixels='x' must be a whole number of at least 1"),
        ({"network": "x"}, "network=x must be options by name"),
        ({"foo": 3}, r"foo is no argument of Segmenter\.load, and postprocess\.foo no option of panoptic segmentation"),
        ({"precision": "8"}, "precision=8 is none of 32, bf16, 16"),
        ({"top_k": 3}, "top_k is no option of panoptic"),
    ):
        with pytest.raises(InputError, match=message):
            Segmenter.load(path, **options)
    with pytest.raises(InputError, match="no such file"):
        Segmenter.load(tmp_path / "none.ckpt")
    with pytest.raises(InputError, match="takes a path or a Hub id, found NoneType"):
        Segmenter.load(None)
    with pytest.raises(InputError, match=r"Classes\.from_categories"):
        Segmenter.load(path, classes=["a", "b"])
    network = random_network()
    network.spec["num_queries"] = 9
    with pytest.raises(InputError, match="other weights than its network"):
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
    for arguments, message in (
        ({"batch_size": 0}, "batch_size=0 must be a whole number of at least 1 and at most 65536"),
        ({"batch_size": "8"}, "batch_size='8' must be a whole number"),
        ({"num_workers": -1}, "num_workers=-1 must be a whole number of at least 0 and at most 512"),
        ({"threshold": "0.5"}, "threshold='0.5' must be a number from 0 to 1"),
    ):
        # Also a stream tells them at once, not at its first image.
        for call in (segmenter, segmenter.stream):
            with pytest.raises(InputError, match=message):
                call(image, **arguments)
    for value, message in (
        (None, "found NoneType, which cv2.imread gives"),
        (3, "found int"),
        ({"image": image}, "found dict"),
        ("", "path is empty"),
    ):
        for call in (segmenter, lambda images: list(segmenter.stream(images))):
            with pytest.raises(InputError, match=message):
                call(value)

    def run_out(*args):
        raise torch.OutOfMemoryError

    segmenter.network.register_forward_hook(run_out)
    with pytest.raises(InputError, match="batch_size=2 does not fit into the memory of cpu"):
        segmenter([image] * 5, batch_size=2)


def test_a_folder_is_the_images_in_it(tmp_path):
    segmenter = segmenter_of("panoptic")
    for name in ("b.png", "below/a.jpg", "c.txt", ".d.png"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random_image(30, 40)).save(path, format="PNG")
    expected = [tmp_path / "photos" / name for name in ("b.png", "below/a.jpg")]
    assert [result.source for result in segmenter(tmp_path / "photos")] == expected
    assert [result.source for result in segmenter(str(tmp_path / "photos"))] == expected
    assert [result.source for result in segmenter.stream(tmp_path / "photos")] == expected
    one = random_image(30, 30)
    assert [result.source for result in segmenter.stream([one, tmp_path / "photos"], 2, 2)][1:] == expected
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match="none has no image"):
        segmenter(tmp_path / "none")


def test_an_address_is_downloaded_once(tmp_path, web):
    Image.fromarray(random_image(36, 52)).save(tmp_path / "image.png")
    segmenter = segmenter_of("instance")
    result = segmenter(f"{web.address}/image.png")
    assert_same(result, segmenter(tmp_path / "image.png"))
    assert result.picture().size == segmenter(tmp_path / "image.png").picture().size
    assert web.asked == ["/image.png"]
    assert result.source == f"{web.address}/image.png"


def test_a_threshold_at_the_call(caplog):
    image = random_image(36, 52)
    segmenter = segmenter_of("instance")
    every = segmenter(image)
    assert segmenter.names == CLASSES.names
    least = float(np.median(every.scores))
    for result in (segmenter(image, threshold=least), *segmenter([image], threshold=least)):
        assert np.array_equal(result.scores, every.scores[every.scores >= least])
        # All that was asked for is painted and printed, also what is less likely than 0.5.
        assert "below" not in repr(result)
        assert np.array_equal(result.picture(), every.picture(threshold=least))
    assert min(every.scores) < 0.5
    with pytest.raises(InputError, match="threshold=2 must be a number from 0 to 1"):
        segmenter(image, threshold=2)
    assert not caplog.messages
    Segmenter(random_network(), task_of("panoptic"), CLASSES, "cpu")(image, threshold=0.3)
    assert "below score_threshold=0.8" in caplog.text


def test_probabilities_of_pixels():
    image = random_image(20, 90)
    segmenter = segmenter_of("semantic")
    found = segmenter.probabilities(image)
    assert found.shape == (len(CLASSES), 20, 90)
    assert found.dtype == np.float32
    assert np.allclose(found.sum(0), 1)
    assert found.min() >= 0
    assert np.array_equal(found.argmax(0), segmenter(image).label_map)
    assert np.allclose(segmenter.probabilities(image, batch_size=2), found, atol=1e-5)
    with pytest.raises(InputError, match="this is panoptic"):
        segmenter_of("panoptic").probabilities(image)


@pytest.mark.parametrize("exif", ["stored", "upright", None])
def test_a_run_on_photos_as_stored_is_told_that_they_are_turned(exif, tmp_path, caplog):
    path = write_checkpoint(tmp_path / "model.ckpt", "panoptic", config={"data": {"val": {"exif": exif}}})
    Segmenter.load(path, "cpu")
    assert ("the run took them as stored (data.exif=stored)" in caplog.text) == (exif == "stored")
