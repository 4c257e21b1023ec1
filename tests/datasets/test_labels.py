"""Missing and unusual values in labels: left out, read right or taken for granted, and said with their count."""

import json
import re

import numpy as np
import pytest

import eval as evaluation
import train
from datasets.loader import EvaluationLoader, ResumableLoader
from datasets.module import SegmentationData
from datasets.readers.coco import CocoInstance, CocoPanoptic
from datasets.readers.folder import FolderSemantic
from datasets.sampler import EpochBatchSampler, SampleKey
from datasets.samples import EvaluationSet, TrainingSet
from datasets.transforms import TrainTransform
from eomt.errors import InputError
from eomt.postprocess.geometry import FIT_AND_PAD
from tests.coco_files import CAT, DOG, SQUARE, InstanceSet, PanopticSet, annotation, id_png, image_rows
from tests.datasets.readers.test_coco_index import COMMON_FAULTS, INSTANCE_FAULTS, PANOPTIC_FAULTS
from tests.label_files import label_png, photo, write_folder
from tests.running import SMALL, configured


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EOMT_CACHE", str(tmp_path / "cache"))


def folder(root, labels, **options):
    write_folder(root / "images", {f"{k}.png": photo(*np.shape(v)[:2], k, "PNG") for k, v in enumerate(labels)})
    write_folder(root / "labels", {f"{k}.png": label_png(v) for k, v in enumerate(labels)})
    return FolderSemantic(root, "images", "labels", **options)


def instances(made, root, **options):
    return CocoInstance(made.write(root), images="train", annotations="truth/train.json", **options)


def panoptic(made, root, **options):
    return CocoPanoptic(made.write(root), "val", **options)


# Classes that are never seen


@pytest.mark.parametrize("names", [["ground", "lesion"], ["ground", "organ", "lesion"]])
@pytest.mark.parametrize("ignore", ["auto", 255])
def test_a_class_behind_void(tmp_path, names, ignore):
    stored = [*range(len(names) - 1), 255]
    labels = [np.array([stored] * 4)] * 100
    (line,) = folder(tmp_path, labels, classes=names, ignore=ignore).remarks()
    assert line.startswith("64 label files looked at (of 100) show no pixel of lesion, and ")
    assert f"{100 / len(names):.1f} % of their pixels are void: 255 is void; if it is lesion, 'data.classes={{" in line
    typed = re.search(r"'data\.classes=\{(.*?)\}'( data\.ignore=null)?", line)
    assert bool(typed[2]) == (ignore == 255)
    rows = dict(part.split(": ") for part in typed[1].split(", "))
    data = folder(tmp_path, labels, classes={int(value): name for value, name in rows.items()})
    assert data.remarks() == []
    assert data.read(0)[1].labels.tolist() == [*range(len(names))]


def test_a_colour_behind_void(tmp_path):
    white, black = [255] * 3, [0] * 3
    classes = [{"name": "ground", "color": black}, {"name": "lesion", "color": [1, 2, 3]}]
    (line,) = folder(tmp_path, [[[black, white]]], classes=classes, color_labels=True).remarks()
    assert line.endswith("[255, 255, 255] is void; if it is lesion, make it its color in data.classes")
    classes[1]["color"] = white
    assert folder(tmp_path, [[[black, white]]], classes=classes, color_labels=True).remarks() == []


def test_coco_classes_without_a_segment(tmp_path):
    made = PanopticSet()
    assert "2 of 4 classes have no segment: cat, wall" in panoptic(made, tmp_path).remarks()
    assert "1 of 4 classes have no segment: wall" in panoptic(made, tmp_path, crowd="object").remarks()


# Images without a segment

VOID, SHOWN = np.full((4, 4), 255), np.zeros((4, 4), dtype=int)


def sample(data, index, keep_empty=False, before=()):
    images = TrainingSet(data, TrainTransform((8, 8)), 0, keep_empty)
    for earlier in before:
        images[SampleKey(0, earlier, 0)]
    return images[SampleKey(3, index, 0)]


