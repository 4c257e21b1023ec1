"""Weights, gradients and optimizer state shared out among ranks (FSDP2), for networks that are too large for one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from eomt.errors import InputError
from eomt.model.eomt import EoMT
from eomt.weights.checkpoint import read_checkpoint


def shard(network: EoMT, mesh: DeviceMesh) -> None:
    """Share a network's weights out, in place: each block is gathered for as long as it computes; embeddings, norm,
    queries and heads from the beginning of a step to its end.

    The weights must be the same on all ranks. A network that is shared out already stays as it is.
    """
    if isinstance(network, FSDPModule):
        return
    run_block = network.backbone.run_block
    for index, block in enumerate(network.backbone.blocks):
        fully_shard(block, mesh=mesh)

        def run(*arguments: Any, index: int = index) -> Tensor:
            return run_block(index, *arguments)

        # Blocks are run from outside, never called: what gathers their weights hangs on this in place of `forward`.
        block.run = run
        register_fsdp_forward_method(block, "run")
    network.backbone.run_block = lambda index, *arguments: network.backbone.blocks[index].run(*arguments)
    fully_shard(network, mesh=mesh)


def keep_gathered(network: EoMT, keep: bool) -> None:
    """Whether weights stay gathered from their next use on, on every rank alike, or as `shard` says.

    Ranks whose images make more passes through the network than others' must not gather in each of them: they would
    wait for each other. In return each rank holds all weights.
    """
    if not isinstance(network, FSDPModule):
        return
    network.set_reshard_after_forward(not keep)
    if not keep:
        network.set_reshard_after_forward(False, recurse=False)
        reshard(network)


def reshard(module: nn.Module) -> None:
    """Let parameters be each rank's shares again, where they are gathered."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def gather(values: Mapping[str, Any], keep: bool) -> dict[str, Any]:
    """The whole of tensors that are shared out, on the host, and anything else as it is; nothing without `keep`.

    All ranks must call it. It goes from one to the next: no device holds more than one whole tensor beside its share.
    """
    gathered = {}
    for name, value in values.items():
        if isinstance(value, DTensor):
            value = value.detach().full_tensor()
            value = value.cpu() if keep else None
        if keep:
            gathered[name] = value
    return gathered


def part_like(value: Any, like: Tensor) -> Any:
    """A whole tensor shared out as `like`, if that is shared out and of its shape; otherwise as it is."""
    if not (isinstance(like, DTensor) and isinstance(value, Tensor) and value.shape == like.shape):
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


class ShardedStrategy(ModelParallelStrategy):
    """Lightning's FSDP2 over all ranks; the module's `configure_model` calls `shard`.

    Checkpoints are those of any other run, one file in the same form, with which any number of ranks goes on.

    Raises:
        InputError: if PyTorch is too old for it.
    """

    def __init__(self):
        if not hasattr(FSDPModule, "set_reshard_after_forward"):
            raise InputError(f"trainer.strategy=fsdp2 needs torch 2.8 or newer; here it is {torch.__version__}")
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Optimizer states are loaded by `load_optimizer_state_dict`, as those of other strategies."""
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The whole state on rank 0, nothing on the others; all ranks take part."""
        return gather(self.lightning_module.state_dict(), self.is_global_zero)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """As `lightning_module_state_dict`."""
        state = optimizer.state_dict()
        parts = {number: gather(values, self.is_global_zero) for number, values in state["state"].items()}
        return {**state, "state": parts} if self.is_global_zero else {}

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = True) -> dict[str, Any]:
        """Read a checkpoint, whose tensors stay in the file until a rank takes its share."""
        return read_checkpoint(checkpoint_path, mmap=True)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Take this rank's share of the weights."""
        own = self.lightning_module.state_dict()
        state = {name: part_like(value, own.get(name)) for name, value in checkpoint["state_dict"].items()}
        self.lightning_module.load_state_dict(state, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Take this rank's share of the optimizer's state, parameter by parameter in the groups' order."""
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            numbers = [number for group in saved["param_groups"] for number in group["params"]]
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            state = {
                number: {key: part_like(value, parameter) for key, value in saved["state"][number].items()}
                for number, parameter in zip(numbers, parameters, strict=True)
                if number in saved["state"]
            }
            optimizer.load_state_dict({**saved, "state": state})
