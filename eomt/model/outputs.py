"""What the network predicts, apart from the network: post-processing needs no model code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from eomt.loss.points import corners, sample_logits


class Logits(NamedTuple):
    """One prediction.

    Attributes:
        mask_logits: [B, Q, H/s, W/s], s = 4 for patch 16; a pixel belongs to a query where the logit is > 0.
        class_logits: [B, Q, C+1], the last entry stands for "no object".
    """

    mask_logits: Tensor
    class_logits: Tensor

    def masks_at(self, points: Tensor) -> Tensor:
        """All queries' mask logits at points [B, P, 2] of their image: [B, Q, P], in full precision."""
        return sample_logits(full_precision(self.mask_logits), points)

    def masks_of(self, image: Tensor, query: Tensor, counts: Sequence[int]) -> Tensor:
        """Single queries' mask logits [M, h, w] in full precision; see `QueryOutput.masks_of`."""
        return full_precision(self.mask_logits[image, query])


class QueryOutput(NamedTuple):
    """One prediction, its masks not yet multiplied out: a loss needs few of them, or few of their pixels.

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
        """With all masks multiplied out."""
        return Logits(self.mask_logits, self.class_logits)

    def masks_on(self, grid: tuple[int, int]) -> Tensor:
        """All queries' masks, resized bilinearly: [B, Q, *grid]. Resizing and the product commute."""
        features = F.interpolate(self.features.permute(0, 3, 1, 2), grid, mode="bilinear", align_corners=False)
        return _product(self.mask_embeddings, features.permute(0, 2, 3, 1))

    @torch.no_grad()
    def masks_at(self, points: Tensor) -> Tensor:
        """All queries' mask logits at points [B, P, 2] of their image, read bilinearly: [B, Q, P] in full
        precision, without gradients."""
        batch, height, width, dim = self.features.shape
        points = points.to(torch.promote_types(self.features.dtype, torch.float32))
        index, weight = (torch.stack(parts, -1) for parts in zip(*corners(points, height, width), strict=True))
        index = index + torch.arange(batch, device=index.device)[:, None, None] * (height * width)
        # Half precision would round the weights to few bits.
        features = self.features.reshape(-1, dim).to(weight.dtype)
        sampled = F.embedding_bag(
            index.flatten(0, 1), features, mode="sum", per_sample_weights=weight.flatten(0, 1)
        ).to(self.mask_embeddings.dtype)
        return full_precision(self.mask_embeddings @ sampled.unflatten(0, (batch, -1)).transpose(1, 2))

    def masks_of(self, image: Tensor, query: Tensor, counts: Sequence[int]) -> Tensor:
        """Single queries' mask logits.

        Args:
            image: int64 [M], ascending.
            query: int64 [M].
            counts: how many of the M are of each image, on the host.

        Returns:
            [M, h, w] in full precision.
        """
        masks = _OwnProducts.apply(self.mask_embeddings[image, query], self.features.flatten(1, 2), tuple(counts))
        return full_precision(masks).unflatten(1, self.features.shape[1:3])


class _OwnProducts(torch.autograd.Function):
    """Of embeddings [M, D], so many for each image, the products with the image's own features [B, N, D]: [M, N].

    PyTorch's own backward pass of a loop over images copies the features' whole gradient once more.
    """

    @staticmethod
    def forward(ctx, embeddings: Tensor, features: Tensor, counts: tuple[int, ...]) -> Tensor:
        ctx.save_for_backward(embeddings, features)
        ctx.counts = counts
        masks = embeddings.new_empty(len(embeddings), features.shape[1])
        for out, own, image in zip(masks.split(counts), embeddings.split(counts), features, strict=True):
            torch.mm(own, image.T, out=out)
        return masks

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        embeddings, features = ctx.saved_tensors
        of_embeddings, of_features = torch.empty_like(embeddings), torch.empty_like(features)
        parts = (gradient, embeddings, of_embeddings)
        parts = zip(*(part.split(ctx.counts) for part in parts), features, of_features, strict=True)
        for own, embedding, of_embedding, image, of_image in parts:
            torch.mm(own, image, out=of_embedding)
            torch.mm(own.T, embedding, out=of_image)
        return of_embeddings, of_features, None


def _product(embeddings: Tensor, features: Tensor) -> Tensor:
    return (embeddings @ features.flatten(1, 2).transpose(1, 2)).unflatten(2, features.shape[1:3])


def full_precision(x: Tensor) -> Tensor:
    """In float32, or float64 where it was."""
    return x if x.dtype == torch.float64 else x.float()
