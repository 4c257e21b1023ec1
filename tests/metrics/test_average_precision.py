"""Average precision, held against pycocotools on official annotations and random objects."""

import contextlib
import copy
import io
import itertools
import json
import zipfile

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from eomt.classes import Classes, SegmentClass
from eomt.errors import InputError
from eomt.metrics.average_precision import AveragePrecision
from eomt.metrics.coco_matching import Pairs, _match_in_turns, in_ranges, match
from eomt.metrics.run_lengths import run_lengths
from eomt.postprocess.types import Instances
from eomt.targets import ImageTargets, targets_from_masks

NAMES = [
    "ap",
    "ap50",
    "ap75",
    "ap_small",
    "ap_medium",
    "ap_large",
    "ar1",
    "ar10",
    "ar100",
    "ar_small",
    "ar_medium",
    "ar_large",
]


def encode(masks):
    return coco_mask.encode(np.asfortranarray(np.asarray(masks, dtype=np.uint8).transpose(1, 2, 0)))


def as_instances(size, masks, labels, scores):
    rles = encode(masks) if len(masks) else []
    areas = [int(coco_mask.area(code)) for code in rles]
    return Instances(
        size,
        rles,
        torch.tensor(labels, dtype=torch.int64),
        torch.tensor(scores, dtype=torch.float32),
        torch.tensor(areas, dtype=torch.int64),
        torch.arange(len(rles)),
    )


def as_targets(size, masks, labels, crowd, areas=None):
    if not len(masks):
        none = torch.zeros(0, dtype=torch.int64)
        return ImageTargets(torch.zeros(1, *size, dtype=torch.int16), none, none, none.bool(), areas)
    targets = targets_from_masks(np.asarray(masks, dtype=bool), labels, crowd)
    return targets._replace(areas=areas)


