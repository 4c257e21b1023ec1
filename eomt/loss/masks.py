"""Mask logits of several outputs, multiplied out as far as a loss needs them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from eomt.loss.matching import Pairs
from eomt.model.outputs import QueryOutput, full_precision


class OutputMasks:
    """The masks of O outputs' queries.

    Args:
        outputs: predictions for B images, of one size.
    """

    def __init__(self, outputs: Sequence[QueryOutput]):
        self._size = outputs[0].features.shape[1:3]
        self._embeddings = torch.stack([output.mask_embeddings for output in outputs])
        self._features = [output.features.flatten(1, 2) for output in outputs]

    @torch.no_grad()
    def at(self, points: Tensor, whole: bool | None = None) -> Iterator[Tensor]:
        """Read all queries' masks bilinearly at points [O, B, P, 2] of their images, without gradients.

        Args:
            points: the points.
            whole: multiply whole masks and read these, instead of multiplying features that were read at the points:
                the same, faster on a GPU, slower on a CPU. Default: by the device.

        Yields:
            [B, Q, P] in full precision, of each output.
        """
        whole = points.is_cuda if whole is None else whole
        parts = zip(self._features, self._embeddings.unbind(), points[:, :, None].unbind(), strict=True)
        yield from (self._at(*part, whole) for part in parts)

    def _at(self, features: Tensor, embeddings: Tensor, grid: Tensor, whole: bool) -> Tensor:
        # The last dimension is that of queries or features, so that a point reads them in one go.
        maps = features.bmm(embeddings.mT) if whole else features
        # Half precision would round the weights to few bits.
        values = F.grid_sample(full_precision(maps).mT.unflatten(2, self._size), grid, align_corners=False).squeeze(2)
        return values if whole else full_precision(embeddings.bmm(values.to(embeddings.dtype)))

    def of(self, pairs: Pairs) -> Tensor:
        """The masks of matched queries, [O M, h, w] in full precision."""
        outputs, batch, queries, dim = self._embeddings.shape
        first = torch.arange(0, outputs * batch * queries, queries, device=pairs.table.device).view(outputs, batch, 1)
        # As many queries for each image as the one with the most has, so that one product serves an output.
        chosen = self._embeddings.flatten(0, 2).index_select(0, (pairs.table + first).flatten())
        embeddings = chosen.view(outputs, batch, -1, dim).unbind()
        products = zip(embeddings, self._features, strict=True)
        masks = torch.stack([_Product.apply(*factors) for factors in products]).flatten(1, 2)
        if len(pairs.place) < masks.shape[1]:
            masks = masks.index_select(1, pairs.place)
        return full_precision(masks).view(-1, *self._size)


class _Product(torch.autograd.Function):
    """The product [B, N, P] of embeddings [B, N, D] and features [B, P, D], with gradients in their layout.

    PyTorch's own backward pass makes one of the two transposed, at the cost of a copy of the features' size.
    """

    @staticmethod
    def forward(ctx: Any, embeddings: Tensor, features: Tensor) -> Tensor:
        ctx.save_for_backward(embeddings, features)
        return embeddings.bmm(features.mT)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        embeddings, features = ctx.saved_tensors
        return gradient.bmm(features), gradient.mT.bmm(embeddings)
