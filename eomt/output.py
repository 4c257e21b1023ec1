"""What the network predicts, apart from the network: post-processing needs no model code."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Output(NamedTuple):
    """One prediction.

    Attributes:
        mask_logits: [B, Q, H/s, W/s], s = 4 for patch 16; a pixel belongs to a query where the logit is > 0.
        class_logits: [B, Q, C+1], the last entry stands for "no object".
    """

    mask_logits: Tensor
    class_logits: Tensor
