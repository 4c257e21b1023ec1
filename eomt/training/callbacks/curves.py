"""`curves.png`: how loss, rates and scores went."""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path

import lightning
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_only

from eomt.files import replacing

PANELS = (
    ("Loss", ("train/loss",)),
    ("Loss terms (sum over outputs)", ("train/loss_mask", "train/loss_dice", "train/loss_class")),
    ("Learning rate", ("lr/head", "lr/backbone")),
    ("Mask probability per block", ("mask_probability/",)),
    ("Gradient norm before clipping", ("train/gradient_norm",)),
    ("Validation", ("pq", "pq_things", "pq_stuff", "miou", "ap", "ap50")),
)


class CurvePlot(Callback):
    """Draws the run's CSV log after each validation.

    Args:
        folder: the run folder; the logs of a run and of its resumptions stand in `csv/version_*`.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    @rank_zero_only
    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        for logger in trainer.loggers:
            logger.save()
        series = read_logs(sorted(self.folder.glob("csv/version_*/metrics.csv"), key=_version))
        if series:
            plot(series, self.folder / "curves.png")


def read_logs(paths: list[Path]) -> dict[str, dict[int, float]]:
    """Join CSV logs to one series per quantity, step -> value.

    A later log takes the place of the earlier ones from its first step on.
    """
    series: dict[str, dict[int, float]] = defaultdict(dict)
    for path in paths:
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        if not rows:
            continue
        first = int(rows[0]["step"])
        for values in series.values():
            for step in [s for s in values if s >= first]:
                del values[step]
        for row in rows:
            for name, value in row.items():
                if value and name not in ("step", "epoch"):
                    series[name][int(row["step"])] = float(value)
    return series


def plot(series: dict[str, dict[int, float]], path: Path) -> None:
    """Draw the panels for which there is data."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = [(title, [n for n in series if _belongs(n, names)]) for title, names in PANELS]
    panels = [(title, names) for title, names in panels if names]
    if not panels:
        return
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(5 * columns, 3.2 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    for position, (title, names) in enumerate(panels):
        axes = figure.add_subplot(rows, columns, position + 1)
        for name in sorted(names):
            steps, values = zip(*sorted(series[name].items()), strict=True)
            marker = "." if len(steps) < 40 else None
            axes.plot(steps, values, label=name.split("/")[-1], linewidth=1.2, marker=marker)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("optimizer step", fontsize=8)
        axes.grid(alpha=0.3)
        axes.tick_params(labelsize=8)
        if title.startswith("Gradient"):
            axes.set_yscale("log")
        if len(names) > 1:
            axes.legend(fontsize=7)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=90)


def _belongs(name: str, patterns: tuple[str, ...]) -> bool:
    return any(name.startswith(p) if p.endswith("/") else name == p for p in patterns)


def _version(path: Path) -> int:
    return int(path.parent.name.removeprefix("version_"))
