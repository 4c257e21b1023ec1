"""The mask classification loss (Mask2Former, arXiv 2112.01527; weights as EoMT's)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eomt.loss.matching import match, matching_cost
from eomt.loss.points import (
    RandomPoints,
    sample_all_targets,
    sample_known,
    sample_targets,
    uncertain_points,
)
from eomt.model.outputs import QueryOutput, full_precision, sample_maps
from eomt.targets import BatchTargets


class MaskClassificationLoss(nn.Module):
    """Hungarian matching of every output's queries to the targets, and the loss of masks and classes.

    Computed in float32 (or the logits' float64), outside autocast.

    Args:
        num_points: P, the number of points on which masks are compared.
        oversample_ratio: the candidates per point, of which the most uncertain ones are kept.
        importance_ratio: the share of points that are such candidates; the rest is uniform.
        mask_weight, dice_weight, class_weight: the weights of the terms, in the matching cost and in the total.
        no_object_weight: the weight of "no object" in the cross-entropy over classes.
        ignore_void: leave pixels of no segment (void, dropped crowds, padding) out of the mask terms and of the masks'
            matching cost; the original counts them as background.
        global_normaliser: divide all terms by the numbers of the whole optimizer step, over all ranks and accumulated
            batches, so that a step has the gradients of one big batch however it is divided. Not used here: the
            training loop computes the normalisers.
    """

    def __init__(
        self,
        num_points: int = 12544,
        oversample_ratio: float = 3.0,
        importance_ratio: float = 0.75,
        mask_weight: float = 5.0,
        dice_weight: float = 5.0,
        class_weight: float = 2.0,
        no_object_weight: float = 0.1,
        ignore_void: bool = False,
        global_normaliser: bool = False,
    ):
        super().__init__()
        self.num_points = num_points
        self.oversample_ratio = oversample_ratio
        self.importance_ratio = importance_ratio
        self.weights = {"mask": mask_weight, "dice": dice_weight, "class": class_weight}
        self.no_object_weight = no_object_weight
        self.ignore_void = ignore_void
        self.global_normaliser = global_normaliser

    def draw(
        self,
        num_outputs: int,
        num_queries: int,
        counts: Sequence[int],
        seeds: Sequence[int] | None = None,
        device: torch.device | str = "cpu",
    ) -> list[RandomPoints]:
        """Draw random points for `forward`.

        Args:
            num_outputs: O.
            num_queries: Q.
            counts: the number of targets of each of B images.
            seeds: a seed for each image, at least 0; default random ones.
            device: the outputs' device.
        """
        if seeds is None:
            seeds = torch.randint(2**62, (len(counts),)).tolist()
        matched = tuple(min(num_queries, count) for count in counts)
        extra = self.num_points - int(self.importance_ratio * self.num_points)
        sizes = (self.num_points, int(self.num_points * self.oversample_ratio), extra)
        return [RandomPoints(tuple(seeds), output, matched, sizes, device) for output in range(num_outputs)]

    def forward(
        self,
        outputs: Sequence[QueryOutput],
        targets: BatchTargets,
        points: Sequence[RandomPoints],
        normaliser: float | Tensor | None = None,
        class_normaliser: float | Tensor | None = None,
    ) -> list[dict[str, Tensor]]:
        """Compute the loss terms of each output, unweighted.

        Args:
            outputs: O predictions for B images.
            targets: the images' segments.
            points: O sets of random points from `draw`.
            normaliser: the divisor of sums over masks: the number of matched masks, or its mean over ranks, at
                least 1. Default: this batch's number.
            class_normaliser: the divisor of the weighted sum over queries. Default: this batch's `class_weight_sum`.

        Returns:
            Per output the scalars `mask` (binary cross-entropy), `dice` and `class`.
        """
        with torch.autocast(outputs[0].class_logits.device.type, enabled=False):
            if normaliser is None:
                normaliser = max(1, num_matched(outputs[0].class_logits.shape[1], targets.counts))
            matches = self.match(outputs, targets, points)
            return [
                self._terms(output, targets, drawn, pairs, normaliser, class_normaliser)
                for output, drawn, pairs in zip(outputs, points, matches, strict=True)
            ]

    def total(self, terms: Sequence[dict[str, Tensor]]) -> Tensor:
        """The weighted sum of all outputs' terms."""
        return sum(self.weights[name] * value for output in terms for name, value in output.items())

    @torch.no_grad()
    def match(
        self,
        outputs: Sequence[QueryOutput],
        targets: BatchTargets,
        points: Sequence[RandomPoints],
    ) -> Tensor:
        """Match every output's queries to the targets: int64 [O, 3, M], image, query and target of each pair."""
        if targets.labels.shape[1] == 0:
            return targets.labels.new_zeros(len(outputs), 3, 0)
        costs = []
        for output, drawn in zip(outputs, points, strict=True):
            at = drawn.match
            costs.append(
                matching_cost(
                    output.masks_at(at),
                    full_precision(output.class_logits),
                    sample_all_targets(targets, at),
                    targets.labels,
                    self.weights["mask"],
                    self.weights["dice"],
                    self.weights["class"],
                    self._known(targets, torch.arange(len(at), device=at.device), at),
                )
            )
        return match(torch.stack(costs), targets.counts)

    def _terms(
        self,
        output: QueryOutput,
        targets: BatchTargets,
        points: RandomPoints,
        pairs: Tensor,
        normaliser: float | Tensor,
        class_normaliser: float | Tensor | None,
    ) -> dict[str, Tensor]:
        image, query, segment = pairs
        matched = [min(output.class_logits.shape[1], count) for count in targets.counts]
        mask, dice = self._mask_terms(output.masks_of(image, query, matched), targets, points, image, segment)
        class_term = self._class_term(output, targets, pairs, class_normaliser)
        return {"mask": mask / normaliser, "dice": dice / normaliser, "class": class_term}

    def _mask_terms(
        self, logits: Tensor, targets: BatchTargets, points: RandomPoints, image: Tensor, segment: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Binary cross-entropy and dice, each summed over the M matched masks [M, h, w]."""
        if len(logits) == 0:
            # Zeros that depend on the network: every rank's backward pass reaches the same parameters.
            return logits.sum(), logits.sum()
        with torch.no_grad():
            certain = int(self.importance_ratio * self.num_points)
            chosen = uncertain_points(logits, points.candidates, points.extra, certain)
            truth = sample_targets(targets, image, segment, chosen)
            known = self._known(targets, image, chosen)
        values = sample_maps(logits[:, None], chosen).squeeze(1)
        probability = values.sigmoid()
        overlap = (probability * truth).sum(1)
        if known is None:
            bce = F.binary_cross_entropy_with_logits(values, truth, reduction="none").mean(1)
        else:
            # The sum over a point's known corners: those of the segment are among them.
            bce = (F.softplus(values) * known - values * truth).sum(1) / known.sum(1).clamp(min=1)
            probability = probability * known
        dice = 1 - (2 * overlap + 1) / (probability.sum(1) + truth.sum(1) + 1)
        return bce.sum(), dice.sum()

    def _known(self, targets: BatchTargets, image: Tensor, points: Tensor) -> Tensor | None:
        return sample_known(targets, image, points) if self.ignore_void else None

    def _class_term(
        self, output: QueryOutput, targets: BatchTargets, pairs: Tensor, normaliser: float | Tensor | None
    ) -> Tensor:
        image, query, segment = pairs
        logits = full_precision(output.class_logits)
        no_object = logits.shape[-1] - 1
        wanted = torch.full(logits.shape[:2], no_object, dtype=torch.int64, device=logits.device)
        wanted[image, query] = targets.labels[image, segment]
        weight = logits.new_ones(no_object + 1)
        weight[no_object] = self.no_object_weight
        if normaliser is None:
            return F.cross_entropy(logits.transpose(1, 2), wanted, weight)
        return F.cross_entropy(logits.transpose(1, 2), wanted, weight, reduction="sum") / normaliser

    def class_weight_sum(self, num_queries: int, images: int, matched: float | Tensor) -> float | Tensor:
        """The sum of the class term's weights over all queries of some images, of which `matched` are matched."""
        return matched + self.no_object_weight * (images * num_queries - matched)


def num_matched(num_queries: int, counts: Sequence[int]) -> int:
    """Number of matched masks in images with `counts` targets."""
    return sum(min(num_queries, count) for count in counts)
