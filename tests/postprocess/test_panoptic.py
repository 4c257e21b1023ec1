"""The panoptic merge against the original's recorded segments, and its bound on memory."""

from collections import Counter

import pytest
import torch
import torch.nn.functional as F

from eomt.postprocess.geometry import Placement
from eomt.postprocess.panoptic import _argmax_of_masks, panoptic_segmentation
from tests.host_syncs import HostSyncs
from tests.postprocess.cases import SETTINGS, added_memory, fitted, golden

THING = torch.tensor([c not in SETTINGS["stuff_classes"] for c in range(SETTINGS["num_classes"])])


@pytest.mark.parametrize("case", SETTINGS["cases"], ids=lambda case: str(case["index"]))
def test_segments_are_the_originals(case):
    prefix, size = f"{case['index']}.", tuple(SETTINGS["img_size"])
    expected = golden()[prefix + "panoptic"]
    result = panoptic_segmentation(
        golden()[prefix + "mask_logits"][0],
        golden()[prefix + "class_logits"][0],
        fitted(case["height"], case["width"], size),
        size,
        THING,
        SETTINGS["mask_thresh"],
        overlap_threshold=SETTINGS["overlap_thresh"],
    )
    assert result.ids.dtype == torch.int32
    assert torch.equal(result.ids - 1, expected[..., 1])
    labels = torch.cat([torch.tensor([len(THING)]), result.labels])[result.ids]
    assert torch.equal(labels.int(), expected[..., 0])
    probabilities = golden()[prefix + "class_logits"][0].softmax(-1)
    assert len(result.scores) == len(result.labels) == result.ids.max()
    for score, label in zip(result.scores, result.labels, strict=True):
        assert score > 0.8
        assert (probabilities[:, label] == score).any()


def crowded(queries=60, classes=5, seed=0):
    """Blobs with sharp classes: many kept, many ties among duplicates, some lost to others."""
    generator = torch.Generator().manual_seed(seed)
    masks = torch.randn(queries, 6, 6, generator=generator) * 4
    masks = F.interpolate(masks[:, None], (24, 24), mode="bicubic")[:, 0] - 3
    masks[10:20] = masks[:10]
    logits = torch.randn(queries, classes + 1, generator=generator) * 6
    logits[10:20] = logits[:10]
    return masks, logits


@pytest.mark.parametrize("seed", range(3))
def test_the_size_of_chunks_does_not_matter(seed):
    masks, classes = crowded(seed=seed)
    thing = torch.tensor([True, False, True, False, False])
    arguments = masks, classes, fitted(61, 83, (96, 96)), (96, 96), thing
    whole = panoptic_segmentation(*arguments, overlap_threshold=0.3)
    assert len(whole.labels) >= 3
    for max_bytes in (1, 10**5, 7 * 10**5):
        part = panoptic_segmentation(*arguments, overlap_threshold=0.3, max_bytes=max_bytes)
        assert all(torch.equal(a, b) for a, b in zip(whole, part, strict=True))


# Scaled by 1, enlarged, made smaller, and extremely long.
@pytest.mark.parametrize("max_bytes", [1, 7 * 10**5, 2**30])
@pytest.mark.parametrize("seed", range(3))
def test_chunks_at_once_give_what_masks_in_turn_give(seed, max_bytes):
    masks, classes = crowded(seed=seed)
    scores = classes.softmax(-1)[:, :-1].amax(-1)
    assert scores[10:20].equal(scores[:10]), "ties"
    arguments = masks, torch.arange(len(masks)), scores, fitted(61, 83, (96, 96)), (96, 96), 0.5, max_bytes
    for stacked, in_turn in zip(*(_argmax_of_masks(*arguments, stacked) for stacked in (True, False)), strict=True):
        assert torch.equal(stacked, in_turn)
        assert stacked.dtype == in_turn.dtype