@pytest.mark.parametrize("empty", [{2, 5}, set(range(8)) - {3}])
def test_images_of_void_alone_are_replaced(tmp_path, empty):
    data = folder(tmp_path, [VOID if k in empty else SHOWN for k in range(8)], classes=["ground"])
    assert f"{len(empty)} of 8 label files looked at (of 8) show nothing but void: they are scored" in data.remarks()[0]
    for index in range(8):
        item = sample(data, index)
        assert int(item.name[0]) not in empty
        assert len(item.targets.labels) == 1
        assert {kind for kind, _ in item.notes} == ({"no_segment"} if index in empty else set())
        # Which image takes the place does not depend on what a worker has read before.
        assert sample(data, index, before=range(8)).name == item.name
        kept = sample(data, index, keep_empty=True)
        assert (kept.name, len(kept.targets.labels)) == (f"{index}.png", int(index not in empty))


def test_nothing_but_void(tmp_path):
    data = folder(tmp_path, [VOID] * 3, classes=["ground"])
    assert "3 images and none has a segment" in str(sample(data, 0))


def test_images_without_a_segment_or_of_crowds_alone(tmp_path, caplog):
    def data(**options):
        readers = [panoptic(PanopticSet(), tmp_path)] * 2
        return SegmentationData(*readers, FIT_AND_PAD, 16, 2, 2, 0, 0, **options)

    line = "3 of 4 images have no segment, or crowds alone: "
    module = data()
    for _ in range(2):
        module.setup("fit")
    assert caplog.text.count(f"data.train: {line}left out; data.keep_empty=true trains on them as negatives") == 1
    assert len(module.training_set()) == 1
    module = data(keep_empty=True)
    module.setup("fit")
    assert f"data.train: {line}negatives (data.keep_empty=true)" in caplog.text
    assert len(module.training_set()) == 4
    assert f"data.val: {line}" not in caplog.text
    assert [name for batch in module.val_dataloader() for name in batch.names] == ["b.jpg", "a.jpg", "c.jpg", "d.jpg"]


@pytest.mark.slow
def test_a_network_learns_from_negatives(tmp_path):
    """Six of eight images have no object, so that most batches have none."""
    rows = [annotation(k, k, 1, [SQUARE]) for k in range(2)]
    sizes = {f"{k}.jpg": (16, 16) for k in range(8)}
    value = {"images": image_rows(sizes, range(8)), "annotations": rows, "categories": [{"id": 1, "name": "dent"}]}
    write_folder(tmp_path / "photos", {name: photo(*size) for name, size in sizes.items()})
    write_folder(tmp_path, {"all.json": json.dumps(value).encode()})
    paths = [f"data.{split}.{key}" for split in ("train", "val") for key in ("images=photos", "annotations=all.json")]
    # The last ones win.
    options = ("task=coco_instance", "model=tiny", *SMALL, *paths, f"data.root='{tmp_path}'", "data.keep_empty=true")
    options += ("data.batch_size=1", "data.global_batch=4", "trainer.max_steps=4", "trainer.devices=1")
    train.main(configured(tmp_path / "run", *options))
    (log,) = (tmp_path / "run" / "csv").glob("*/metrics.csv")
    header, *lines = [line.split(",") for line in log.read_text().splitlines()]
    losses = [float(line[header.index("train/loss")]) for line in lines if line[header.index("train/loss")]]
    assert len(losses) == 4
    assert np.isfinite(losses).all()
    assert all(float(line[header.index("train/skipped_steps")] or 0) == 0 for line in lines)
    evaluation.main(
        configured(
            tmp_path / "eval", f"ckpt='{tmp_path}/run/checkpoints/last.ckpt'", "save_predictions=true", name="eval"
        )
    )
    assert (tmp_path / "eval" / "predictions" / "instances.json").is_file()


# Crowds


