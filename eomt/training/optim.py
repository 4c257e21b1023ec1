"""Optimisation recipe: layer-wise learning-rate decay and a warm-up in two stages."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import lightning
import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from eomt.errors import InputError
from eomt.model.eomt import EoMT


@dataclass(frozen=True)
class Recipe:
    """AdamW with layer-wise decay of the learning rate and a warm-up in two stages.

    Args:
        lr: learning rate of the heads and of the last block.
        weight_decay: AdamW's, on all parameters.
        layer_decay: see `parameter_groups`.
        decay_masked_blocks: see `parameter_groups`.
        warmup_steps: optimizer steps of the (head, backbone) warm-up.
        schedule_power: the exponent of the learning-rate polynomial.
    """

    lr: float = 1e-4
    weight_decay: float = 0.05
    layer_decay: float = 0.8
    decay_masked_blocks: bool = True
    warmup_steps: Sequence[int] = (500, 1000)
    schedule_power: float = 0.9

    def build(self, network: EoMT, total_steps: int, fused: bool = True) -> tuple[Optimizer, LambdaLR]:
        """Make the optimizer and the schedule, which is stepped after each optimizer step.

        Args:
            network: the network, its frozen parameters marked.
            total_steps: optimizer steps of the run.
            fused: update all parameters in one kernel.
        """
        groups = parameter_groups(network, self.lr, self.layer_decay, self.decay_masked_blocks)
        stages = [group["stage"] for group in groups]
        optimizer = self.optimizer(groups, fused)
        multipliers = [two_stage_warmup(s, self.warmup_steps, total_steps, self.schedule_power) for s in stages]
        return optimizer, LambdaLR(optimizer, multipliers)

    def optimizer(self, groups: list[dict], fused: bool) -> Optimizer:
        """Make the optimizer of some parameter groups: what a subclass replaces."""
        optimizer = AdamW(groups, weight_decay=self.weight_decay, fused=fused)
        optimizer.register_load_state_dict_pre_hook(moments_alone)
        return optimizer


def parameter_groups(
    network: EoMT, lr: float, layer_decay: float = 0.8, decay_masked_blocks: bool = True
) -> list[dict]:
    """Group the parameters by learning rate and schedule.

    Block i of N learns at `lr * layer_decay ** (N - 1 - i)`, the patch, position, class and register
    embeddings at block 0's rate, the final norm, queries and heads at the full rate.

    Args:
        network: the network; frozen parameters are left out.
        lr: the full rate.
        layer_decay: the factor from a block to the one before it.
        decay_masked_blocks: False gives the last L2 blocks, which the queries pass through, the full rate; the
            others keep theirs.

    Returns:
        Groups for a torch optimizer: `params`, `lr`, `name`, and `stage`, which is "head" or "backbone".
    """
    last = len(network.backbone.blocks) - 1
    groups: dict[tuple[float, str], dict] = {}
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        stage = "backbone" if name.startswith("backbone.") else "head"
        # Embeddings take block 0's rate; the final norm and the heads, the last block's.
        depth = 0 if stage == "backbone" and not name.startswith("backbone.vit.norm.") else last
        if block := re.match(r"backbone\.vit\.blocks\.(\d+)\.", name):
            masked = int(block[1]) > last - network.num_masked_blocks
            depth = last if masked and not decay_masked_blocks else int(block[1])
        rate = lr * layer_decay ** (last - depth)
        label = f"{stage} {rate:.3g}"
        group = groups.setdefault((rate, stage), {"params": [], "lr": rate, "name": label, "stage": stage})
        group["params"].append(parameter)
    return list(groups.values())


def moments_alone(optimizer: Optimizer, saved: Mapping[str, Any]) -> dict[str, Any]:
    """Take from a checkpoint an optimizer's moments, laid out as its parameters; groups and options stay its own.

    Fused kernels do not compare shapes: they would write behind moments that are smaller than their parameters.

    Raises:
        ValueError: if these are the moments of other parameters.
    """
    groups = [group["params"] for group in optimizer.param_groups]
    numbers = [group["params"] for group in saved["param_groups"]]
    if [*map(len, groups)] != [*map(len, numbers)]:
        raise ValueError(f"its optimizer has {[*map(len, numbers)]} parameters, not {[*map(len, groups)]}")
    state: dict[int, dict[str, Tensor]] = {}
    for parameter, number in zip(chain(*groups), chain(*numbers), strict=True):
        for key, value in saved["state"].get(number, {}).items():
            shape = torch.Size() if key == "step" else parameter.shape
            if not isinstance(value, Tensor) or value.shape != shape:
                raise ValueError(f"its optimizer has {key} that is no tensor of {list(shape)}")
            value = value.detach()
            as_it_lies = key == "step" or value.stride() == parameter.stride()
            state.setdefault(number, {})[key] = value if as_it_lies else torch.empty_like(parameter).copy_(value)
    own = optimizer.state_dict()["param_groups"]
    return {"state": state, "param_groups": [{**g, "params": n} for g, n in zip(own, numbers, strict=True)]}


def freeze_backbone(network: EoMT, frozen: bool | int) -> None:
    """Freeze parameters of the backbone: they have no gradient and no optimizer state.

    Args:
        network: the network, changed in place.
        frozen: True, all of the backbone: embeddings, all blocks and the final norm, so that queries and heads alone
            learn. A number K > 0, the embeddings and the first K blocks; of N blocks, the queries
            pass through the last L2, which K = N - L2 leaves to learn. False or 0, nothing.

    Raises:
        InputError: if there are fewer blocks.
    """
    backbone = network.backbone
    if frozen > len(backbone.blocks):
        raise InputError(f"model.freeze_backbone={frozen}: the backbone has {len(backbone.blocks)} blocks")
    if frozen:
        backbone.requires_grad_(False)
        for module in [] if frozen is True else [*backbone.blocks[frozen:], backbone.norm]:
            module.requires_grad_(True)


def total_steps(trainer: lightning.Trainer) -> int:
    """Return the number of optimizer steps of the whole run.

    Args:
        trainer: the trainer, with a `SegmentationData`.

    Raises:
        InputError: if the run has no end.
    """
    ends = [trainer.max_steps] if trainer.max_steps != -1 else []
    if trainer.max_epochs != -1:
        # Not `estimated_stepping_batches`: it makes the loader before a checkpoint can restore its position.
        data = trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue] Lightning sets it undeclared
        per_epoch = math.ceil(data.train_batches() / trainer.accumulate_grad_batches)
        ends.append(per_epoch * trainer.max_epochs)
    if not ends:
        raise InputError(
            "the run has no end that its schedule could lead to: set trainer.max_epochs or trainer.max_steps"
        )
    return min(ends)


def two_stage_warmup(
    stage: str, warmup_steps: Sequence[int], total_steps: int, power: float = 0.9
) -> Callable[[int], float]:
    """Return the learning-rate multiplier of a stage, as a function of the optimizer steps done.

    The head warms up linearly over the first number of steps. The backbone stays at 0 for those, then
    warms up over the second number. Each then falls as `(1 - t / remaining) ** power` to 0 at the end.

    Args:
        stage: "head" or "backbone".
        warmup_steps: (head, backbone).
        total_steps: optimizer steps of the run.
        power: the exponent of the polynomial decay.
    """
    wait, length = (0, warmup_steps[0]) if stage == "head" else tuple(warmup_steps)

    def multiplier(step: int) -> float:
        if step < wait:
            return 0.0
        if step < wait + length:
            return (step - wait) / length
        remaining = max(1, total_steps - wait - length)
        return max(0.0, 1 - (step - wait - length) / remaining) ** power

    return multiplier