@pytest.mark.parametrize("shape", [(96, 96), (72, 96), (301, 400), (50, 30), (7, 96), (1, 300)])
def test_equals_the_rule_written_with_all_masks_at_once(shape):
    masks, classes = crowded(seed=sum(shape))
    thing = torch.tensor([True, False, True, False, False])
    placement = fitted(*shape, (96, 96))
    result = panoptic_segmentation(masks, classes, placement, (96, 96), thing, overlap_threshold=0.3)

    scores, labels = classes.softmax(-1).max(-1)
    keep = (labels != 5) & (scores > 0.8)
    scores, labels = scores[keep], labels[keep]
    resized = F.interpolate(masks[keep][:, None], (96, 96), mode="bilinear")
    cropped = resized[..., : placement.scaled_height, : placement.scaled_width]
    probabilities = F.interpolate(cropped, shape, mode="bilinear")[:, 0].sigmoid()
    winner = (probabilities * scores[:, None, None]).argmax(0)
    expected, found, stuff = torch.zeros(shape, dtype=torch.int32), [], {}
    for query in range(len(labels)):
        own = probabilities[query] >= 0.5
        segment = (winner == query) & own
        if segment.sum() == 0 or (winner == query).sum() / own.sum() < 0.3:
            continue
        label = int(labels[query])
        if label in stuff:
            expected[segment] = stuff[label]
            continue
        found.append(query)
        expected[segment] = len(found)
        if not thing[label]:
            stuff[label] = len(found)
    assert torch.equal(result.ids, expected)
    assert torch.equal(result.labels, labels[found])
    assert torch.equal(result.scores, scores[found])


def one_query(own_pixels, rival_pixels, overlap_threshold=0.8):
    """A mask over the first columns of a row, and a surer rival over the last of these."""
    masks = torch.full((2, 1, 10), -20.0)
    masks[0, 0, :own_pixels] = 5
    masks[1, 0, own_pixels - rival_pixels : own_pixels] = 20
    classes = torch.tensor([[10.0, 0, 0], [0, 20.0, 0]])
    placement = Placement(1, 10, 1, 10)
    return panoptic_segmentation(
        masks, classes, placement, (1, 10), torch.tensor([True, True]), overlap_threshold=overlap_threshold
    )


def test_a_segment_stays_if_it_won_exactly_the_threshold():
    # The original keeps a ratio equal to the threshold; Hugging Face's port drops it.
    assert one_query(4, 1, overlap_threshold=0.75).labels.tolist() == [0, 1]
    assert one_query(4, 2, overlap_threshold=0.75).labels.tolist() == [1]


def test_won_pixels_below_the_mask_threshold_count_for_the_ratio_but_not_for_the_segment():
    masks = torch.full((2, 1, 10), -30.0)
    masks[0, 0] = torch.tensor([5.0, 5, -1, -1, -1, -1, 5, 5, -1, -1])
    masks[1, 0, 6:8] = 30
    classes = torch.tensor([[10.0, 0, 0], [0, 20.0, 0]])
    placement = Placement(1, 10, 1, 10)
    result = panoptic_segmentation(masks, classes, placement, (1, 10), torch.tensor([True, True]))
    # Query 0 wins 2 of its 4 pixels and 6 below the threshold: 8 / 4.
    assert result.ids.tolist() == [[1, 1, 0, 0, 0, 0, 2, 2, 0, 0]]


def test_a_probability_of_a_half_is_inside():
    masks = torch.tensor([[[0.0, 9, -9, -9]], [[0.0, 9, -9, -9]]])
    classes = torch.tensor([[0.0, 10, -10], [10.0, 0, -10]])
    placement = Placement(1, 4, 1, 4)
    result = panoptic_segmentation(masks, classes, placement, (1, 4), torch.tensor([True, True]))
    assert result.ids.tolist() == [[1, 1, 0, 0]]
    assert result.labels.tolist() == [1]


