"""Average precision, held against pycocotools' own reading of official annotations and random objects."""

import contextlib
import copy
import io

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from eomt.classes import Classes, SegmentClass
from eomt.errors import InputError
from eomt.metrics.average_precision import AveragePrecision
from tests.coco_objects import as_instances, as_targets, encode, official_objects, perturbed

LIBRARIES = ("hotcoco", "pycocotools")
NAMES = ["ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"]
NAMES += ["ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large"]


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


@pytest.fixture(scope="module")
def coco(shared_data):
    return official_objects(shared_data)


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
    assert np.allclose([ours[name].item() for name in NAMES], theirs, rtol=0, atol=1e-9, equal_nan=True)
    assert all(score.dtype == torch.float64 and score.device.type == "cpu" for score in ours.values())


@pytest.mark.parametrize("library", LIBRARIES)
def test_equals_pycocotools_on_official_annotations(coco, library):
    document, classes, truth, found = coco
    assert any(targets.crowd.any() for targets in truth.values())
    assert any(len(targets.labels) == 0 for targets in truth.values())
    metric = AveragePrecision(classes, library)
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
    assert np.allclose([row["ap"] for row in rows], 100 * precision[:, :, seen].mean((0, 1)), rtol=0, atol=1e-9)
    assert np.allclose([row["ap50"] for row in rows], 100 * precision[0][:, seen].mean(0), rtol=0, atol=1e-9)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("seed", range(2))
def test_equals_pycocotools_on_random_objects(seed, library):
    generator = np.random.default_rng(seed)
    classes = Classes(tuple(SegmentClass(3 * k, f"c{k}", (0, 0, 0), True) for k in range(3)))
    document = {"images": [], "annotations": [], "categories": classes.to_list()}
    metric, found = AveragePrecision(classes, library), {}
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
        # The last class has no object.
        labels, crowd = generator.integers(0, 2, count).tolist(), generator.random(count) < 0.2
        areas = masks.sum((1, 2)) * generator.choice([1, 1.2])
        found[k] = perturbed(generator, size, masks, labels, 3)
        own = None if np.array_equal(areas, masks.sum((1, 2))) else torch.from_numpy(areas)
        metric.update(found[k], as_targets(size, masks, labels, crowd, own), k)
        annotate(document, k, size, masks, [classes.ids[label] for label in labels], crowd, areas)
    evaluation = official(document, found, classes)
    assert_equal(metric, evaluation)
    assert [row["id"] for row in metric.per_class()] == classes.ids[:2]


def one_class():
    return Classes((SegmentClass(1, "cup", (0, 0, 0), True),))


def square(size=(20, 20), side=10):
    mask = np.zeros((1, *size), dtype=bool)
    mask[:, :side, :side] = True
    return mask


def _score_share(rank, store, classes, shares, expected):
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=len(shares))
    metric = AveragePrecision(classes)
    for k, found, truth in shares[rank]:
        metric.update(found, truth, k)
    scores = {name: value.item() for name, value in metric.compute().items()}
    assert scores == pytest.approx(expected, abs=1e-9, nan_ok=True)
    assert metric.per_class()
    dist.destroy_process_group()


@pytest.mark.slow
def test_ranks_together_count_each_image_once(coco, tmp_path):
    _, classes, truth, found = coco
    images = list(truth)[:60]
    whole = AveragePrecision(classes)
    for k in images:
        whole.update(found[k], truth[k], k)
    expected = {name: value.item() for name, value in whole.compute().items()}
    # The third rank has no image, and both others have some of them.
    shares = [[(k, found[k], truth[k]) for k in own] for own in (images[1::2], [*images[::2], *images[1:9:2]], [])]
    mp.spawn(_score_share, (tmp_path / "store", classes, shares, expected), nprocs=len(shares))


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_thousand_objects_in_an_image(library):
    """pycocotools overflows in the area of a list of more than 255 masks."""
    masks = np.zeros((1000, 100, 40), dtype=bool)
    for k, mask in enumerate(masks):
        mask[k // 10, 4 * (k % 10) : 4 * (k % 10) + 3] = True
    classes = Classes(tuple(SegmentClass(k, f"c{k}", (0, 0, 0), True) for k in range(10)))
    labels = [k // 100 for k in range(1000)]
    metric = AveragePrecision(classes, library)
    metric.update(
        as_instances((100, 40), masks, labels, np.linspace(0.1, 0.9, 1000)),
        as_targets((100, 40), masks, labels, [False] * 1000),
        1,
    )
    assert metric.compute()["ap"].item() == pytest.approx(100)


@pytest.mark.parametrize("library", LIBRARIES)
def test_ranges_without_an_object_are_nan(library):
    metric = AveragePrecision(one_class(), library)
    metric.update(as_instances((20, 20), [], [], []), as_targets((20, 20), [], [], []), "text")
    assert all(score.isnan() for score in metric.compute().values())
    assert metric.per_class() == []
    metric.update(as_instances((20, 20), square(), [0], [0.5]), as_targets((20, 20), square(), [0], [False]), "other")
    scores = metric.compute()
    assert [scores[name].item() for name in ("ap", "ap_small", "ar1")] == pytest.approx([100, 100, 100])
    assert scores["ap_medium"].isnan()
    assert scores["ar_large"].isnan()
    metric.reset()
    assert metric.compute()["ap"].isnan()


def test_ids_of_several_kinds_score_as_numbers_in_their_order(coco):
    _, classes, truth, found = coco
    plain, mixed = AveragePrecision(classes), AveragePrecision(classes)
    ids = [2.0, 3, 1 << 70, "", "10", "2", "x"]
    for number, k in list(zip(ids, truth, strict=False))[::-1]:
        plain.update(found[k], truth[k], ids.index(number))
        mixed.update(found[k], truth[k], number)
    assert {name: float(v) for name, v in mixed.compute().items()} == pytest.approx(
        {name: float(v) for name, v in plain.compute().items()}, abs=0, nan_ok=True
    )


@pytest.mark.parametrize(
    ("found", "scores", "true", "crowd", "expected"),
    [
        ([(0, 10), (0, 8)], [0.9, 0.7], [(0, 10)], [False], 100 / 1.5),  # found twice
        ([(0, 8)], [0.9], [(0, 10), (12, 18)], [False, False], 80 / 1.5),  # the other is missed
        ([(0, 10)], [0.4], [(0, 10)], [False], 0),  # not sure enough to be drawn
        ([(0, 4), (12, 18)], [0.9, 0.9], [(0, 10), (12, 18)], [True, False], 100),  # in a crowd
        ([], [], [], [], float("nan")),
    ],
)
def test_score_of_an_image(found, scores, true, crowd, expected):
    """Objects are bands of columns, of one class."""

    def bands(columns):
        columns = np.array(columns).reshape(-1, 2, 1, 1)
        here = np.arange(20).reshape(1, 1, 20)
        return np.broadcast_to((here >= columns[:, 0]) & (here < columns[:, 1]), (len(columns), 20, 20))

    metric = AveragePrecision(one_class())
    truth = as_targets((20, 20), bands(true), [0] * len(true), crowd)
    metric.update(as_instances((20, 20), bands(found), [0] * len(found), scores), truth, 1)
    assert metric.image_score() == pytest.approx(expected, nan_ok=True)


def test_other_sizes_are_refused():
    metric = AveragePrecision(one_class())
    with pytest.raises(InputError, match=r"image 7 is \[20, 20\], its ground truth \[20, 21\]"):
        metric.update(as_instances((20, 20), [], [], []), as_targets((20, 21), [], [], []), 7)


def test_codes_of_the_dataset_count_as_its_maps_do(coco):
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
