"""One interface to timm's plain Vision Transformers.

timm's `VisionTransformer` (DINOv2: learned position embedding) and `Eva` (DINOv3: rotary position embedding) both
embed an image into [prefix, patch] tokens and run a list of blocks on them.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from pathlib import Path
from types import MethodType
from typing import Any, cast

import timm
import torch
import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import Mlp, apply_rot_embed_cat, resample_abs_pos_embed
from timm.models import Eva, VisionTransformer
from timm.models.eva import EvaBlock
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from eomt.errors import InputError
from eomt.model.lora import LoRALinear

log = logging.getLogger("eomt")

OPTIONS = frozenset().union(*(inspect.signature(vit.__init__).parameters for vit in (VisionTransformer, Eva)))
OPTIONS -= {"self", "device", "dtype"}
"""Arguments of timm's models. Its factory would take more, such as a file to unpickle or a folder to write to; and on a
device of its own, a network of which only the shapes are wanted would take memory."""


class Backbone(nn.Module):
    """A timm ViT that runs block by block.

    Args:
        name: a timm model name, such as `vit_large_patch14_reg4_dinov2` or `vit_large_patch16_dinov3_qkvb`.
        image_size: (height, width) of the images it trains on; multiples of the patch size. Other sizes
            work too: the position embedding is then resampled on the fly (bicubic, as timm does).
        patch_size: the side of a patch in pixels.
        options: further arguments of timm's model, such as `embed_dim` or `depth`.

    Attributes:
        crop_position: the position embedding of images smaller than `image_size`: False resamples it to their grid,
            True crops it, as for the top left part of an image of `image_size`.

    Raises:
        InputError: if timm does not know the name, the model is not a plain ViT, or the image size does
            not fit the patch size.
    """

    vit: Any  # VisionTransformer | Eva, whose attributes timm types as whatever a module may hold
    native_rope: Tensor

    def __init__(
        self,
        name: str,
        image_size: tuple[int, int],
        patch_size: int = 16,
        options: Mapping | None = None,
    ):
        super().__init__()
        for key in options or {}:
            if key not in OPTIONS:
                raise InputError(f"model.backbone_options: {key} is no option of timm's Vision Transformers")
        check_image_size(image_size, patch_size)
        self.name = name
        self.options = {"img_size": image_size, "patch_size": patch_size, "num_classes": 0, **(options or {})}
        self.vit = _create(name, self.options)
        _check_supported(name, self.vit)
        self.vit.attn_pool = None  # a classifier's, as of SigLIP: nothing here would train it
        for block in self.vit.blocks:
            # A method of the block itself: FSDP2 gathers a block's weights around the block's own methods.
            block.run = MethodType(_run, block)
        self.native_grid = (image_size[0] // patch_size, image_size[1] // patch_size)
        self.patch_size = patch_size
        self.num_prefix_tokens = self.vit.num_prefix_tokens
        self.embed_dim = self.vit.embed_dim
        self.crop_position = False
        self._is_rotary = isinstance(self.vit, Eva)
        # Made once: timm would make it on the CPU at every call, and a GPU's copy waits, and is in no CUDA graph.
        rope = self.vit.rope.get_embed(self.native_grid) if self._is_rotary else None
        self.register_buffer("native_rope", rope, persistent=False)

    @property
    def blocks(self) -> nn.ModuleList:
        return self.vit.blocks

    @property
    def norm(self) -> nn.Module:
        return self.vit.norm

    def embed(self, images: Tensor) -> Tensor:
        """Embed images as tokens.

        Args:
            images: normalised [B, 3, H, W], H and W multiples of the patch size.

        Returns:
            [B, prefix + (H/patch)*(W/patch), D]; the prefix is the class token and the registers.
        """
        vit = self.vit
        patches = vit.patch_embed.proj(images)
        grid = (patches.shape[-2], patches.shape[-1])
        patches = vit.patch_embed.norm(patches.flatten(2).transpose(1, 2))
        prefix = [t.expand(images.shape[0], -1, -1) for t in (vit.cls_token, vit.reg_token) if t is not None]
        if vit.pos_embed is None:
            tokens = torch.cat([*prefix, patches], dim=1)
        elif vit.no_embed_class:
            tokens = torch.cat([*prefix, patches + self._position_embedding(grid, 0)], dim=1)
        else:
            tokens = torch.cat([*prefix, patches], dim=1) + self._position_embedding(grid, self.num_prefix_tokens)
        return vit.norm_pre(tokens)

    def rotary_embedding(self, grid: tuple[int, int]) -> Tensor | None:
        """The rotary embedding of a grid of patches, [grid_h * grid_w, ...], or None where there is none."""
        if not self._is_rotary:
            return None
        random = self.training and getattr(self.vit.rope, "aug_active", False)
        # timm keeps at least float32: what was rounded to half, or was made in float32 for float64, is made anew.
        made = not random and self.native_rope.dtype == torch.float32
        if grid == self.native_grid and made:
            return self.native_rope
        if self._crops(grid):
            whole = self.native_rope if made else self.vit.rope.get_embed(self.native_grid)
            return _top_left(whole[None], self.native_grid, grid)[0]
        return self.vit.rope.get_embed(grid)

    def run_block(self, index: int, tokens: Tensor, rope: Tensor | None, mask: Tensor | None = None) -> Tensor:
        """Run one block.

        Args:
            index: 0..N-1.
            tokens: [B, T, D]. Patch tokens come last; tokens before them are not rotated.
            rope: the result of `rotary_embedding`.
            mask: bool [B, R, T], or None. The first R tokens attend only where it is True; the others to all.
        """
        block: Any = self.blocks[index]
        return block.run(tokens, rope, mask)

    def load_pretrained(self, source: bool | str) -> None:
        """Load pretrained weights; patch and position embeddings of another size are resampled by timm.

        The patch embedding is changed so that it takes pixels by ImageNet's statistics, whatever it was trained on.

        Args:
            source: True for timm's own weights of this model, from its cache or by download; or the path
                of a file with weights in timm's format.

        Raises:
            InputError: if the weights cannot be loaded or do not fit.
        """
        overlay = None
        if source is not True:
            if not Path(str(source)).is_file():
                raise InputError(f"model.pretrained={source}: no such file")
            overlay = {"file": str(source), "hf_hub_id": None, "url": ""}
        try:
            vit: Any = timm.create_model(self.name, pretrained=True, pretrained_cfg_overlay=overlay, **self.options)
        except Exception as error:
            # Hub, file and timm fail in many ways.
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            where = "timm" if source is True else source
            raise InputError(
                f"pretrained weights of {self.name} from {where} cannot be had ({reason}): give a file by "
                "model.pretrained=FILE, fetch them with internet by this command with prefetch=true, "
                "or start from random weights by model.pretrained=false"
            ) from error
        vit.attn_pool = None
        _fold_statistics(vit)
        self.vit.load_state_dict(vit.state_dict())

    def _position_embedding(self, grid: tuple[int, int], num_prefix_tokens: int) -> Tensor:
        if grid == self.native_grid:
            return self.vit.pos_embed
        if self._crops(grid):
            prefix, patches = self.vit.pos_embed.tensor_split([num_prefix_tokens], dim=1)
            return torch.cat((prefix, _top_left(patches, self.native_grid, grid)), dim=1)
        return resample_abs_pos_embed(  # pyright: ignore[reportCallIssue]: torch.fx.wrap's type
            self.vit.pos_embed, list(grid), list(self.native_grid), num_prefix_tokens=num_prefix_tokens
        )

    def _crops(self, grid: tuple[int, int]) -> bool:
        fits = grid[0] <= self.native_grid[0] and grid[1] <= self.native_grid[1]
        return self.crop_position and fits and grid != self.native_grid


def _run(block: Any, tokens: Tensor, rope: Tensor | None, mask: Tensor | None) -> Tensor:
    unrotated = tokens.shape[1] - rope.shape[-2] if rope is not None else tokens.shape[1]
    attended = attention(block.attn, block.norm1(tokens), rope, unrotated, mask)
    if isinstance(block, EvaBlock):
        tokens = tokens + block.drop_path1(_scaled(block.gamma_1, attended))
        return tokens + block.drop_path2(_scaled(block.gamma_2, _mlp(block.mlp, block.norm2(tokens))))
    tokens = tokens + block.drop_path1(block.ls1(attended))
    return tokens + block.drop_path2(block.ls2(_mlp(block.mlp, block.norm2(tokens))))


def attention(attn: Any, tokens: Tensor, rope: Tensor | None, num_unrotated: int, mask: Tensor | None) -> Tensor:
    """Self-attention with timm's weights, in two calls where only the first tokens are masked.

    Fused attention kernels are slow with a mask, and only the first R rows need one. The result is that of one call
    with a [T, T] mask that is open in the other rows.

    Args:
        attn: timm's `Attention` or `EvaAttention`.
        tokens: [B, T, D], normalised.
        rope: the rotary embedding of the last T - num_unrotated tokens, or None.
        num_unrotated: the number of leading tokens that are not rotated.
        mask: bool [B, R, T], or None; True where the first R tokens may attend.
    """
    batch, count, _ = tokens.shape
    if getattr(attn, "q_bias", None) is None:
        qkv = attn.qkv(tokens)
    else:
        qkv = F.linear(tokens, attn.qkv.weight, torch.cat((attn.q_bias, attn.k_bias, attn.v_bias)))
        if isinstance(attn.qkv, LoRALinear):
            qkv = qkv + attn.qkv.change(tokens)
    q, k, v = qkv.reshape(batch, count, 3, attn.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    q, k = attn.q_norm(q), attn.k_norm(k)
    if rope is not None:
        q, k = (_rotate(x, rope, num_unrotated, attn.rotate_half) for x in (q, k))
        q, k = q.type_as(v), k.type_as(v)
    if mask is None:
        out = F.scaled_dot_product_attention(q, k, v)
    else:
        rows = mask.shape[1]
        masked = F.scaled_dot_product_attention(q[:, :, :rows], k, v, attn_mask=mask[:, None])
        open_rows = F.scaled_dot_product_attention(q[:, :, rows:], k, v)
        out = torch.cat((masked, open_rows), dim=2)
    return attn.proj(attn.norm(out.transpose(1, 2).flatten(2)))


def check_image_size(image_size: tuple[int, int], patch_size: int) -> None:
    """Raise InputError unless both sides are positive multiples of the patch size."""
    height, width = image_size
    if height < patch_size or width < patch_size or height % patch_size or width % patch_size:
        lower, upper = (max(1, height // patch_size + k) * patch_size for k in (0, 1))
        raise InputError(
            f"data.image_size={[height, width]} is no multiple of the patch size {patch_size}: "
            f"choose for example {lower} or {upper}"
        )


def _top_left(embedding: Tensor, whole: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """Crop an embedding [1, whole_h * whole_w, D] to its first rows and columns, [1, grid_h * grid_w, D]."""
    return embedding.unflatten(1, whole)[:, : grid[0], : grid[1]].flatten(1, 2)


def _mlp(mlp: nn.Module, x: Tensor) -> Tensor:
    """timm's MLP, its activations recomputed in the backward pass: a tenth of a training step's memory for a hundredth
    of its time. PyTorch stops after the activations; the second layer is not recomputed."""
    # A compiler chooses itself what to recompute.
    if not (isinstance(mlp, Mlp) and torch.is_grad_enabled()) or torch.compiler.is_compiling():
        return mlp(x)

    def rest(hidden: Tensor) -> Tensor:
        return mlp.drop2(mlp.fc2(mlp.norm(mlp.drop1(mlp.act(hidden)))))

    return cast(Tensor, checkpoint(rest, mlp.fc1(x), use_reentrant=False, preserve_rng_state=mlp.drop1.p > 0))


def _rotate(x: Tensor, rope: Tensor, num_unrotated: int, half: bool) -> Tensor:
    return torch.cat((x[:, :, :num_unrotated], apply_rot_embed_cat(x[:, :, num_unrotated:], rope, half=half)), dim=2)


def _fold_statistics(vit: Any) -> None:
    """Fold the difference between a model's own pixel mean and deviation and ImageNet's into its patch embedding."""
    proj, given = vit.patch_embed.proj, vit.pretrained_cfg
    if tuple(given["mean"]) == IMAGENET_DEFAULT_MEAN and tuple(given["std"]) == IMAGENET_DEFAULT_STD:
        return
    if proj.bias is None:
        told = (given["architecture"], *([round(value, 3) for value in given[key]] for key in ("mean", "std")))
        log.warning("note: %s was trained on pixels by mean %s and deviation %s; it gets them by ImageNet's", *told)
        return
    mean, std, own_mean, own_std = (
        torch.tensor(values, dtype=torch.float64)[:, None, None]
        for values in (given["mean"], given["std"], IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    )
    weight = proj.weight.detach().double()
    with torch.no_grad():
        proj.bias += (weight * ((own_mean - mean) / std)).sum((1, 2, 3)).to(proj.bias)
        proj.weight.copy_(weight * (own_std / std))


def _scaled(gamma: Tensor | None, x: Tensor) -> Tensor:
    return x if gamma is None else gamma * x


_NO_VIT = (
    "model.backbone={} is not a plain ViT with a final norm that EoMT can extend: "
    "take a DINOv2 or DINOv3 ViT such as vit_large_patch14_reg4_dinov2"
)


def _create(name: str, options: dict) -> nn.Module:
    if not timm.is_model(name):
        near = ", ".join(timm.list_models(f"*{name.split('_patch')[0]}*dinov*")[:6]) or "timm.list_models()"
        raise InputError(f"model.backbone={name} is no model that timm knows; some that it knows: {near}")
    try:
        return timm.create_model(name, **options)
    except (TypeError, ValueError, ArithmeticError, AssertionError, RuntimeError) as error:
        if "unexpected keyword argument 'img_size'" in str(error):
            raise InputError(_NO_VIT.format(name)) from error
        # timm and PyTorch name sizes that do not fit each other in many ways.
        raise InputError(f"model.backbone={name} with {options}: {error}") from error


def _check_supported(name: str, vit: Any) -> None:
    known = isinstance(vit, VisionTransformer | Eva)
    block = next(iter(getattr(vit, "blocks", ())), None) if known else None
    attn = getattr(block, "attn", None)  # blocks that run in parallel have several
    plain = attn is not None and getattr(attn, "qkv", None) is not None and getattr(attn, "gate", None) is None
    if not plain or isinstance(vit.norm, nn.Identity) or getattr(vit, "rope_mixed", False):
        raise InputError(_NO_VIT.format(name))
