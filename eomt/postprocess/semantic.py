"""Semantic post-processing: from the windows' query masks and classes to one class per pixel."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from eomt.postprocess.geometry import Placement, merge_windows, resize_maps
from eomt.postprocess.types import Segmentation


@torch.no_grad()
def semantic_segmentation(
    mask_logits: Tensor,
    class_logits: Tensor,
    placement: Placement,
    size: tuple[int, int],
    max_bytes: int = 512 * 2**20,
) -> Segmentation:
    """Give each pixel of the original image the class with the highest score.

    A class's score in a window is the sum over queries of class probability times mask probability; windows are
    averaged where they overlap, and the average is resized to the image (the rule of MaskFormer, arXiv 2107.06278,
    section 3.3, with EoMT's windows). Of equals the first class wins.

    At the original size one class is held at a time. At the windows' size the classes are scored in chunks, and the
    masks are upsampled again for each chunk; the default holds the 150 classes of ADE20K at 512x683 in one.

    Args:
        mask_logits: float [N, Q, h, w], for the N windows of one image, at any stride.
        class_logits: float [N, Q, C + 1], the last one for "no object".
        placement, size: see `cut_windows`.
        max_bytes: the memory that the scores and the upsampled masks of the windows may take; at least one class and
            one mask. Other chunks round sums over queries in another order: scores change by about 1e-7, and so a
            label where two classes are that close.

    Returns:
        The classes present, ascending, as segments that fill the image, on the device of the logits. A segment's score
        is the mean of the winning scores, at most 1.
    """
    shape = (placement.height, placement.width)
    best = torch.full(shape, -1.0, device=mask_logits.device)
    winner = torch.zeros(shape, dtype=torch.int32, device=mask_logits.device)
    for label, score in enumerate(class_scores(mask_logits, class_logits, placement, size, max_bytes)):
        winner.masked_fill_(score > best, label)
        torch.maximum(best, score, out=best)
        del score  # before the next chunk is made
    return _as_segments(winner, best, class_logits.shape[2] - 1)


def class_scores(
    mask_logits: Tensor, class_logits: Tensor, placement: Placement, size: tuple[int, int], max_bytes: int = 512 * 2**20
) -> Iterator[Tensor]:
    """Score the pixels of the original image, one class after the other; see `semantic_segmentation`.

    Yields:
        float32 [H, W], at least 0, for each of the C classes; not to be written to.
    """
    weights = class_logits.float().softmax(-1)[..., :-1]
    # A class has its scores in the whole scaled image and in the window to be added.
    class_bytes = 4 * (placement.scaled_height * placement.scaled_width + size[0] * size[1])
    chunk = max(1, max_bytes * 3 // 4 // class_bytes)
    for part in weights.split(chunk, dim=-1):
        scores = score_windows(mask_logits, part, placement, size, max_bytes // 4)
        for one in scores.split(1):
            yield resize_maps(one, (placement.height, placement.width))[0]
        del scores, one  # before the next chunk is made


def score_windows(
    mask_logits: Tensor, weights: Tensor, placement: Placement, size: tuple[int, int], max_bytes: int
) -> Tensor:
    """Score c classes over the scaled image.

    Args:
        mask_logits, placement, size: see `semantic_segmentation`.
        weights: float32 [N, Q, c], the queries' probabilities of these classes.
        max_bytes: the memory that the masks upsampled at a time may take.

    Returns:
        float32 [c, placement.scaled_height, placement.scaled_width].
    """
    # A mask is held as logits and as probabilities.
    chunk = max(1, max_bytes // (8 * size[0] * size[1]))

    def score(window: int) -> Tensor:
        scores = torch.zeros(weights.shape[2], size[0] * size[1], device=weights.device)
        for logits, part in zip(mask_logits[window].split(chunk), weights[window].split(chunk), strict=True):
            masks = resize_maps(logits.float(), size).sigmoid()
            # In place: autocast, under which a training loop validates, leaves this product in float32.
            scores.addmm_(part.T, masks.flatten(1))
            del masks
        return scores.unflatten(1, size)

    return merge_windows(score, placement, size)


def _as_segments(winner: Tensor, best: Tensor, num_classes: int) -> Segmentation:
    """Number the classes present in int32 [H, W] of classes, given float32 [H, W] of their scores."""
    areas = winner.flatten().bincount(minlength=num_classes)
    # In float64: the sum over millions of pixels must not lose the last of them.
    totals = winner.flatten().bincount(best.flatten().double(), minlength=num_classes)
    labels = areas.nonzero()[:, 0]
    numbers = torch.zeros(num_classes, dtype=torch.int32, device=winner.device)
    numbers[labels] = torch.arange(1, len(labels) + 1, dtype=torch.int32, device=winner.device)
    scores = (totals / areas)[labels].clamp(max=1).float()
    return Segmentation(numbers[winner], labels, scores)
