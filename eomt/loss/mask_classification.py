"""The mask classification loss (Mask2Former, arXiv 2112.01527; weights as EoMT's)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eomt.loss.masks import OutputMasks
from eomt.loss.matching import Matcher, Pairs, matching_cost
from eomt.loss.points import RandomPoints, TargetReader, sample_maps, uncertain_points
from eomt.model.outputs import QueryOutput, full_precision
from eomt.targets import BatchTargets

_CANDIDATES = 2**26
"""Candidate points that are drawn at once, or those of an output where that is more."""


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
        self.matcher = Matcher()

    def draw(
        self,
        num_outputs: int,
        num_queries: int,
        counts: Sequence[int],
        seeds: Sequence[int] | None = None,
        device: torch.device | str = "cpu",
    ) -> RandomPoints:
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
        matched = [min(num_queries, count) for count in counts]
        extra = self.num_points - int(self.importance_ratio * self.num_points)
        sizes = (self.num_points, int(self.num_points * self.oversample_ratio), extra)
        return RandomPoints(seeds, num_outputs, matched, sizes, device)

    def forward(
        self,
        outputs: Sequence[QueryOutput],
        targets: BatchTargets,
        points: RandomPoints,
        normaliser: float | Tensor | None = None,
        class_normaliser: float | Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Compute the loss terms of each output, unweighted.

        Args:
            outputs: O predictions for B images.
            targets: the images' segments.
            points: random points from `draw`.
            normaliser: the divisor of sums over masks: the number of matched masks, or its mean over ranks, at
                least 1. Default: this batch's number.
            class_normaliser: the divisor of the weighted sum over queries. Default: this batch's `class_weight_sum`.

        Returns:
            `mask` (binary cross-entropy), `dice` and `class`, [O] each.
        """
        batch, queries = outputs[0].class_logits.shape[:2]
        matched = num_matched(queries, targets.counts)
        if normaliser is None:
            normaliser = max(1, matched)
        if class_normaliser is None:
            class_normaliser = self.class_weight_sum(queries, batch, matched)
        with torch.autocast(outputs[0].class_logits.device.type, enabled=False):
            masks, reader = OutputMasks(outputs), TargetReader(targets, self.ignore_void)
            class_logits = full_precision(torch.stack([output.class_logits for output in outputs]))
            pairs = self._match(masks, class_logits, targets, reader, points)
            mask, dice = (self._mask_terms(masks.of(pairs), reader, points, pairs) / normaliser).unbind()
            classes = self._class_term(class_logits, targets.labels, pairs) / class_normaliser
        return {"mask": mask, "dice": dice, "class": classes}

    def total(self, terms: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum of all outputs' terms."""
        weighted: Any = sum(self.weights[name] * values for name, values in terms.items())
        return weighted.sum()

    def match(self, outputs: Sequence[QueryOutput], targets: BatchTargets, points: RandomPoints) -> Pairs:
        """Match every output's queries to the targets."""
        class_logits = full_precision(torch.stack([output.class_logits for output in outputs]))
        return self._match(OutputMasks(outputs), class_logits, targets, TargetReader(targets, self.ignore_void), points)

    @torch.no_grad()
    def _match(
        self,
        masks: OutputMasks,
        class_logits: Tensor,
        targets: BatchTargets,
        reader: TargetReader,
        points: RandomPoints,
    ) -> Pairs:
        if max(targets.counts) == 0:
            return self.matcher(class_logits[..., :0], targets.counts)
        at = points.match().to(class_logits.dtype)
        truth = reader.all_masks(at)
        weights = self.weights.values()
        costs = matching_cost(masks.at(at), class_logits, truth, targets.labels, *weights)
        return self.matcher(costs, targets.counts)

    def _mask_terms(self, masks: Tensor, reader: TargetReader, points: RandomPoints, pairs: Pairs) -> Tensor:
        """Binary cross-entropy and dice of the matched masks [O M, h, w], summed over those of an output: [2, O]."""
        outputs = len(pairs.query)
        if len(masks) == 0:
            # Zeros that depend on the network: every rank's backward pass reaches the same parameters.
            return masks.sum().expand(2, outputs)
        chosen, truth, known = self._points(masks, reader, points, pairs)
        values = sample_maps(masks, chosen)
        probability = values.sigmoid()
        overlap = (probability * truth).sum(1)
        if known is None:
            bce = F.binary_cross_entropy_with_logits(values, truth, reduction="none").mean(1)
        else:
            # The sum over a point's known corners: those of the segment are among them.
            bce = (F.softplus(values) * known - values * truth).sum(1) / known.sum(1).clamp(min=1)
            probability = probability * known
        dice = 1 - (2 * overlap + 1) / (probability.sum(1) + truth.sum(1) + 1)
        return torch.stack((bce, dice)).view(2, outputs, -1).sum(2)

    @torch.no_grad()
    def _points(
        self, masks: Tensor, reader: TargetReader, points: RandomPoints, pairs: Pairs
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Choose points [O M, P, 2] of the masks, and read the truth and what is known there, [O M, P] each."""
        certain = int(self.importance_ratio * self.num_points)
        image, segment = pairs.image.repeat(len(pairs.query)), pairs.segment.flatten()
        parts = min(len(pairs.query), 1 + len(masks) * int(self.num_points * self.oversample_ratio) // _CANDIDATES)
        rows = -(-len(masks) // parts)
        found: list[Any] = []
        for start in range(0, len(masks), rows):
            part = slice(start, start + rows)
            candidates, further = (p.to(masks.dtype) for p in points.of_masks(part))
            chosen = uncertain_points(masks[part], candidates, further, certain)
            found.append((chosen, *reader.masks(image[part], segment[part], chosen)))
        if parts == 1:
            return found[0]
        chosen, truth, known = zip(*found, strict=True)
        return torch.cat(chosen), torch.cat(truth), torch.cat(known) if self.ignore_void else None

    def _class_term(self, logits: Tensor, labels: Tensor, pairs: Pairs) -> Tensor:
        """Weighted cross-entropy of class logits [O, B, Q, C+1], summed over the queries of an output: [O]."""
        no_object = logits.shape[-1] - 1
        wanted = torch.full((len(logits), logits.shape[1] * logits.shape[2]), no_object, device=logits.device)
        wanted.scatter_(1, pairs.image * logits.shape[2] + pairs.query, labels[pairs.image, pairs.segment])
        weight = F.pad(logits.new_ones(no_object), (0, 1), value=self.no_object_weight)
        losses = F.cross_entropy(logits.flatten(0, 2), wanted.flatten(), weight, reduction="none")
        return losses.view(wanted.shape).sum(1)

    def class_weight_sum(self, num_queries: int, images: int, matched: float | Tensor) -> float | Tensor:
        """The sum of the class term's weights over all queries of some images, of which `matched` are matched."""
        return matched + self.no_object_weight * (images * num_queries - matched)


def num_matched(num_queries: int, counts: Sequence[int]) -> int:
    """Number of matched masks in images with `counts` targets."""
    return sum(min(num_queries, count) for count in counts)
