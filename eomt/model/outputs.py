"""The network's predictions as plain tensors: post-processing and loss need no model code."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Logits(NamedTuple):
    """One prediction for B images.

    Attributes:
        mask_logits: [B, Q, H/s, W/s], s = 4 for patch 16; a pixel belongs to a query where the logit is > 0.
        class_logits: [B, Q, C+1], the last entry stands for "no object".
    """

    mask_logits: Tensor
    class_logits: Tensor


class QueryOutput(NamedTuple):
    """One prediction for B images, its masks not yet multiplied out: a loss needs few of them, or few of their pixels.

    Attributes:
        mask_embeddings: [B, Q, D].
        features: [B, h, w, D], the upscaled patches; a mask is their product with a query's embedding.
        class_logits: [B, Q, C+1], the last entry stands for "no object".
    """

    mask_embeddings: Tensor
    features: Tensor
    class_logits: Tensor

    @property
    def mask_logits(self) -> Tensor:
        """All queries' masks, [B, Q, h, w]."""
        return _product(self.mask_embeddings, self.features)

    def logits(self) -> Logits:
        """Multiply all masks out."""
        return Logits(self.mask_logits, self.class_logits)

    def masks_on(self, grid: tuple[int, int]) -> Tensor:
        """All queries' masks, resized bilinearly: [B, Q, *grid]. Resizing and the product commute."""
        features = F.interpolate(self.features.permute(0, 3, 1, 2), grid, mode="bilinear", align_corners=False)
        return _product(self.mask_embeddings, features.permute(0, 2, 3, 1))


def _product(embeddings: Tensor, features: Tensor) -> Tensor:
    return (embeddings @ features.flatten(1, 2).transpose(1, 2)).unflatten(2, features.shape[1:3])


def full_precision(x: Tensor) -> Tensor:
    """Cast to float32, or leave float64 as it is."""
    return x if x.dtype == torch.float64 else x.float()
