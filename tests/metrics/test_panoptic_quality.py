"""PQ by panopticapi's rules: its recorded scores, and cases worked out by hand."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from eomt.classes import Classes, SegmentClass
from eomt.errors import InputError
from eomt.metrics.panoptic_quality import PanopticQuality
from eomt.postprocess.types import Segmentation
from eomt.targets import ImageTargets, targets_from_id_map

GOLDEN = Path(__file__).parents[1] / "golden"
COCO = Path(__file__).parents[3] / "shared" / "data" / "coco" / "panoptic_annotations_trainval2017.zip"


def make_classes(things, stuff):
    kinds = [True] * things + [False] * stuff
    return Classes(tuple(SegmentClass(10 + k, f"class {k}", (0, 0, 0), kind) for k, kind in enumerate(kinds)))


def predicted(ids, labels):
    return Segmentation(
        torch.tensor(ids, dtype=torch.int32), torch.tensor(labels, dtype=torch.int64), torch.ones(len(labels))
    )


def true(ids, labels, crowd=None):
    return targets_from_id_map(np.array(ids), range(1, len(labels) + 1), labels, crowd)


def read_ids(archive, name):
    rgb = np.array(Image.open(io.BytesIO(archive.read(name))).convert("RGB")).astype(np.int64)
    return rgb @ [1, 256, 65536]


@pytest.mark.skipif(not COCO.exists(), reason="the COCO sample in ../shared/data is not there")
def test_scores_are_panopticapis():
    with zipfile.ZipFile(COCO) as outer:
        truth = json.loads(outer.read("annotations/panoptic_val2017.json"))
        truth_pngs = zipfile.ZipFile(io.BytesIO(outer.read("annotations/panoptic_val2017.zip")))
    predictions = zipfile.ZipFile(GOLDEN / "panoptic_predictions.zip")
    rows = {row["image_id"]: row for row in json.loads(predictions.read("predictions.json"))["annotations"]}
    classes = Classes.from_categories(truth["categories"])
    label_of = {id: k for k, id in enumerate(classes.ids)}

    def targets(archive, folder, row):
        segments = row["segments_info"]
        return targets_from_id_map(
            read_ids(archive, f"{folder}/{row['file_name']}"),
            [segment["id"] for segment in segments],
            [label_of[segment["category_id"]] for segment in segments],
            [segment.get("iscrowd", 0) == 1 for segment in segments],
        )

    metric = PanopticQuality(classes)
    for row in truth["annotations"]:
        prediction = targets(predictions, "predictions", rows[row["image_id"]])
        metric.update(
            Segmentation(prediction.ids[0].int(), prediction.labels, torch.ones(len(prediction.labels))),
            targets(truth_pngs, "panoptic_val2017", row),
        )
    expected = json.loads((GOLDEN / "panoptic_quality.json").read_text())
    scores = metric.compute()
    for group, suffix in (("All", ""), ("Things", "_things"), ("Stuff", "_stuff")):
        for name in ("pq", "sq", "rq"):
            assert abs(scores[name + suffix].item() / 100 - expected[group][name]) < 1e-9
    table = {row["id"]: row for row in metric.per_class()}
    assert len(table) == expected["All"]["n"]
    assert sum(row["isthing"] for row in table.values()) == expected["Things"]["n"]
    for id, row in table.items():
        for name in ("pq", "sq", "rq"):
            assert abs(row[name] / 100 - expected["per_class_nonzero"].get(str(id), {}).get(name, 0)) < 1e-9


def test_a_case_worked_out_by_hand():
    truth = true([[1, 1, 1, 1, 2, 2, 2, 2, 0, 0]], [0, 2])
    result = predicted([[1, 1, 1, 0, 2, 2, 3, 3, 2, 2]], [0, 2, 1])
    metric = PanopticQuality(make_classes(things=2, stuff=2))
    metric.update(result, truth)
    # Class 0: IoU 3/4. Class 2: 2 shared, 4 predicted of which 2 in void, 4 true: 2 / (4 + 4 - 2 - 2) = 1/2
    # is no match: one false positive (exactly half in void is not forgiven) and one miss. Class 1: one false
    # positive. Class 3 is unseen.
    scores = {name: round(value.item(), 6) for name, value in metric.compute().items()}
    assert scores == {
        "pq": 25.0, "sq": 25.0, "rq": round(100 / 3, 6),
        "pq_things": 37.5, "sq_things": 37.5, "rq_things": 50.0,
        "pq_stuff": 0.0, "sq_stuff": 0.0, "rq_stuff": 0.0,
    }  # fmt: skip
    assert [(row["id"], row["tp"], row["fp"], row["fn"]) for row in metric.per_class()] == [
        (10, 1, 0, 0),
        (11, 0, 1, 0),
        (12, 0, 1, 1),
    ]
    assert metric.image_score() == 25


def test_crowd_and_void_forgive_and_only_the_last_crowd_of_a_class_counts():
    def sums(result_ids, labels, truth_ids, truth_labels, crowd):
        metric = PanopticQuality(make_classes(things=2, stuff=0))
        metric.update(predicted([result_ids], labels), true([truth_ids], truth_labels, crowd))
        return metric.sums[1:].T.tolist()

    none = [0, 0, 0]
    # Wholly inside a crowd of its class, although the IoU is 1: no match, no error.
    assert sums([1, 1, 1, 1], [0], [1, 1, 1, 1], [0], [True]) == [none, none]
    # A crowd of another class does not forgive.
    assert sums([1, 1, 1, 1], [1], [1, 1, 1, 1], [0], [True]) == [none, [0, 1, 0]]
    # Void and crowd together exceed a half.
    assert sums([1, 1, 1, 1], [0], [1, 1, 0, 2], [0, 1], [True, False])[0] == none
    assert sums([1, 1, 1, 1], [0], [1, 2, 0, 2], [0, 1], [True, False])[0] == [0, 1, 0]
    # Three pixels lie in the first of two crowds, one in the last.
    assert sums([1, 1, 1, 1], [0], [1, 1, 1, 2], [0, 0], [True, True])[0] == [0, 1, 0]
    assert sums([1, 1, 1, 1], [0], [2, 2, 2, 1], [0, 0], [True, True])[0] == none


def random_pair(generator, classes=4):
    """Two maps of blocks that share some borders, so that segments match, partly match and miss."""

    def blocks(count):
        coarse = generator.integers(0, count + 1, (4, 5))
        return np.kron(coarse, np.ones((3, 3), dtype=np.int64))

    true_ids = blocks(5)
    result_ids = true_ids.copy() if generator.random() < 0.7 else blocks(4)
    noise = generator.random(true_ids.shape) < generator.choice([0.02, 0.3])
    result_ids = np.where(noise, generator.integers(0, 7, true_ids.shape), result_ids)
    true_labels = generator.integers(0, classes, 5)
    labels = np.concatenate([true_labels, generator.integers(0, classes, 2)])
    labels = np.where(generator.random(7) < 0.25, generator.integers(0, classes, 7), labels)
    return predicted(result_ids, labels), true(true_ids, true_labels, generator.random(5) < 0.25)


def test_halves_add_up_to_the_whole_in_any_order():
    generator = np.random.default_rng(1)
    pairs = [random_pair(generator) for _ in range(40)]
    whole, first, second = (PanopticQuality(make_classes(3, 1)) for _ in range(3))
    for pair in pairs:
        whole.update(*pair)
    for pair in reversed(pairs[:20]):
        first.update(*pair)
    for pair in pairs[20:]:
        second.update(*pair)
    # As torchmetrics joins ranks: stack the states, apply the reduction.
    reduced = second._reductions["sums"](torch.stack([second.sums, first.sums]))
    assert torch.equal(reduced, whole.sums)
    whole.reset()
    assert not whole.sums.any()


def test_no_precision_setting_rounds_the_sums():
    pair = random_pair(np.random.default_rng(7))
    plain, metric = PanopticQuality(make_classes(3, 1)), PanopticQuality(make_classes(3, 1))
    plain.update(*pair)
    assert plain.sums[0].max() > 2**40
    metric.update(*pair)
    metric = torch.nn.ModuleList([metric]).to(torch.float16)[0]
    metric.update(*pair)
    assert torch.equal(metric.sums, 2 * plain.sums)


def test_groups_without_a_class_are_nan():
    metric = PanopticQuality(make_classes(things=2, stuff=1))
    metric.update(predicted([[1, 1, 1]], [0]), true([[1, 1, 1]], [0]))
    scores = metric.compute()
    assert scores["pq"] == scores["pq_things"] == 100
    assert scores["pq_stuff"].isnan()


def test_images_without_segments():
    metric = PanopticQuality(make_classes(things=1, stuff=0))
    metric.update(predicted([[0, 0]], []), true([[1, 1]], [0]))
    metric.update(predicted([[1, 1]], [0]), true([[0, 0]], []))
    metric.update(predicted([[0, 0]], []), true([[0, 0]], []))
    # All void forgives the prediction.
    assert metric.sums[1:, 0].tolist() == [0, 0, 1]


def test_overlapping_truth_and_other_sizes_are_refused():
    metric = PanopticQuality(make_classes(things=1, stuff=0))
    truth = true([[1, 1]], [0])
    with pytest.raises(InputError, match="2 planes"):
        metric.update(predicted([[1, 1]], [0]), ImageTargets(truth.ids.repeat(2, 1, 1), *truth[1:]))
    with pytest.raises(InputError, match="one size"):
        metric.update(predicted([[1], [1]], [0]), truth)
