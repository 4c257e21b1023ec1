"""Progress of a run: a summary before its first step, the progress bar, an early end if the score no longer rises."""

from __future__ import annotations

from typing import Any, Literal

import lightning
from lightning.pytorch.callbacks import EarlyStopping, TQDMProgressBar


def describe(module: lightning.LightningModule) -> str:
    """Describe a run in a few lines: the task, the batch, the length and the annealing windows.

    Args:
        module: an `EoMTModule`, attached to its trainer and set up.
    """
    trainer, data, network = module.trainer, module.trainer.datamodule, module.network
    accumulated = trainer.accumulate_grad_batches
    batch = data.batch_size * trainer.world_size * accumulated
    millions = sum(p.numel() for p in module.parameters()) / 1e6
    learning = sum(p.numel() for p in module.parameters() if p.requires_grad) / 1e6
    part = "" if learning == millions else f", of which {learning:.1f} M learn"
    height, width = network.image_size
    lines = [
        f"{module.task.kind} segmentation, {len(module.classes)} classes, {network.num_queries} queries,"
        f" {millions:.1f} M parameters{part}, image size {height}x{width}, precision {trainer.precision}",
        f"effective batch {batch} = {data.batch_size} per device x {trainer.world_size} devices x "
        f"{accumulated} accumulated; {module.total_steps} optimizer steps",
    ]
    windows = module.windows
    lines += [
        f"attention mask {k + 1} of {len(windows)}: on until step {start}, off from step {end}"
        for k, (start, end) in enumerate(windows)
    ] or ["attention masks: off"]
    late = [k + 1 for k, (_, end) in enumerate(windows) if end > module.total_steps]
    if late:
        lines.append(f"note: the run ends before attention masks {late} are off; its score is mask-free")
    if sum(module.recipe.warmup_steps) >= module.total_steps:
        lines.append(f"note: the run ends before its warm-up, optim.warmup_steps={list(module.recipe.warmup_steps)}")
    scored, images = data.validated()
    if scored < images:
        limits = {"data.max_images": data.max_images, "trainer.limit_val_batches": trainer.limit_val_batches}
        keys = ", ".join(f"{key}={value}" for key, value in limits.items() if str(value) not in ("None", "1.0"))
        lines.append(f"note: validations score {scored} of {images} images ({keys})")
    return "\n".join(lines)


class Progress(TQDMProgressBar):
    """Shows loss, learning rates (heads/backbone), mask probability per block, and the score so far."""

    def __init__(self, refresh_rate: int = 10):
        super().__init__(refresh_rate=refresh_rate, leave=True)

    @property
    def total_train_batches(self) -> int | float:
        """Batches of an epoch. Lightning mistakes the steps that are left for batches, accumulated or not."""
        return self.trainer.num_training_batches

    def get_metrics(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> dict:
        logged = super().get_metrics(trainer, pl_module)
        shown = {}
        if "train/loss" in logged:
            shown["loss"] = f"{logged['train/loss']:.2f}"
            shown["lr"] = f"{logged['lr/head']:.1e}/{logged['lr/backbone']:.1e}"
            shown["masks"] = " ".join(f"{p:.2f}" for p in pl_module.probabilities)
        if pl_module.task.monitor in logged:
            shown[pl_module.task.monitor] = f"{logged[pl_module.task.monitor]:.1f}"
        return shown


class EarlyStop(EarlyStopping):
    """Ends a run after `patience` validations without a better score.

    Args:
        monitor: the score.
        patience: validations, at least 1; a resumed run may be given more.
        min_delta: the least gain that counts, at least 0.
        mode: "max" where higher is better, "min" where lower is.
    """

    def __init__(self, monitor: str, patience: int, min_delta: float = 0.0, mode: Literal["max", "min"] = "max"):
        # After each validation; Lightning's default depends on how often there is one.
        options = {"check_finite": False, "check_on_train_epoch_end": False}
        super().__init__(monitor, min_delta, patience, verbose=True, mode=mode, log_rank_zero_only=True, **options)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume counting with the patience of this run, not that of the checkpoint."""
        super().load_state_dict({**state_dict, "patience": self.patience})