@pytest.mark.parametrize(
    ("make", "opened", "flagged", "segments", "trained"),
    [(InstanceSet, instances, 2, [4, 1, 0, 1], [0, 1, 3]), (PanopticSet, panoptic, 1, [2, 1, 0, 0], [0, 1])],
)
def test_crowds_as_objects(tmp_path, make, opened, flagged, segments, trained):
    data = opened(make(), tmp_path)
    crowds = [int(data.read(k)[1].crowd.sum()) for k in range(4)]
    assert sum(crowds) == flagged
    said = f"{flagged} segments in {np.count_nonzero(crowds)} images are crowds (iscrowd 1), "
    names = ", ".join(data.name(k) for k in np.flatnonzero(crowds))
    assert [line for line in data.remarks() if line.startswith(said) and line.endswith(f"as objects: {names}")]
    data = opened(make(), tmp_path, crowd="object")
    assert not any(data.read(k)[1].crowd.any() for k in range(4))
    assert [len(data.read(k)[1].labels) for k in range(4)] == segments
    assert np.flatnonzero(data.has_targets()).tolist() == trained
    assert [line for line in data.remarks() if line.startswith(said) and "as objects (data.crowd=object)" in line]


@pytest.mark.parametrize(("value", "crowd"), [("0", False), ("1", True), ("false", False), (1.0, True), (None, False)])
def test_flags_in_other_words(tmp_path, value, crowd):
    made = InstanceSet()
    made.json["annotations"][0]["iscrowd"] = value
    assert bool(instances(made, tmp_path).read(0)[1].crowd[0]) == crowd


@pytest.mark.parametrize(
    ("values", "things", "said"),
    [
        ((0, 1, 0, 1), [1, 1, 0, 0], None),
        ((None, 1, None, 1), [1, 1, 1, 1], "2 of 4 categories do not say whether they are things, .*: sky, wall;"),
        (("0", "1", "0", "1"), [1, 1, 0, 0], "read cat, dog as things and wall, sky as stuff"),
        ((False, True, 0.0, "true"), [1, 1, 0, 0], "read cat, dog as things and wall, sky as stuff"),
    ],
)
def test_things_and_stuff_in_other_words(tmp_path, values, things, said):
    made = PanopticSet()
    for row, value in zip(made.json["categories"], values, strict=True):
        row["isthing"] = value
        if value is None:
            del row["isthing"]
    data = panoptic(made, tmp_path)
    assert data.classes.is_thing == things
    lines = [line for line in data.remarks() if "thing" in line]
    assert len(lines) == (said is not None)
    assert said is None or re.search(said, lines[0])


def test_numbers_may_be_texts(tmp_path):
    for number, (made_of, reads) in enumerate(((InstanceSet, instances), (PanopticSet, panoptic))):
        plain, texts = made_of(), made_of()
        for row in texts.json["categories"]:
            row["id"] = str(row["id"])
        for row in texts.json["annotations"]:
            row["image_id"] = str(row["image_id"])
            for segment in row.get("segments_info", [row]):
                segment["category_id"] = str(int(segment["category_id"]))
        plain, texts = reads(plain, tmp_path / f"{number}"), reads(texts, tmp_path / f"{number} of texts")
        assert texts.classes == plain.classes
        assert [texts.image_id(k) for k in range(4)] == [plain.image_id(k) for k in range(4)]
        for k in range(4):
            assert texts.read(k)[1].labels.tolist() == plain.read(k)[1].labels.tolist()


def test_of_two_images_with_one_id_neither_is_trained(tmp_path):
    made = InstanceSet()
    made.json["images"][3]["id"] = 7
    data = instances(made, tmp_path, skip_bad=True)
    assert [data.name(k) for k in range(len(data))] == ["sub/b.png", "c.jpg"]
    assert data.left_out()[1] == "the image id 7 is that of a.jpg and d.jpg: annotations may be of either"


# JSONs of another kind


def test_a_json_of_the_other_kind_is_said(tmp_path):
    made, other = InstanceSet(), PanopticSet()
    made.json["annotations"] = [{"segments_info": [], "image_id": 7, "file_name": "a.png"}]
    with pytest.raises(InputError, match=r"train\.json: it is a panoptic JSON, .*task=coco_panoptic reads it"):
        instances(made, tmp_path)
    other.json["annotations"] = [annotation(1, 20, 200, [SQUARE])]
    with pytest.raises(InputError, match=r"it is an instance JSON, .*task=coco_instance reads it"):
        panoptic(other, tmp_path)


def test_what_is_wrong_with_all_rows_is_said(tmp_path):
    made = InstanceSet()
    for row in made.json["images"]:
        del row["height"]
    with pytest.raises(InputError, match="it names no images: image 7: it lacks 'height'; image 3: "):
        instances(made, tmp_path)


# Bad rows


