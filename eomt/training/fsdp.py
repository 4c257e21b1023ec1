"""Weights, gradients and optimizer state shared out among ranks (FSDP2), for networks too large for one device.

`trainer.strategy=fsdp2` takes both classes of this file. Checkpoints are those of any other run, one file, from which
any number of ranks resumes under any strategy.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor
from torch.distributed import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from eomt.training.module import EoMTModule
from eomt.weights.checkpoint import read_checkpoint


class ShardedModule(EoMTModule):
    """`EoMTModule` with sharded weights: each block is gathered for as long as it computes; embeddings, norm, queries
    and heads from the start of a step to its end.
    """

    def configure_model(self) -> None:
        if isinstance(self.network, FSDPModule):
            return  # a second call
        mesh = init_device_mesh(self.trainer.strategy.root_device.type, (self.trainer.world_size,))
        for block in self.network.backbone.blocks:
            fully_shard(block, mesh=mesh)
            register_fsdp_forward_method(block, "run")
        fully_shard(self.network, mesh=mesh)

    def on_validation_start(self) -> None:
        super().on_validation_start()
        assert isinstance(self.network, FSDPModule)
        # Ranks whose images make more passes through the network than others' must not gather weights in each of
        # them: they would wait for each other. In return each rank holds all weights.
        self.network.set_reshard_after_forward(False)

    def on_validation_end(self) -> None:
        super().on_validation_end()
        assert isinstance(self.network, FSDPModule)
        self.network.set_reshard_after_forward(True)
        self.network.set_reshard_after_forward(False, recurse=False)
        for part in self.network.modules():
            if isinstance(part, FSDPModule):
                part.reshard()


class ShardedStrategy(ModelParallelStrategy):
    """Lightning's FSDP2 strategy, resuming from whole checkpoints."""

    def __init__(self):
        super().__init__(save_distributed_checkpoint=False)

    @property
    def lightning_restore_optimizer(self) -> bool:
        """True: Lightning restores optimizers by `load_optimizer_state_dict`, as with other strategies."""
        return True

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = True) -> dict[str, Any]:
        """Read a checkpoint, whose tensors stay in the file until a rank takes its share."""
        return read_checkpoint(checkpoint_path, mmap=True)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Take this rank's share of the weights."""
        assert self.lightning_module is not None
        own = self.lightning_module.state_dict()
        state = {name: share_like(value, own.get(name)) for name, value in checkpoint["state_dict"].items()}
        self.lightning_module.load_state_dict(state, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Take this rank's share of the optimizer's state.

        Other strategies number parameters by their order in the groups, Lightning's saving here by their order in
        the network: common to both is the order within the groups.
        """
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            numbers = [number for group in saved["param_groups"] for number in group["params"]]
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            state = {
                number: {key: share_like(value, parameter) for key, value in saved["state"][number].items()}
                for number, parameter in zip(numbers, parameters, strict=True)
                if number in saved["state"]
            }
            optimizer.load_state_dict({**saved, "state": state})


def share_like(value: Any, like: Tensor | None) -> Any:
    """Return this rank's share of a whole tensor, sharded as `like`; other values are returned as they are."""
    if not (isinstance(like, DTensor) and isinstance(value, Tensor) and value.shape == like.shape):
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