@pytest.mark.parametrize("max_bytes", [1, 2**30])
@pytest.mark.parametrize("value", [0.0, 200.0, 1e30])
def test_of_equals_the_first_query_wins(value, max_bytes):
    # Sigmoids saturate: the whole image is a tie of the second and the third query.
    masks, classes = torch.full((4, 24, 24), value), torch.zeros(4, 5)
    classes[range(4), range(4)] = torch.tensor([4.0, 9, 9, 5])
    thing = torch.ones(4, dtype=torch.bool)
    result = panoptic_segmentation(masks, classes, fitted(50, 70, (96, 96)), (96, 96), thing, max_bytes=max_bytes)
    assert (result.ids == 1).all()
    assert result.labels.tolist() == [1]


def waits_of(queries, monkeypatch):
    masks, logits = torch.randn(queries, 24, 24), torch.zeros(queries, 11)
    logits[torch.arange(queries), torch.arange(queries) % 10] = 9
    read = Counter()  # reads of a CPU's memory that are no operation
    for name in ("tolist", "item", "numpy", "cpu", "__bool__", "__int__", "__float__"):
        plain = getattr(torch.Tensor, name)
        monkeypatch.setattr(torch.Tensor, name, lambda *a, p=plain, n=name, **k: (read.update([n]), p(*a, **k))[1])
    thing = torch.arange(10) < 5
    arguments = masks, logits, fitted(72, 96, (96, 96)), (96, 96), thing
    with HostSyncs() as waits:
        result = panoptic_segmentation(*arguments, overlap_threshold=0, max_bytes=2**20)
    monkeypatch.undo()
    assert len(result.labels) > 1
    return waits.found, read


def test_a_gpu_is_waited_for_twice_however_many_queries_there_are(monkeypatch):
    for queries in (5, 150):
        # The number of kept queries, and the pixels that each has won.
        assert waits_of(queries, monkeypatch) == ({"nonzero": 1}, {"tolist": 1})


def test_stuff_is_merged_and_things_are_not():
    masks = torch.full((4, 1, 8), -20.0)
    for q in range(4):
        masks[q, 0, 2 * q : 2 * q + 2] = 20
    classes = torch.tensor([[9.0, 0, 0], [0, 10.0, 0], [8.0, 0, 0], [0, 7.0, 0]])
    placement = Placement(1, 8, 1, 8)
    result = panoptic_segmentation(masks, classes, placement, (1, 8), torch.tensor([False, True]))
    assert result.ids.tolist() == [[1, 1, 2, 2, 1, 1, 3, 3]]
    assert result.labels.tolist() == [0, 1, 1]
    assert torch.equal(result.scores, classes.softmax(-1).amax(-1)[[0, 1, 3]])


@pytest.mark.parametrize("no_object", [20.0, 0.0])
def test_no_confident_query_gives_no_segment(no_object):
    classes = torch.zeros(3, 4)
    classes[:, -1] = no_object
    result = panoptic_segmentation(
        torch.ones(3, 8, 8), classes, fitted(20, 30, (32, 32)), (32, 32), torch.tensor([True] * 3)
    )
    assert result.ids.shape == (20, 30)
    assert result.ids.dtype == torch.int32
    assert not result.ids.any()
    assert result.labels.shape == result.scores.shape == (0,)


LARGE = """
import torch
from eomt.postprocess.panoptic import _argmax_of_masks, panoptic_segmentation
from tests.postprocess.cases import fitted
masks, classes = torch.randn(200, 160, 160), torch.zeros(200, 134)
classes[torch.arange(64), torch.arange(64)] = 20
classes[64:, -1] = 20
def run(height, width):
    placement = fitted(height, width, (640, 640))
    panoptic_segmentation(masks, classes, placement, (640, 640), torch.ones(133, dtype=torch.bool))
"""


@pytest.mark.slow
def test_a_large_image_with_many_queries_adds_little():
    # 64 kept masks of a 2943 x 1435 image alone take 1 GiB, their probabilities as much again.
    assert added_memory(LARGE, (64, 64), (1435, 2943)) < 1
