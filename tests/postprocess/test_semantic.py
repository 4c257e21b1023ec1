"""One class per pixel against the original's recorded scores and labels, and its bound on memory."""

import pytest
import torch

from eomt.postprocess.geometry import Placement, resize_maps, window_starts
from eomt.postprocess.semantic import score_windows, semantic_segmentation
from tests.postprocess.cases import SETTINGS, added_memory, covering, golden


def random_windows(placement, size, queries=12, classes=7, seed=0):
    """Blobs for the windows of an image: mask logits [N, Q, 6, 6] and class logits [N, Q, C + 1]."""
    generator = torch.Generator().manual_seed(seed)
    count = len(window_starts(placement.scaled_height, size[0])) * len(window_starts(placement.scaled_width, size[1]))
    masks = torch.randn(count, queries, 6, 6, generator=generator) * 4
    return masks, torch.randn(count, queries, classes + 1, generator=generator)


def semantic_scores(masks, classes, placement, size, max_bytes=2**29):
    """The scores of all classes at the original size, [C, H, W]."""
    weights = classes.softmax(-1)[..., :-1]
    return resize_maps(score_windows(masks, weights, placement, size, max_bytes), placement[:2])


@pytest.mark.parametrize("case", SETTINGS["semantic_cases"], ids=lambda case: str(case["index"]))
def test_scores_and_labels_are_the_originals(case):
    prefix, size = f"semantic.{case['index']}.", (case["window"], case["window"])
    arguments = (
        golden()[prefix + "mask_logits"],
        golden()[prefix + "class_logits"],
        covering(case["height"], case["width"], size),
        size,
    )
    assert (semantic_scores(*arguments) - golden()[prefix + "scores"]).abs().max() < 1e-5
    result = semantic_segmentation(*arguments)
    expected = golden()[prefix + "labels"]
    assert result.ids.dtype == torch.int32
    assert torch.equal(result.labels[result.ids.long() - 1], expected.long())
    assert torch.equal(result.labels, expected.unique().long())
    winning = golden()[prefix + "scores"].amax(0)
    for k, label in enumerate(result.labels):
        assert result.scores[k] == pytest.approx(winning[expected == label].mean().clamp(max=1).item(), abs=1e-5)


@pytest.mark.parametrize(("height", "width"), [(61, 83), (90, 30), (24, 24), (400, 313)])
def test_the_size_of_chunks_only_matters_to_rounding(height, width):
    size = (24, 24)
    placement = covering(height, width, size)
    masks, classes = random_windows(placement, size)
    whole = semantic_scores(masks, classes, placement, size)
    result = semantic_segmentation(masks, classes, placement, size)
    assert len(result.labels) >= 3
    assert torch.equal(result.labels[result.ids.long() - 1], whole.argmax(0))
    for max_bytes in (1, 3 * 10**4, 10**5):
        assert torch.allclose(semantic_scores(masks, classes, placement, size, max_bytes), whole, rtol=0, atol=1e-6)
        part = semantic_segmentation(masks, classes, placement, size, max_bytes)
        assert torch.equal(part.ids, result.ids)
        assert torch.equal(part.labels, result.labels)
        assert torch.allclose(part.scores, result.scores, rtol=0, atol=1e-6)


@pytest.mark.parametrize("max_bytes", [1, 2**29])
def test_of_equals_the_first_class_wins_also_from_another_chunk(max_bytes):
    masks = torch.full((1, 2, 4, 4), 3.0)
    classes = torch.tensor([[[-9.0, 5, -9, 5, 5, -9], [-9, 5, -9, 5, 5, -9]]])
    result = semantic_segmentation(masks, classes, Placement(8, 8, 8, 8), (8, 8), max_bytes)
    assert result.labels.tolist() == [1]
    assert (result.ids == 1).all()


def test_scores_are_at_most_one():
    # Three sure queries for the same class at the same place: their sum is 3.
    masks = torch.full((1, 3, 4, 4), 20.0)
    classes = torch.tensor([[[20.0, 0, 0]] * 3])
    placement = Placement(5, 5, 8, 8)
    assert semantic_scores(masks, classes, placement, (8, 8)).max() == pytest.approx(3)
    assert semantic_segmentation(masks, classes, placement, (8, 8)).scores.tolist() == [1]


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 4481), (4481, 1), (3, 2000), (10, 100)])
def test_extreme_sizes_leave_no_gap(height, width):
    size = (8, 8)
    placement = covering(height, width, size)
    masks, classes = random_windows(placement, size, queries=3, classes=4)
    scores = semantic_scores(masks, classes, placement, size)
    assert scores.shape == (4, height, width)
    assert scores.isfinite().all()
    assert (scores.amax(0) > 0).all()
    result = semantic_segmentation(masks, classes, placement, size)
    assert result.ids.shape == (height, width)
    assert (result.ids > 0).all()
    assert ((result.scores > 0) & (result.scores <= 1)).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_computed_in_full(dtype):
    size = (24, 24)
    placement = covering(40, 70, size)
    masks, classes = (logits.to(dtype) for logits in random_windows(placement, size))
    full = semantic_segmentation(masks.float(), classes.float(), placement, size)
    with torch.autocast("cpu", torch.bfloat16):
        half = semantic_segmentation(masks, classes, placement, size)
    assert all(torch.equal(a, b) for a, b in zip(half, full, strict=True))
    assert half.scores.dtype == torch.float32


LARGE = """
import torch
from eomt.postprocess.semantic import semantic_segmentation
from tests.postprocess.cases import covering
masks, classes = torch.randn(2, 20, 32, 32), torch.randn(2, 20, 151)
def run(height, width):
    semantic_segmentation(masks, classes, covering(height, width, (128, 128)), (128, 128), max_bytes=32 * 2**20)
"""


@pytest.mark.slow
def test_many_classes_of_a_large_image_add_little():
    # The scores of 150 classes at 2000 x 2600 would take 2.9 GiB, as much again where they are compared.
    assert added_memory(LARGE, (32, 40), (2000, 2600)) < 0.3
