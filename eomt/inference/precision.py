"""Mixed precision without casting the same weights at every call."""

from __future__ import annotations

import copy
from itertools import chain

import torch
from torch import nn

from eomt.model.eomt import EoMT

PRECISIONS = {"32": None, "bf16": torch.bfloat16, "16": torch.float16}
"""The type that autocast computes in, by the name of a precision; None is no autocast."""

_CAST_BY_AUTOCAST = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)


def with_cast_weights(network: EoMT, dtype: torch.dtype) -> EoMT:
    """Cast the weights once that autocast would cast at every call: those of linear layers and convolutions.

    Norms, embeddings, LayerScale and residuals stay in float32, as autocast has them: under autocast in `dtype` the
    outputs are bit-equal to those of `network`, which a network wholly in half precision would not give.

    Args:
        network: a network in float32, on its device; it stays as it is.
        dtype: bfloat16 or float16.

    Returns:
        A network for inference under autocast; it shares all tensors that are not cast with `network`.
    """
    tensors = {id(tensor): tensor for tensor in chain(network.parameters(), network.buffers())}
    for layer in network.modules():
        for weight in layer.parameters(recurse=False) if isinstance(layer, _CAST_BY_AUTOCAST) else ():
            if weight.dtype == torch.float32:  # autocast leaves float64 alone
                tensors[id(weight)] = nn.Parameter(weight.detach().to(dtype), requires_grad=False)
    # A copy of the modules alone: their tensors are found in the memo.
    return copy.deepcopy(network, tensors)
