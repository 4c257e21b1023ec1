"""Mean IoU, held against plain NumPy."""

import numpy as np
import pytest
import torch

from eomt.classes import Classes, SegmentClass
from eomt.metrics.mean_iou import MeanIoU
from eomt.postprocess.types import Segmentation
from eomt.targets import targets_from_id_map

VOID = 255


def make_classes(count):
    return Classes(tuple(SegmentClass(10 * k + 1, f"class {k}", (0, 0, 0), False) for k in range(count)))


def truth(labels):
    """Targets of a label map with VOID; one segment for each class."""
    present = np.setdiff1d(np.unique(labels), VOID)
    return targets_from_id_map(labels, present, present)


def predicted(labels):
    """A prediction of a label map, with VOID where there is none."""
    targets = truth(labels)
    return Segmentation(targets.ids[0].int(), targets.labels, torch.ones(len(targets.labels)))


def by_numpy(pairs, count):
    """IoU and accuracy per class and the share of right pixels, by the rules of ADE20K's and Cityscapes' code."""
    found, true = (np.concatenate([pair[k].ravel() for pair in pairs]) for k in (0, 1))
    found, true = found[true != VOID], true[true != VOID]
    iou, accuracy = [], []
    for k in range(count):
        union = ((found == k) | (true == k)).sum()
        iou.append(((found == k) & (true == k)).sum() / union if union else np.nan)
        accuracy.append((found == k)[true == k].mean() if (true == k).any() else np.nan)
    return np.array(iou), np.array(accuracy), (found == true).mean()


def random_pair(generator, count, hole):
    shape = tuple(generator.integers(1, 30, 2))
    true = generator.integers(0, count, shape)
    found = np.where(generator.random(shape) < 0.6, true, generator.integers(0, count, shape))
    true = np.where(generator.random(shape) < 0.2, VOID, true)
    return np.where(generator.random(shape) < hole, VOID, found), true


@pytest.mark.parametrize("hole", [0, 0.15])
def test_equals_plain_numpy(hole):
    generator = np.random.default_rng(0)
    # Classes 5 and 6 never occur; 4 is only predicted.
    pairs = [random_pair(generator, 4, hole) for _ in range(30)]
    pairs[0][0].flat[0] = 4
    pairs[0][1].flat[0] = 1
    metric = MeanIoU(make_classes(7))
    for found, true in pairs:
        metric.update(predicted(found), truth(true))
        assert metric.image_score() == pytest.approx(100 * np.nanmean(by_numpy([(found, true)], 7)[0]), nan_ok=True)
    iou, accuracy, right = by_numpy(pairs, 7)
    scores = metric.compute()
    expected = {"miou": np.nanmean(iou), "mean_accuracy": np.nanmean(accuracy), "pixel_accuracy": right}
    assert scores.keys() == expected.keys()
    for name, value in expected.items():
        assert scores[name].dtype == torch.float64
        assert scores[name].item() == pytest.approx(100 * value, abs=1e-10)
    rows = metric.per_class()
    assert [row["id"] for row in rows] == [1, 11, 21, 31, 41]
    assert [row["name"] for row in rows] == [f"class {k}" for k in range(5)]
    assert [row["iou"] for row in rows] == pytest.approx((100 * iou[:5]).tolist(), abs=1e-10)
    assert [row["accuracy"] for row in rows] == pytest.approx((100 * accuracy[:5]).tolist(), abs=1e-10, nan_ok=True)
    assert [row["pixels"] for row in rows] == [sum((true == k).sum() for _, true in pairs) for k in range(5)]


def test_segments_of_one_class_count_together():
    metric = MeanIoU(make_classes(2))
    segmentation = Segmentation(torch.tensor([[1, 1, 2, 3]]), torch.tensor([0, 1, 0]), torch.ones(3))
    metric.update(segmentation, targets_from_id_map(np.array([[1, 2, 3, 3]]), [1, 2, 3], [0, 0, 1]))
    assert metric.confusion().tolist() == [[2, 0, 0], [1, 1, 0]]


def test_nothing_to_count_is_nan():
    metric = MeanIoU(make_classes(2))
    metric.update(predicted(np.array([[0, 1]])), truth(np.array([[VOID, VOID]])))
    assert all(score.isnan() for score in metric.compute().values())
    assert metric.per_class() == []
