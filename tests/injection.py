"""A callback that injects faults into a training run."""

import multiprocessing
from collections.abc import Sequence

import lightning
from torch import Tensor


class Inject(lightning.Callback):
    """Injects a fault at given steps.

    Args:
        what: "loss" (NaN), "gradient" (infinite) or "kill" (SIGKILL to a data worker).
        steps: the optimizer steps, from 1.
    """

    def __init__(self, what: str, steps: Sequence[int]):
        self.what, self.steps = what, steps

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if trainer.global_step + 1 not in self.steps or batch_idx % trainer.accumulate_grad_batches:
            return
        if self.what == "kill":
            multiprocessing.active_children()[0].kill()
        if self.what == "loss":
            loss = pl_module.loss.forward

            def once(*arguments) -> list[dict[str, Tensor]]:
                pl_module.loss.forward = loss
                terms = loss(*arguments)
                terms[-1]["dice"] = terms[-1]["dice"] * float("nan")
                return terms

            pl_module.loss.forward = once

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        if self.what == "gradient" and trainer.global_step + 1 in self.steps:
            pl_module.network.class_head.weight.grad[0, 0] = float("inf")
