"""Summary of a training run, which its log starts with."""

from __future__ import annotations

from typing import Any


def summary(module: Any) -> str:
    """Describe the run of an `EoMTModule` in a few lines: the task, the batch, the length, the annealing windows."""
    trainer, data, network = module.trainer, module.data, module.network
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
    if options := network.spec["backbone_options"]:
        sizes = ", ".join(f"{key} {value}" for key, value in options.items())
        lines.insert(1, f"backbone {network.spec['backbone']} with {sizes} (model.backbone_options)")
    windows = module.windows
    lines += [
        f"attention mask {k + 1} of {len(windows)}: on until step {start}, off from step {end}"
        for k, (start, end) in enumerate(windows)
    ] or ["attention masks: off"]
    late = [k + 1 for k, (_, end) in enumerate(windows) if end > module.total_steps]
    if late:
        lines.append(f"note: the run ends before attention masks {late} are off; its score is mask-free")
    warmup = list(module.recipe.warmup_steps)
    if sum(warmup) >= module.total_steps:
        lines.append(
            f"note: the warm-up, optim.warmup_steps={warmup}, takes {sum(warmup)} steps, and the run has "
            f"{module.total_steps}: the backbone never learns at its full rate; fewer may do, such as "
            f"optim.warmup_steps=[{module.total_steps // 20},{module.total_steps // 10}]"
        )
    scored, images = data.validated()
    if scored < images:
        limits = {"data.max_images": data.max_images, "trainer.limit_val_batches": trainer.limit_val_batches}
        keys = ", ".join(f"{key}={value}" for key, value in limits.items() if str(value) not in ("None", "1.0"))
        lines.append(f"note: validations score {scored} of {images} images ({keys})")
    return "\n".join(lines)
