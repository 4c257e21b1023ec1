"""Low-rank adaptation (LoRA, arXiv 2106.09685): small trained weights beside frozen ones."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eomt.errors import InputError

_A, _B = ".lora_a", ".lora_b"


class LoRALinear(nn.Linear):
    """Linear layer with the weight W + (alpha / rank) B A; W and its bias keep their names.

    Args:
        layer: the layer whose weight and bias are used.
        rank: r of A [r, in] and B [out, r]; at least 1.
        alpha: the scale of the change, times the rank.
        generator: the generator of A's initial values, uniform as in PyTorch's linear layers; B starts from 0.
    """

    def __init__(self, layer: nn.Linear, rank: int, alpha: float, generator: torch.Generator | None = None):
        super().__init__(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
        self.weight, self.bias = layer.weight, layer.bias
        self.scale = alpha / rank
        self.lora_a = nn.Parameter(layer.weight.new_empty(rank, layer.in_features))
        self.lora_b = nn.Parameter(layer.weight.new_zeros(layer.out_features, rank))
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5), generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] to [..., out]."""
        return super().forward(x) + self.change(x)

    def change(self, x: Tensor) -> Tensor:
        """The output that A and B add to the layer's own."""
        return F.linear(F.linear(x, self.lora_a), self.lora_b) * self.scale


def add_lora(blocks: nn.ModuleList, rank: int, alpha: float, seed: int) -> None:
    """Replace each linear layer of the blocks (attention's and MLP's) by a `LoRALinear`, in place.

    Args:
        blocks: a ViT's blocks.
        rank, alpha: see `LoRALinear`.
        seed: the seed of the new weights, which are the same on every rank.
    """
    generator = torch.Generator().manual_seed(seed)
    for block in blocks:
        layers = [(name, layer) for name, layer in block.named_modules() if isinstance(layer, nn.Linear)]
        for name, layer in layers:
            parent, _, own = name.rpartition(".")
            setattr(block.get_submodule(parent), own, LoRALinear(layer, rank, alpha, generator))


def merged(state: Mapping[str, Tensor], lora: Mapping | None) -> dict[str, Tensor]:
    """Merge A and B into the weights W, under their plain names.

    Args:
        state: the state dict of a network with or without `LoRALinear`s.
        lora: the `rank` and `alpha` that it was trained with.

    Raises:
        InputError: if `state` holds A and B, but `lora` no such numbers, or they do not fit.
    """
    plain = {name: value for name, value in state.items() if not name.endswith((_A, _B))}
    numbers = lora or {}
    for name in (name for name in state if name.endswith(_A)):
        layer = name.removesuffix(_A)
        try:
            a, b, weight = state[name], state[layer + _B], state[f"{layer}.weight"]
            if not (a.ndim == b.ndim == 2 and (len(b), a.shape[1]) == weight.shape):
                # Small A and B could make a product of any size.
                raise ValueError(f"B A is {[*b.shape[:1], *a.shape[1:]]}, the weight {list(weight.shape)}")
            # In float64: the merged weight is rounded once.
            change = b.double() @ a.double() * (float(numbers["alpha"]) / int(numbers["rank"]))
            plain[f"{layer}.weight"] = (weight.double() + change).to(weight.dtype)
        except (KeyError, TypeError, ValueError, RuntimeError, ZeroDivisionError) as error:
            raise InputError(f"the LoRA weights of {layer} cannot be merged ({str(error)[:80]})") from None
    return plain
