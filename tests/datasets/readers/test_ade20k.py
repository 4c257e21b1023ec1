"""ADE20K's readers on trees in its layout and on the shared real files."""

import io
import pickle
import zipfile

import numpy as np
import pytest
from PIL import Image

from datasets.readers.ade20k import Ade20kPanoptic, Ade20kSemantic
from eomt.published_classes import ADE20K as CLASSES
from tests import label_files
from tests.label_files import check_classes, label_png, photo, segments, turned, write_folder, write_set, write_zip

WALL, SKY, BED, PERSON, FLAG = 0, 2, 7, 12, 149
SEMANTIC = np.array([[1, 1, 3, 3, 8], [1, 0, 0, 8, 8], [13, 13, 13, 150, 150]])
# Red: the class's number among the things; green: the instance.
BED_RED, PERSON_RED, FLAG_RED = 1, 4, 100
RED = np.array([[0, 0, BED_RED, 0, BED_RED], [0, BED_RED, 0, 0, 0], [PERSON_RED, PERSON_RED, 0, FLAG_RED, FLAG_RED]])
GREEN = np.array([[0, 0, 7, 0, 7], [0, 7, 0, 0, 0], [1, 2, 0, 255, 0]])


def instance_png(red, green):
    return label_png(np.stack([red, green, np.zeros_like(red)], axis=-1))


class Ade:
    """Two validation images, of which the second has a single value, and one for training."""

    def __init__(self):
        self.challenge = {
            "images/validation/ADE_val_00000001.jpg": photo(3, 5),
            "images/validation/ADE_val_00000002.jpg": photo(2, 2, 1),
            "images/training/ADE_train_00000001.jpg": photo(1, 2, 2),
            "annotations/validation/ADE_val_00000001.png": label_png(SEMANTIC),
            "annotations/validation/ADE_val_00000002.png": label_png(np.full((2, 2), 3)),
            "annotations/training/ADE_train_00000001.png": label_png([[150, 0]]),
            "objectInfo150.txt": b"Idx\n",
        }
        self.instances = {
            "validation/ADE_val_00000001.png": instance_png(RED, GREEN),
            "validation/ADE_val_00000002.png": instance_png(np.zeros((2, 2), int), np.zeros((2, 2), int)),
            "training/ADE_train_00000001.png": instance_png(np.array([[100, 0]]), np.array([[3, 0]])),
        }

    def write(self, root, layout):
        for name, files in (("ADEChallengeData2016", self.challenge), ("annotations_instance", self.instances)):
            if layout == "zip without folder":
                write_zip(root / f"{name}.zip", files)
            elif layout == "itself" and name == "ADEChallengeData2016":
                write_folder(root, files)
            else:
                inside = layout == "inside" and name == "annotations_instance"
                write_set(root / "ADEChallengeData2016" if inside else root, name, files, layout == "zip")
        return root


@pytest.fixture
def ade():
    return Ade()


