"""The built-in dataset: its files, and how they come into the cache."""

import zipfile

import numpy as np
import pytest

from datasets.readers.label_maps import VOID
from datasets.shapes import dataset
from datasets.shapes.dataset import ensure_shapes, shape_scene, shapes
from datasets.shapes.kinds import STUFF, THINGS
from eomt.errors import InputError
from tests.label_files import check_classes

SMALL = {"seed": 3, "train_images": 24, "val_images": 6, "size": 64}
THING_IDS = {kind.id for kind in THINGS}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return ensure_shapes(**SMALL, folder=tmp_path_factory.mktemp("shapes"))


def test_equal_seed_gives_equal_bytes_and_more_images_leave_the_first_as_they_are(root, tmp_path):
    again = ensure_shapes(**SMALL, folder=tmp_path)
    assert again.name == root.name
    for path in root.iterdir():
        assert (again / path.name).read_bytes() == path.read_bytes(), path.name
    fewer = ensure_shapes(**SMALL | {"train_images": 2}, folder=tmp_path)
    other = ensure_shapes(**SMALL | {"train_images": 2, "seed": 4}, folder=tmp_path)
    pictures = [zipfile.ZipFile(folder / "train2017.zip") for folder in (root, fewer, other)]
    for name in pictures[1].namelist():
        assert pictures[0].read(name) == pictures[1].read(name) != pictures[2].read(name)
    images = [set(zipfile.ZipFile(root / f"{split}2017.zip").namelist()) for split in ("train", "val")]
    assert not {name[-10:] for name in images[0]} & {name[-10:] for name in images[1]}


def test_a_folder_is_written_once_and_lies_in_the_cache(root, tmp_path, monkeypatch):
    monkeypatch.setenv("EOMT_CACHE", str(tmp_path / "cache"))
    first = ensure_shapes(0, 1, 1, 32)
    assert first.parent == tmp_path / "cache"
    monkeypatch.setattr(dataset, "_write", lambda *_: pytest.fail("written twice"))
    assert ensure_shapes(0, 1, 1, 32) == first
    assert [p.name for p in first.parent.iterdir()] == [first.name]


def test_an_interrupted_write_leaves_nothing_that_looks_complete(tmp_path, monkeypatch):
    def interrupted(draft, *_):
        (draft / "train2017.zip").write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(dataset, "_write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            ensure_shapes(0, 1, 1, 32, tmp_path)
    assert not list(tmp_path.iterdir())
    # What a killed process could not clean up does not matter either.
    whole = ensure_shapes(0, 1, 1, 32, tmp_path)
    left_over = tmp_path / f".{whole.name}.0123"
    whole.rename(left_over)
    (left_over / "train2017.zip").write_bytes(b"half")
    assert zipfile.ZipFile(ensure_shapes(0, 1, 1, 32, tmp_path) / "train2017.zip").testzip() is None


def test_the_loser_of_a_race_takes_the_winners_folder(tmp_path, monkeypatch):
    write = dataset._write

    def overtaken(draft, *arguments):
        write(draft, *arguments)
        monkeypatch.setattr(dataset, "_write", write)
        ensure_shapes(0, 1, 1, 32, tmp_path)
        (tmp_path / draft.name.split(".")[1] / "winner").touch()

    monkeypatch.setattr(dataset, "_write", overtaken)
    assert (ensure_shapes(0, 1, 1, 32, tmp_path) / "winner").exists()
    assert len(list(tmp_path.iterdir())) == 1


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file.*EOMT_CACHE"):
        ensure_shapes(0, 1, 1, 32, tmp_path / "file")


@pytest.mark.parametrize(("kind", "kinds"), [("panoptic", THINGS + STUFF), ("instance", THINGS)])
def test_the_readers_of_coco_read_what_was_drawn(kind, kinds, root, tmp_path, monkeypatch):
    monkeypatch.setenv("EOMT_CACHE", str(tmp_path))
    for split in ("train", "val"):
        reader = shapes(kind, split, root=root)
        assert reader.classes.ids == [one.id for one in kinds]
        assert reader.classes.names == [one.name for one in kinds]
        assert reader.classes.is_thing == [one in THINGS for one in kinds]
        assert len(reader) == SMALL[f"{split}_images"]
        assert not any("are crowds" in line for line in reader.remarks())
        for index in range(len(reader)):
            image, targets = reader.read(index)
            scene = shape_scene(SMALL["seed"], split, index, SMALL["size"])
            assert np.abs(image.astype(int) - scene.image).mean() < 4  # JPEG's loss
            read = {
                (reader.classes.ids[label], bool(crowd), mask.numpy().tobytes())
                for label, crowd, mask in zip(targets.labels, targets.crowd, targets.masks(), strict=True)
            }
            drawn = {
                (s.category_id, s.crowd, (scene.ids == number).tobytes())
                for number, s in enumerate(scene.segments, start=1)
                if s.category_id in reader.classes.ids
            }
            assert read == drawn


def test_the_semantic_set_agrees_with_the_panoptic_one(root, tmp_path, monkeypatch):
    monkeypatch.setenv("EOMT_CACHE", str(tmp_path))
    for split in ("train", "val"):
        data, panoptic = shapes("semantic", split, root=root), shapes("panoptic", split, root=root)
        assert (len(data), data.classes) == (SMALL[f"{split}_images"], panoptic.classes)
        for k in range(len(data)):
            (image, targets), (other, whole) = data.read(k), panoptic.read(k)
            np.testing.assert_array_equal(image, other)
            check_classes(targets, np.append(whole.labels.numpy(), VOID)[whole.ids[0].numpy() - 1])
    for kind in ("semantic", "instance"):
        with pytest.raises(InputError, match=r"lacks train2017\.zip or sem.* shapes: set data\.root=null .* out task="):
            shapes(kind, "train", root=tmp_path)