def official(document, images, classes):
    """pycocotools' evaluation of the predictions {image id: Instances}."""
    rows = [
        {"image_id": k, "category_id": classes.ids[label], "score": score, "segmentation": dict(code)}
        for k, instances in images.items()
        for code, label, score in zip(instances.rles, instances.labels.tolist(), instances.scores.tolist(), strict=True)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = copy.deepcopy(document)
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(rows), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def annotate(document, k, size, masks, category_ids, crowd, areas):
    """Add one image and its objects to an official document."""
    document["images"].append({"id": k, "height": size[0], "width": size[1]})
    codes = encode(masks) if len(masks) else []
    for code, category_id, flag, area in zip(codes, category_ids, crowd, areas, strict=True):
        row = {"id": len(document["annotations"]) + 1, "image_id": k, "category_id": category_id}
        document["annotations"].append({**row, "segmentation": code, "iscrowd": int(flag), "area": float(area)})


def assert_equal(metric, evaluation):
    ours = metric.compute()
    assert list(ours) == NAMES
    theirs = np.where(evaluation.stats == -1, np.nan, 100 * evaluation.stats)
    assert np.allclose([ours[name].item() for name in NAMES], theirs, rtol=0, atol=1e-12, equal_nan=True)
    assert all(score.dtype == torch.float64 and score.device.type == "cpu" for score in ours.values())


def perturbed(generator, size, masks, labels, num_classes):
    """Predictions with every kind of fault, many of equal score."""
    found = []
    for mask, label in zip(masks, labels, strict=True):
        for _ in range(generator.choice([0, 1, 1, 2, 3])):
            shift = generator.integers(-3, 4, 2) if generator.random() < 0.6 else (0, 0)
            moved = np.roll(mask, shift, (0, 1))
            if generator.random() < 0.3:
                moved = moved & np.roll(moved, 2, 0) & np.roll(moved, 2, 1)
            if generator.random() < 0.05:
                moved = np.zeros_like(mask)
            wrong = generator.random() < 0.15
            found.append((moved, int(generator.integers(num_classes)) if wrong else label))
    for _ in range(generator.integers(0, 4)):
        blank = np.zeros(size, dtype=bool)
        y, x = generator.integers(0, size[0]), generator.integers(0, size[1])
        blank[y : y + generator.integers(1, size[0] + 1), x : x + generator.integers(1, size[1] + 1)] = True
        found.append((blank, int(generator.integers(num_classes))))
    scores = generator.integers(0, 12, len(found)) / np.float32(11)
    return as_instances(size, [mask for mask, _ in found], [label for _, label in found], scores)


@pytest.fixture(scope="module")
def coco(shared_data):
    """The official document, its classes, and per image the true targets and faulty predictions."""
    with zipfile.ZipFile(shared_data / "coco" / "annotations_trainval2017.zip") as archive:
        document = json.loads(archive.read("annotations/instances_val2017.json"))
    classes = Classes.from_categories(document["categories"])
    generator = np.random.default_rng(0)
    rows = {image["id"]: [] for image in document["images"]}
    for row in document["annotations"]:
        rows[row["image_id"]].append(row)
    with contextlib.redirect_stdout(io.StringIO()):
        reader = COCO()
        reader.dataset = document
        reader.createIndex()
    truth, found = {}, {}
    for image in document["images"]:
        k, size = image["id"], (image["height"], image["width"])
        masks = [coco_mask.decode([reader.annToRLE(row)])[..., 0].astype(bool) for row in rows[k]]
        labels = [classes.ids.index(row["category_id"]) for row in rows[k]]
        areas = torch.tensor([row["area"] for row in rows[k]], dtype=torch.float64)
        truth[k] = as_targets(size, masks, labels, [bool(row["iscrowd"]) for row in rows[k]], areas)
        found[k] = perturbed(generator, size, masks, labels, len(classes))
    # More than 100 of one class, the best of them last.
    k = next(k for k, targets in truth.items() if len(targets.labels))
    one = truth[k].masks()[:1].numpy()
    many = as_instances(
        one.shape[1:], np.repeat(one, 120, 0), [truth[k].labels[0].item()] * 120, np.linspace(0.1, 0.9, 120)
    )
    found[k] = Instances(many.size, *(_join(a, b) for a, b in zip(found[k][1:], many[1:], strict=True)))
    return document, classes, truth, found


def _join(one, other):
    return one + other if isinstance(one, list) else torch.cat([one, other])


def test_equals_pycocotools_on_official_annotations(coco):
    document, classes, truth, found = coco
    assert any(targets.crowd.any() for targets in truth.values())
    assert any(len(targets.labels) == 0 for targets in truth.values())
    assert any(len(targets.ids) > 2 for targets in truth.values())
    metric = AveragePrecision(classes)
    # The order of images does not matter, not even for ties.
    for k in sorted(truth, reverse=True):
        metric.update(found[k], truth[k], k)
    evaluation = official(document, found, classes)
    assert 10 < 100 * evaluation.stats[0] < 90
    assert_equal(metric, evaluation)

    precision = evaluation.eval["precision"][:, :, :, 0, 2]
    rows = metric.per_class()
    seen = [k for k in range(len(classes)) if precision[0, 0, k] > -1]
    assert [row["id"] for row in rows] == [classes.ids[k] for k in seen]
    assert [row["name"] for row in rows] == [classes.names[k] for k in seen]
    assert np.allclose([row["ap"] for row in rows], 100 * precision[:, :, seen].mean((0, 1)), rtol=0, atol=1e-12)
    assert np.allclose([row["ap50"] for row in rows], 100 * precision[0][:, seen].mean(0), rtol=0, atol=1e-12)


def connect(first, *others):
    """Let the first rank's metric gather the others' states, as torchmetrics does through a process group."""
    for rank in others:
        rank.sync(dist_sync_fn=lambda state, group: [state], distributed_available=lambda: True)
    states = [[getattr(rank, name) for name in first._reductions] for rank in others]
    turn = itertools.cycle(range(len(first._reductions)))

    def gather(state, group):
        k = next(turn)
        return [state, *(rank[k] for rank in states)]

    first.dist_sync_fn = gather
    first.distributed_available_fn = lambda: True


def test_ranks_together_count_each_image_once(coco):
    document, classes, truth, found = coco
    ranks = [AveragePrecision(classes) for _ in range(3)]
    images = list(truth)
    shares = (images[1::2], [], [*images[::2], *images[1:9:2]])
    for rank, share in zip(ranks, shares, strict=True):
        for k in share:
            rank.update(found[k], truth[k], k)
    connect(*ranks)
    evaluation = official(document, found, classes)
    assert_equal(ranks[0], evaluation)
    assert len(ranks[0].per_class()) == (evaluation.eval["precision"][0, 0, :, 0, 2] > -1).sum()
    # Nothing of the others stays behind.
    assert len(ranks[0].images) == len(shares[0])


@pytest.mark.parametrize("seed", range(8))
def test_equals_pycocotools_on_random_objects(seed):
    generator = np.random.default_rng(seed)
    classes = Classes(tuple(SegmentClass(3 * k + 1, f"c{k}", (0, 0, 0), True) for k in range(3)))
    document = {"images": [], "annotations": [], "categories": classes.to_list()}
    metric, found = AveragePrecision(classes), {}
    for k in generator.permutation(60).tolist():
        # Narrow images of up to 400 rows have objects of all sizes.
        size = (int(generator.integers(1, 400)), int(generator.integers(1, 40)))
        count = int(generator.choice([0, 1, 3, 8]))
        masks = np.zeros((count, *size), dtype=bool)
        for mask in masks:
            top, left = generator.integers(0, size[0]), generator.integers(0, size[1])
            mask[top : top + generator.integers(0, 300), left : left + generator.integers(0, 40)] = True
            if generator.random() < 0.3:
                mask &= generator.random(size) < 0.9
        # Class 2 has no true object.
        labels, crowd = generator.integers(0, 2, count).tolist(), generator.random(count) < 0.2
        areas = masks.sum((1, 2)) * generator.choice([1, 1.2])
        found[k] = perturbed(generator, size, masks, labels, 3)
        own = None if np.array_equal(areas, masks.sum((1, 2))) else torch.from_numpy(areas)
        metric.update(found[k], as_targets(size, masks, labels, crowd, own), k)
        annotate(document, k, size, masks, [classes.ids[label] for label in labels], crowd, areas)
    evaluation = official(document, found, classes)
    assert_equal(metric, evaluation)
    assert [row["id"] for row in metric.per_class()] == classes.ids[:2]


def test_runs_are_those_of_pycocotools():
    generator = np.random.default_rng(0)
    for _ in range(150):
        height, width, count = generator.integers(1, 12), generator.integers(1, 12), generator.integers(1, 6)
        masks = generator.random((count, height, width)) < generator.choice([0, 0.1, 0.5, 0.9, 1])
        runs = run_lengths(targets_from_masks(masks, [0] * count))
        expected = encode(masks)
        chosen = generator.random(count) < 0.7
        assert runs.encode(np.flatnonzero(chosen)) == [expected[k] for k in np.flatnonzero(chosen)]
        assert runs.areas.tolist() == masks.sum((1, 2)).tolist()


def one_class():
    return Classes((SegmentClass(1, "cup", (0, 0, 0), True),))


def square(size=(20, 20), side=10):
    mask = np.zeros((1, *size), dtype=bool)
    mask[:, :side, :side] = True
    return mask


def bars(*spans, size=(50, 200)):
    masks = np.zeros((len(spans), *size), dtype=bool)
    for mask, (start, end) in zip(masks, spans, strict=True):
        mask[:, start:end] = True
    return masks


@pytest.mark.parametrize(
    ("truth", "areas", "found"),
    [
        # The first overlaps both equally and takes the last, which would suit the second better.
        (bars((0, 20), (2, 22)), [1000, 1000], bars((1, 21), (3, 23))),
        # Two objects of one shape and different areas.
        (bars((0, 20), (0, 20)), [500, 5000], bars((0, 20))),
        # Ends of ranges belong to both.
        (bars((0, 20), (30, 50), (60, 80)), [32**2, 96**2, 1e10], bars((60, 80), (0, 20))),
        (bars((0, 20)), [1e10 + 1], bars((0, 20))),
        # An IoU of exactly 0.5, and of exactly 0.75 and 0.95.
        (bars((0, 20), (40, 60), (80, 100)), [1000] * 3, bars((0, 40), (40, 55), (80, 99))),
        # The hundredth of an image and class counts, the next does not.
        (bars((0, 20), (40, 60)), [1000] * 2, bars(*[(70, 90)] * 99, (0, 20), (40, 60))),
        (bars((0, 20), (40, 60)), [1000] * 2, bars(*[(70, 90)] * 9, (0, 20), (40, 60))),
    ],
)
def test_equals_pycocotools_at_the_edges_of_its_rules(truth, areas, found):
    document = {"images": [], "annotations": [], "categories": one_class().to_list()}
    none = [False] * len(truth)
    annotate(document, 1, truth.shape[1:], truth, [1] * len(truth), none, areas)
    scores = np.linspace(0.9, 0.1, len(found))
    instances = as_instances(truth.shape[1:], found, [0] * len(found), scores)
    metric = AveragePrecision(one_class())
    own_areas = torch.tensor(areas, dtype=torch.float64)
    metric.update(instances, as_targets(truth.shape[1:], truth, [0] * len(truth), none, own_areas), 1)
    assert_equal(metric, official(document, {1: instances}, one_class()))


def test_detections_without_a_choice_are_matched_as_in_turns():
    generator = np.random.default_rng(0)
    for _ in range(50):
        detections, truths = int(generator.integers(1, 40)), int(generator.integers(1, 8))
        chosen = np.flatnonzero(generator.random(detections) < 0.8)
        pairs = Pairs(
            chosen,
            generator.integers(0, truths, len(chosen)),
            generator.choice([0.5, 0.55, 0.72, 0.8, 0.95, 1], len(chosen)),
        )
        crowd = generator.random(truths) < 0.2
        ignored = ~in_ranges(generator.choice([1000, 5000, 10000, 1e11], truths)) | crowd
        inside = in_ranges(generator.choice([1000, 1024, 5000, 10000], detections))
        group = np.zeros(detections, dtype=np.int64)
        order = generator.permutation(len(chosen))
        matches = match(pairs.where(order), ignored, crowd, group, inside)
        right, counted = _match_in_turns(pairs, ignored, crowd, group[chosen], inside[:, chosen])
        assert np.array_equal(matches.detections, chosen)
        assert np.array_equal(matches.right, right)
        assert np.array_equal(inside[:, None, chosen] + matches.change, counted)


def test_objects_of_other_classes_are_no_match():
    classes = Classes(tuple(SegmentClass(k + 1, f"c{k}", (0, 0, 0), True) for k in range(90)))
    metric = AveragePrecision(classes)
    for k, labels in enumerate(([0, 1, 88, 89], [89, 0, 1, 88])):
        masks = np.repeat(square(), 4, axis=0)
        metric.update(
            as_instances((20, 20), masks, [0, 1, 88, 89], [0.9] * 4),
            as_targets((20, 20), masks, labels, [False] * 4),
            k,
        )
        assert all(len(table) == 4 for table in metric.pairs)
    assert metric.compute()["ap"].item() == pytest.approx(100)


def test_ranges_without_an_object_are_nan():
    metric = AveragePrecision(one_class())
    metric.update(as_instances((20, 20), [], [], []), as_targets((20, 20), [], [], []), 0)
    assert all(score.isnan() for score in metric.compute().values())
    metric.update(as_instances((20, 20), square(), [0], [0.5]), as_targets((20, 20), square(), [0], [False]), 1)
    scores = metric.compute()
    assert [scores[name].item() for name in ("ap", "ap_small", "ar1")] == pytest.approx([100, 100, 100])
    assert scores["ap_medium"].isnan()
    assert scores["ar_large"].isnan()


def test_the_datasets_own_areas_decide_on_the_range():
    metric = AveragePrecision(one_class())
    areas = torch.tensor([5000.0], dtype=torch.float64)
    metric.update(as_instances((20, 20), square(), [0], [0.5]), as_targets((20, 20), square(), [0], [False], areas), 1)
    assert metric.compute()["ap_small"].isnan()
    assert metric.compute()["ap_medium"].item() == pytest.approx(100)


@pytest.mark.parametrize(
    "cast",
    [
        lambda m: m.half(),
        lambda m: m.to(torch.bfloat16),
        lambda m: m.set_dtype(torch.float16),
        lambda m: torch.nn.ModuleList([m]).to(torch.float16)[0],
    ],
)
def test_no_precision_setting_rounds_the_rows(cast):
    def fed(metric):
        for k, score in enumerate((0.1001, 0.1002, 0.1003)):
            side = 10 + k
            truth = as_targets((20, 20), square(side=side), [0], [False])
            found = as_instances((20, 20), square(side=10 + 2 * (k == 1)), [0], [score])
            metric.update(found, truth, 3 * (metric.update_count // 3) + k)
        return metric

    plain, metric = fed(fed(AveragePrecision(one_class()))), fed(cast(fed(AveragePrecision(one_class()))))
    assert 0 < plain.compute()["ap"] < 100
    expected = plain.compute()
    for name, score in metric.compute().items():
        assert torch.equal(score.nan_to_num(-1), expected[name].nan_to_num(-1))
    assert all(table.dtype == torch.int64 for table in metric.detections)


def test_other_sizes_are_refused():
    metric = AveragePrecision(one_class())
    with pytest.raises(InputError, match=r"image 7 is \[20, 20\], its ground truth \[20, 21\]"):
        metric.update(as_instances((20, 20), [], [], []), as_targets((20, 21), [], [], []), 7)


def test_codes_of_the_dataset_count_as_its_maps_do(coco):
    """As the reader of COCO gives both."""
    _, classes, truth, found = coco
    by_map, by_code = AveragePrecision(classes), AveragePrecision(classes)
    for k, targets in truth.items():
        masks = np.asfortranarray(targets.masks().numpy().transpose(1, 2, 0), dtype=np.uint8)
        counts = tuple(code["counts"] for code in coco_mask.encode(masks)) if masks.shape[2] else ()
        by_map.update(found[k], targets, k)
        by_code.update(found[k], targets._replace(rles=counts, ids=torch.zeros_like(targets.ids)), k)
    assert {name: float(v) for name, v in by_map.compute().items()} == {
        name: float(v) for name, v in by_code.compute().items()
    }