LAYOUTS = ["zip", "zip without folder", "extracted", "itself", "inside"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_semantic(tmp_path, ade, layout):
    data = Ade20kSemantic(ade.write(tmp_path, layout), "val")
    data = pickle.loads(pickle.dumps(data))
    assert [data.name(k) for k in range(len(data))] == ["ADE_val_00000001.jpg", "ADE_val_00000002.jpg"]
    assert [data.image_id(k) for k in range(2)] == [1, 2]
    assert data.has_targets().tolist() == [True, True]
    image, targets = data.read(0)
    assert image.shape == (3, 5, 3)
    check_classes(targets, SEMANTIC - 1)
    check_classes(data.read(1)[1], np.full((2, 2), SKY))
    assert len(Ade20kSemantic(tmp_path, "train")) == 1


@pytest.mark.parametrize("layout", LAYOUTS)
def test_panoptic(tmp_path, ade, layout):
    data = Ade20kPanoptic(ade.write(tmp_path, layout), "val")
    data = pickle.loads(pickle.dumps(data))
    _, targets = data.read(0)
    # Stuff by class, then things by instance. The bed hides the sky and fills void; the bed's pixels of the
    # semantic map, a person's and a flag's without an instance are void.
    assert targets.labels.tolist() == [WALL, SKY, PERSON, PERSON, BED, FLAG]
    assert targets.ids[0].tolist() == [[1, 1, 5, 2, 5], [1, 5, 0, 0, 0], [3, 4, 0, 6, 0]]
    assert not targets.crowd.any()
    assert data.classes == CLASSES
    assert list(segments(data.read(1)[1])) == [SKY]
    _, targets = Ade20kPanoptic(tmp_path, "train").read(0)
    assert (targets.labels.tolist(), targets.ids.tolist()) == ([FLAG], [[[1, 0]]])


def test_panoptic_agrees_with_a_plain_reading(tmp_path, ade):
    generator = np.random.default_rng(0)
    semantic = generator.integers(0, 151, (40, 50))
    green = generator.integers(0, 30, (40, 50)) * generator.integers(0, 2, (40, 50))
    red = generator.integers(1, 101, 30)[green] * (green > 0)
    ade.challenge["images/validation/ADE_val_00000001.jpg"] = photo(40, 50)
    ade.challenge["annotations/validation/ADE_val_00000001.png"] = label_png(semantic)
    ade.instances["validation/ADE_val_00000001.png"] = instance_png(red, green)
    _, targets = Ade20kPanoptic(ade.write(tmp_path, "extracted"), "val").read(0)

    things = [k for k, item in enumerate(CLASSES) if item.is_thing]
    expected = [
        (k, (semantic == k + 1) & (green == 0))
        for k, item in enumerate(CLASSES)
        if not item.is_thing and ((semantic == k + 1) & (green == 0)).any()
    ]
    expected += [(things[red[green == g][0] - 1], green == g) for g in np.unique(green[green > 0])]
    assert targets.labels.tolist() == [label for label, _ in expected]
    np.testing.assert_array_equal(targets.masks().numpy(), np.stack([mask for _, mask in expected]))


@pytest.mark.parametrize("reader", [Ade20kSemantic, Ade20kPanoptic])
def test_photos_are_usually_taken_as_stored(tmp_path, ade, reader):
    ade.challenge["images/validation/ADE_val_00000001.jpg"] = data = photo(3, 5, exif=turned(4))
    root, stored = ade.write(tmp_path, "zip"), np.asarray(Image.open(io.BytesIO(data)))
    assert (reader(root, "val").read(0)[0] == stored).all()
    assert (reader(root, "val", "upright").read(0)[0] == stored[::-1]).all()


def fails(match, root, read=None, reader=Ade20kPanoptic, split="val"):
    def attempt():
        data = reader(root, split)
        if read is not None:
            data.read(read)

    label_files.fails(match, attempt)


def test_missing_files(tmp_path, ade):
    fails(r"data\.root is not set", None)
    fails(r"nowhere is no folder; it must hold ADEChallengeData2016\.zip", tmp_path / "nowhere")
    fails(r"lacks ADEChallengeData2016\.zip or ADEChallengeData2016/; download", tmp_path)
    fails("ADE20K has the splits train and val, not 'test'", tmp_path, split="test")
    write_zip(tmp_path / "ADEChallengeData2016.zip", {"ADEChallengeData2016/objectInfo150.txt": b""})
    fails(
        r"there are no images .*ADEChallengeData2016\.zip: images/validation/\*\.jpg", tmp_path, reader=Ade20kSemantic
    )
    fails(r"lacks annotations_instance\.zip or annotations_instance/: download annotations_instance\.tar", tmp_path)
    del ade.challenge["annotations/validation/ADE_val_00000002.png"]
    ade.write(tmp_path, "zip")
    fails(
        r"1 of 2 images in .*2016\.zip: images/validation/ have no ground truth in .*2016\.zip: annotations/validation/"
        r".*: ADE_val_00000002\.jpg; complete the files",
        tmp_path,
    )


@pytest.mark.parametrize(
    ("semantic", "red", "green", "message"),
    [
        (151, 1, 1, r"2016/annotations/validation/ADE_val_00000002\.png has the value 151, but no class for it: a sem"),
        (1, 0, 9, r"instance/validation/ADE_val_00000002\.png has instances \(green\) of a category \(red\) that"),
        (1, 101, 9, r"that is none of 1 to 100"),
    ],
)
def test_bad_values(tmp_path, ade, semantic, red, green, message):
    square = np.ones((2, 2), dtype=int)
    ade.challenge["annotations/validation/ADE_val_00000002.png"] = label_png(square * semantic)
    ade.instances["validation/ADE_val_00000002.png"] = instance_png(square * red, square * green)
    fails(message, ade.write(tmp_path, "extracted"), read=1)


def test_sizes_must_agree(tmp_path, ade):
    ade.instances["validation/ADE_val_00000001.png"] = instance_png(RED[:2], GREEN[:2])
    ade.challenge["annotations/validation/ADE_val_00000002.png"] = label_png(np.ones((2, 3)))
    ade.write(tmp_path, "extracted")
    fails(
        r"annotations_instance/.*_00000001\.png is 5x2 \(width x height\), but its image .*1\.jpg is 5x3", tmp_path, 0
    )
    fails(r"annotations/validation/.*2\.png is 3x2 .* is 2x2", tmp_path, 1)
    ade.instances["validation/ADE_val_00000001.png"] = label_png(GREEN)
    fails(
        r"_00000001\.png must hold segment ids in red, green and blue, but its mode is L", ade.write(tmp_path, "zip"), 0
    )


def test_the_real_archive(shared_data, tmp_path):
    root = shared_data / "ade20k"
    with zipfile.ZipFile(root / "ADEChallengeData2016.zip") as archive:
        rows = archive.read("ADEChallengeData2016/objectInfo150.txt").decode().splitlines()[1:]
        archive.extractall(tmp_path)
    assert CLASSES.names == [row.split("\t")[-1].split(",")[0].strip() for row in rows]
    seen = set()
    for split, count in (("train", 18), ("val", 8)):
        packed, extracted = Ade20kSemantic(root, split), Ade20kSemantic(tmp_path / "ADEChallengeData2016", split)
        assert len(packed) == len(extracted) == count
        folder = {"train": "training", "val": "validation"}[split]
        for k in range(count):
            assert packed.name(k) == extracted.name(k)
            (image, targets), (other, same) = packed.read(k), extracted.read(k)
            np.testing.assert_array_equal(image, other)
            np.testing.assert_array_equal(targets.ids, same.ids)
            stem = packed.name(k).removesuffix(".jpg")
            values = Image.open(tmp_path / f"ADEChallengeData2016/annotations/{folder}/{stem}.png")
            check_classes(targets, np.asarray(values).astype(int) - 1)
            seen |= set(targets.labels.tolist())
    assert len(seen) > 60
