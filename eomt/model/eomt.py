"""EoMT: a plain ViT that segments (arXiv 2503.19108, section 3).

Learned queries join the tokens before the last blocks; each query predicts a class and a mask.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from eomt.errors import InputError
from eomt.model.backbone import Backbone
from eomt.model.outputs import QueryOutput


class EoMT(nn.Module):
    """Encoder-only mask transformer.

    Args:
        backbone: timm's name of a plain ViT.
        image_size: the side of the square that it trains on, or (height, width).
        num_classes: C, without "no object".
        num_queries: Q.
        num_masked_blocks: L2, the number of last blocks that the queries pass through.
        patch_size: the side of a patch in pixels.
        backbone_options: see `Backbone`.

    Raises:
        InputError: if a value is out of range or timm cannot build the backbone.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self,
        backbone: str,
        image_size: int | tuple[int, int],
        num_classes: int,
        num_queries: int,
        num_masked_blocks: int,
        patch_size: int = 16,
        backbone_options: Mapping | None = None,
    ):
        super().__init__()
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        self.spec: dict[str, Any] = {
            "backbone": backbone,
            "image_size": [height, width],
            "num_classes": num_classes,
            "num_queries": num_queries,
            "num_masked_blocks": num_masked_blocks,
            "patch_size": patch_size,
            "backbone_options": dict(backbone_options or {}),
        }
        self.backbone = Backbone(backbone, (height, width), patch_size, backbone_options)
        if not 1 <= num_masked_blocks <= len(self.backbone.blocks):
            raise InputError(
                f"model.num_masked_blocks={num_masked_blocks}: {backbone} has {len(self.backbone.blocks)} "
                "blocks, choose a number from 1 to that"
            )
        # Recompute each block in the backward pass instead of keeping its activations.
        self.activation_checkpointing = False
        dim = self.backbone.embed_dim
        self.num_masked_blocks = num_masked_blocks
        self.queries = nn.Parameter(torch.randn(num_queries, dim))
        self.class_head = nn.Linear(dim, num_classes + 1)
        self.mask_head = nn.Sequential(
            nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim)
        )
        self.upscale = nn.Sequential(*(Upscale(dim) for _ in range(max(1, int(math.log2(patch_size)) - 2))))
        # No weights: the original's files hold wrong means and deviations.
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
        self.register_buffer("pixel_mean", mean, persistent=False)
        self.register_buffer("pixel_std", std, persistent=False)

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the images it was built for."""
        height, width = self.spec["image_size"]
        return height, width

    @property
    def num_queries(self) -> int:
        return len(self.queries)

    @property
    def num_classes(self) -> int:
        return self.class_head.out_features - 1

    def forward(self, images: Tensor, dropped_masks: Tensor | None = None) -> list[QueryOutput]:
        """Segment images.

        Args:
            images: [B, 3, H, W], H and W multiples of the patch size, padded with zeros where there is no
                image; uint8 0..255 or floating point 0..1.
            dropped_masks: None for the mask-free network. Otherwise bool [L2, B, Q], True where a query's attention
                mask is dropped in a block; the network then predicts before each of its last L2 blocks too, and that
                prediction masks the block's attention.

        Returns:
            The predictions in order, the last of which is the network's result: L2 + 1 of them with `dropped_masks`,
            otherwise one.
        """
        patch, dtype = self.backbone.patch_size, self.pixel_mean.dtype
        height, width = images.shape[-2:]
        if height % patch or width % patch:
            raise ValueError(f"images are {height}x{width}, which is no multiple of the patch size {patch}")
        grid = (height // patch, width // patch)
        rope = self.backbone.rotary_embedding(grid)
        images = images.to(dtype) / 255 if images.dtype == torch.uint8 else images.to(dtype)
        tokens = self.backbone.embed((images - self.pixel_mean) / self.pixel_std)
        first = len(self.backbone.blocks) - self.num_masked_blocks
        for index in range(first):
            tokens = self._run_block(index, tokens, rope)
        tokens = torch.cat((self.queries.expand(images.shape[0], -1, -1).to(tokens.dtype), tokens), dim=1)
        outputs = []
        for k in range(self.num_masked_blocks):
            mask = None
            if dropped_masks is not None:
                outputs.append(self.predict(tokens, grid))
                mask = self._attention_mask(outputs[-1], grid, dropped_masks[k])
            tokens = self._run_block(first + k, tokens, rope, mask)
        outputs.append(self.predict(tokens, grid))
        return outputs

    def predict(self, tokens: Tensor, grid: tuple[int, int]) -> QueryOutput:
        """Predict classes and masks of the queries in `tokens` [B, Q + prefix + patches, D]."""
        tokens = self.backbone.norm(tokens)
        queries = tokens[:, : self.num_queries]
        patches = tokens[:, self.num_queries + self.backbone.num_prefix_tokens :]
        embeddings = self.mask_head(queries)
        # Under autocast norms give float32, twice the memory that the masks' product needs.
        features = self.upscale(patches.unflatten(1, grid)).to(embeddings.dtype)
        return QueryOutput(embeddings, features, self.class_head(queries))

    def _run_block(self, index: int, tokens: Tensor, rope: Tensor | None, mask: Tensor | None = None) -> Tensor:
        if self.activation_checkpointing and torch.is_grad_enabled():
            result = checkpoint(self.backbone.run_block, index, tokens, rope, mask, use_reentrant=False)
            return cast(Tensor, result)
        return self.backbone.run_block(index, tokens, rope, mask)

    @torch.no_grad()
    def _attention_mask(self, output: QueryOutput, grid: tuple[int, int], dropped: Tensor) -> Tensor:
        """Attention mask of the queries, bool [B, Q, Q + prefix + patches], True where they may attend: to all queries
        and prefix tokens, and to the patches of their own mask, or to all patches where the mask is dropped."""
        inside = output.masks_on(grid).flatten(2) > 0
        always = inside.new_ones(*inside.shape[:2], self.num_queries + self.backbone.num_prefix_tokens)
        return torch.cat((always, inside | dropped[:, :, None]), dim=2)


class Upscale(nn.Module):
    """Layer that doubles the resolution of a feature map: [B, h, w, D] to [B, 2h, 2w, D].

    A transposed convolution whose stride is its kernel is a linear layer and a shuffle of pixels; its own backward pass
    takes three times as long on a CPU. All but the linear layer is cheap and recomputed in the backward pass: a quarter
    of a training step's memory for a few percent of its time.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.transposed = nn.ConvTranspose2d(dim, dim, kernel_size=2, stride=2)
        self.depthwise = nn.Conv2d(dim, dim, kernel_size=3, padding=1, groups=dim, bias=False)
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.transposed.weight.permute(2, 3, 1, 0).flatten(0, 2)
        bias = cast(Tensor, self.transposed.bias)
        x = F.linear(x, weight, bias.repeat(4))
        # Also where a compiler would choose what to recompute: it keeps what the convolution reads and gives.
        if torch.is_grad_enabled() and x.requires_grad:
            return cast(Tensor, checkpoint(self._finish, x, use_reentrant=False, preserve_rng_state=False))
        return self._finish(x)

    def _finish(self, x: Tensor) -> Tensor:
        # [B, h, w, (row, column, D)] to [B, (h, row), (w, column), D].
        x = F.gelu(x).unflatten(3, (2, 2, -1)).transpose(2, 3).flatten(3, 4).flatten(1, 2)
        # The detour gives the weight's gradient the weight's strides, which DDP's buckets want.
        weight = self.depthwise.weight.flatten(1).unflatten(1, (1, 3, 3))
        x = F.conv2d(x.permute(0, 3, 1, 2), weight, padding=1, groups=len(weight))
        return self.norm(x.permute(0, 2, 3, 1))
