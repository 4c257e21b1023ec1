"""Summary of a run, printed before its first step."""

from __future__ import annotations

import lightning


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
    return "\n".join(lines)
