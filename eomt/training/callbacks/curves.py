"""Curves of a run's loss, rates and scores: `curves.png`."""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_only

from eomt.files import replacing

Series = dict[str, dict[int, float]]
"""Optimizer step, counted from 0, to value, for each quantity."""

# Titles and the quantities below them, as regular expressions.
_PANELS = {
    "Loss": "train/loss",
    "Loss terms (sum over outputs)": "train/loss_.*",
    "Learning rate": "lr/.*",
    "Mask probability per block": "mask_probability/.*",
    "Gradient norm before clipping": "train/gradient_norm",
    "Validation": "pq|pq_things|pq_stuff|miou|ap|ap50",
}


class CurvePlot(Callback):
    """Drawing of the run's CSV logs after each validation.

    Args:
        folder: the run folder.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    @rank_zero_only
    def on_validation_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        if trainer.sanity_checking:
            return
        for logger in trainer.loggers:
            logger.save()
        plot(read_logs(self.folder), self.folder / "curves.png")


def read_logs(folder: str | Path) -> Series:
    """Read the CSV logs of a run and of its resumptions, `csv/version_N/metrics.csv`, as those of one run.

    A resumed run starts from a checkpoint, and does the later steps of the log before it again: its log takes the
    place of the earlier ones from its first step on. Of that step itself it may hold only the validation.

    Args:
        folder: the run folder.
    """
    series: Series = defaultdict(dict)
    paths = {path.parent.name.removeprefix("version_"): path for path in Path(folder).glob("csv/version_*/metrics.csv")}
    # A copy that somebody has made may be called version_0_old.
    for path in (paths[number] for number in sorted(filter(str.isdecimal, paths), key=int)):
        first = None
        for step, values in _rows(path):
            if first is None:
                first = step
                for earlier in series.values():
                    for later in [s for s in earlier if s > first]:
                        del earlier[later]
            for name, value in values.items():
                series[name][step] = value
    return {name: dict(sorted(values.items())) for name, values in series.items() if values}


def _rows(path: Path) -> Iterator[tuple[int, dict[str, float]]]:
    """Yield the step and the values of each row."""
    with path.open(newline="", errors="replace") as file:
        # A run that was killed, or a full disk, may have left half a line.
        for row in csv.DictReader(line for line in file if line.endswith("\n")):
            if None in row or None in row.values():
                continue
            try:
                values = {name: float(value) for name, value in row.items() if value and name not in ("step", "epoch")}
                yield int(row["step"]), values
            except (KeyError, ValueError):
                continue


def panels(series: Series) -> dict[str, Series]:
    """Divide series among the panels, by title; panels without any are left out."""
    parts = {
        title: {name: series[name] for name in sorted(series) if re.fullmatch(words, name)}
        for title, words in _PANELS.items()
    }
    return {title: lines for title, lines in parts.items() if lines}


def plot(series: Series, path: Path) -> None:
    """Draw the panels for which there is data; no file if there is none."""
    from matplotlib.figure import Figure

    parts = panels(series)
    if not parts:
        return
    columns = min(3, len(parts))
    rows = -(-len(parts) // columns)
    # Not by pyplot, which keeps each figure.
    figure = Figure(figsize=(5 * columns, 3.2 * rows), layout="constrained")
    for position, (title, lines) in enumerate(parts.items(), start=1):
        axes = figure.add_subplot(rows, columns, position)
        for name, line in lines.items():
            steps, values = zip(*line.items(), strict=True)
            axes.plot(steps, values, label=name.split("/")[-1], marker="." if len(steps) < 40 else None)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("optimizer step", fontsize=8)
        axes.grid(alpha=0.3)
        axes.tick_params(labelsize=8)
        if title.startswith("Gradient"):
            axes.set_yscale("log")
        if len(lines) > 1:
            axes.legend(fontsize=7)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=90)
