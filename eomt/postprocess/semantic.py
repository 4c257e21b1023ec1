"""Semantic post-processing: from the windows' query masks and classes to one class per pixel."""

from __future__ import annotations

import torch
from torch import Tensor

from eomt.postprocess.compete import STRIPE_PIXELS, take_better
from eomt.postprocess.geometry import Placement, average_windows, resize_maps
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

    A class's score in a window is the sum over queries of class probability times mask probability;
    windows are averaged where they overlap, and the average is resized to the image (the rule of
    MaskFormer, section 3.3, with EoMT's windows). Of equals the first class wins.

    At the original size one class is held at a time. At the windows' size the classes are scored in chunks:
    all at once where that fits, otherwise the masks are upsampled again for each chunk. The default lets the
    150 classes of ADE20K at 512 x 683 pass at once.

    Args:
        mask_logits: float [N, Q, h, w], of the N windows of one image, at any stride.
        class_logits: float [N, Q, C + 1], the last one for "no object".
        placement: of `cut_windows`.
        size: height and width of a window.
        max_bytes: how much the scores and the upsampled masks of the windows may take; at least one class
            and one mask. Sums over queries are rounded in another order in other chunks: scores change by
            about 1e-7, and so a label where two classes are that close. (On a GPU the sums are as exact as
            `torch.set_float32_matmul_precision` says.)

    Returns:
        The classes present in ascending order as segments that fill the image, on the device of the logits.
        A segment's score is the mean of the winning scores, at most 1.
    """
    weights = class_logits.float().softmax(-1)[..., :-1]
    shape = (placement.height, placement.width)
    best = torch.full(shape, -1.0, device=mask_logits.device)
    winner = torch.zeros(shape, dtype=torch.int32, device=mask_logits.device)
    buffer = torch.empty(1, *shape, device=mask_logits.device)
    # A class has its scores in the whole scaled image and in the window to be added.
    class_bytes = 4 * (placement.scaled_height * placement.scaled_width + size[0] * size[1])
    chunk = max(1, max_bytes * 3 // 4 // class_bytes)
    label = 0
    for part in weights.split(chunk, dim=-1):
        scores = _score_scaled(mask_logits, part, placement, size, max_bytes // 4)
        for one in scores.split(1):
            # Faster on a CPU than a reduction over stacked classes, which walks across memory.
            _enter(resize_maps(one, shape, buffer)[0], label, best, winner)
            label += 1
        del scores, one  # the next chunk's need the room
    return _as_segments(winner, best, label)


@torch.no_grad()
def semantic_scores(
    mask_logits: Tensor,
    class_logits: Tensor,
    placement: Placement,
    size: tuple[int, int],
    max_bytes: int = 512 * 2**20,
) -> Tensor:
    """The scores whose highest `semantic_segmentation` takes: float32 [C, H, W], with all classes in memory.

    Arguments as there, but max_bytes bounds the upsampled masks alone.
    """
    weights = class_logits.float().softmax(-1)[..., :-1]
    scores = _score_scaled(mask_logits, weights, placement, size, max_bytes)
    return resize_maps(scores, (placement.height, placement.width))


def _enter(score: Tensor, label: int, best: Tensor, winner: Tensor) -> None:
    """Give a class the pixels [H, W] where its score is higher than the best so far."""
    if score.device.type != "cpu":
        winner.masked_fill_(score > best, label)
        torch.maximum(best, score, out=best)
        return
    rows = max(1, STRIPE_PIXELS // score.shape[1])
    # NumPy does this several times faster.
    for values, so_far, code in zip(score.split(rows), best.split(rows), winner.split(rows), strict=True):
        take_better(values.numpy(), label, so_far.numpy(), code.numpy())


def _score_scaled(
    mask_logits: Tensor, weights: Tensor, placement: Placement, size: tuple[int, int], max_bytes: int
) -> Tensor:
    """Scores float32 [c, scaled height, scaled width] of classes with the probabilities float32 [N, Q, c]."""
    # A mask is held as logits and as probabilities.
    chunk = max(1, max_bytes // (8 * size[0] * size[1]))

    def score(window: tuple[Tensor, Tensor]) -> Tensor:
        logits, window_weights = window
        return _score_window(logits.split(chunk), window_weights.split(chunk), size)

    return average_windows(zip(mask_logits, weights, strict=True), score, placement, size)


def _score_window(logits: tuple[Tensor, ...], weights: tuple[Tensor, ...], size: tuple[int, int]) -> Tensor:
    """One window's scores float32 [c, *size] from chunks of mask logits [q, h, w] and weights [q, c]."""
    scores = torch.zeros(weights[0].shape[1], size[0] * size[1], device=weights[0].device)
    for part, part_weights in zip(logits, weights, strict=True):
        masks = resize_maps(part.float(), size).sigmoid()
        # In place: autocast, under which a training loop validates, leaves this product in float32.
        scores.addmm_(part_weights.T, masks.flatten(1))
        del masks
    return scores.unflatten(1, size)


def _as_segments(winner: Tensor, best: Tensor, num_classes: int) -> Segmentation:
    """Number the classes present: int32 [H, W] of classes and float32 [H, W] of their scores."""
    areas = winner.flatten().bincount(minlength=num_classes)
    # In float64: the sum over millions of pixels must not lose the last of them.
    totals = torch.zeros_like(areas, dtype=torch.float64)
    for rows, row_scores in zip(winner.split(256), best.split(256), strict=True):
        totals += rows.flatten().bincount(row_scores.flatten().double(), minlength=num_classes)
    labels = areas.nonzero()[:, 0]
    numbers = torch.zeros(num_classes, dtype=torch.int32, device=winner.device)
    numbers[labels] = torch.arange(1, len(labels) + 1, dtype=torch.int32, device=winner.device)
    scores = (totals / areas)[labels].clamp(max=1).float()
    return Segmentation(numbers[winner], labels, scores)
