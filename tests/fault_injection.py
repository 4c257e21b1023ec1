"""Callbacks that inject faults and signals into a training run."""

import multiprocessing
import os
import signal
from collections.abc import Sequence

import lightning
from torch import Tensor


class Inject(lightning.Callback):
    """Injects a fault at given steps.

    Args:
        what: "loss" (NaN), "gradient" (infinite) or "kill" (SIGKILL to all data workers).
        steps: the optimizer steps, from 1.
    """

    def __init__(self, what: str, steps: Sequence[int]):
        self.what, self.steps = what, steps

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if trainer.global_step + 1 not in self.steps or batch_idx % trainer.accumulate_grad_batches:
            return
        if self.what == "kill":
            for worker in multiprocessing.active_children():
                worker.kill()
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


class StopAt(lightning.Callback):
    """Sends a signal to this process: in the middle of an optimizer step, or in the validation after it.

    Args:
        place: "step" or "validation".
        step: the optimizer step, from 1.
        number: the signal.
    """

    def __init__(self, place: str, step: int, number: int = signal.SIGUSR1):
        self.place, self.step, self.number = place, step, number

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if self.place == "step" and trainer.global_step == self.step - 1:
            os.kill(os.getpid(), self.number)

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0) -> None:
        if self.place == "validation" and trainer.global_step == self.step and batch_idx == 1:
            os.kill(os.getpid(), self.number)