@pytest.mark.parametrize("fault", INSTANCE_FAULTS)
def test_bad_annotations_are_left_out(tmp_path, fault):
    made = InstanceSet()
    before = instances(made, tmp_path)
    INSTANCE_FAULTS[fault][0](made.json)
    data = instances(made, tmp_path, skip_bad=True)
    assert len(data) == 4
    assert len(data._index.column("label")) == len(before._index.column("label")) - 1
    assert data.remarks()[0] == f"data.skip_bad=true leaves out 1: {data.left_out()[0]}"


@pytest.mark.parametrize("fault", COMMON_FAULTS | PANOPTIC_FAULTS)
def test_bad_images_are_left_out(tmp_path, fault):
    break_, match = (COMMON_FAULTS | PANOPTIC_FAULTS)[fault]
    made = PanopticSet()
    break_(made.json)
    whole_file = ("category", "colour", "isthing", "no array", "no annotations", "no categories", "no images")
    if fault.startswith(whole_file) and fault != "category of text":
        with pytest.raises(InputError, match=match):
            panoptic(made, tmp_path, skip_bad=True)
        return
    data = panoptic(made, tmp_path, skip_bad=True)
    assert data.left_out()
    assert any(re.search(match.rpartition(r"\.zip.*")[2], line) for line in data.left_out())
    for index in range(len(data) if fault != "two annotations" else 0):  # one is another image's
        data.read(index)


def test_all_faults_are_named_with_the_way_out(tmp_path):
    made = InstanceSet()
    made.json["annotations"][0]["segmentation"] = [[3, 3, 9, 9]]
    made.json["annotations"][2]["segmentation"] = []
    made.json["images"][3]["file_name"] = "gone.jpg"
    with pytest.raises(InputError) as caught:
        instances(made, tmp_path)
    message = str(caught.value)
    for what in (
        "has 3 faults",
        "annotation 11: a polygon",
        "annotation 14: no segm",
        "gone.jpg is missing",
        "data.skip_bad=true",
    ):
        assert what in message
    data = instances(made, tmp_path, skip_bad=True)
    assert [data.name(k) for k in range(len(data))] == ["a.jpg", "sub/b.png", "c.jpg"]
    assert len(data.read(0)[1].labels) == 2
    for row in made.json["images"]:
        row["file_name"] = "gone.jpg"
    with pytest.raises(InputError, match="no image is left"):
        instances(made, tmp_path, skip_bad=True)


def test_photos_without_labels_are_left_out(tmp_path):
    folder(tmp_path, [SHOWN] * 30, classes=["ground"])
    for k in range(12):
        (tmp_path / "labels" / f"{k}.png").unlink()
    with pytest.raises(InputError, match=r"12 of 30 images .*: 0\.png, .*, 7\.png, and 2 more; data\.skip_bad=true"):
        FolderSemantic(tmp_path, "images", "labels", ["ground"])
    data = FolderSemantic(tmp_path, "images", "labels", ["ground"], skip_bad=True)
    assert len(data) == 18
    assert len(data.left_out()) == 12
    assert data.remarks()[0].startswith("data.skip_bad=true leaves out 12: ")


# Notes on single images


def test_ids_that_a_json_lacks_are_said_once(tmp_path, caplog):
    made = PanopticSet()
    made.masks["b.png"] = id_png([[9, DOG, 0], [9, DOG, DOG]])
    made.masks["a.png"] = id_png([[CAT, CAT], [CAT, 9]])
    data = panoptic(made, tmp_path)
    loader = EvaluationLoader(EvaluationSet(data, FIT_AND_PAD, (8, 8)), 1, 0)
    for _ in range(2):
        list(loader)
    assert caplog.text.count("data.val: 2 images whose panoptic PNG shows ids that its JSON lacks") == 1
    assert "those pixels are void: b.jpg, a.jpg" in caplog.text
    assert caplog.text.count("data.val: 1 images whose panoptic PNG lacks segments of its JSON") == 1
    images = TrainingSet(data, TrainTransform((8, 8)), 0)
    list(ResumableLoader(images, EpochBatchSampler(len(images), 1, 1, 0), 0))
    assert "data.train: 1 images whose panoptic PNG shows ids" in caplog.text
