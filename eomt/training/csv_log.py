"""Lightning's CSV log, which a resumed run goes on with."""

from __future__ import annotations

import csv
import os
from pathlib import Path

from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.loggers.logger import rank_zero_experiment


class ContinuedCSVLogger(CSVLogger):
    """Writes `SAVE_DIR/NAME/version_N/metrics.csv`, after the rows that are there if a run goes on.

    Args:
        save_dir, name, version: as for `CSVLogger`.
        goes_on_at: optimizer steps of the checkpoint that the run goes on from: later rows, of steps that are
            done again, are left out. None begins a new log.
        validates: whether the run goes on with the validation after that step, whose row is then left out, too.
    """

    def __init__(
        self,
        save_dir: str | Path,
        name: str = "csv",
        version: int | str | None = None,
        goes_on_at: int | None = None,
        validates: bool = False,
    ):
        super().__init__(save_dir, name, version)
        self.goes_on_at = goes_on_at
        self.validates = validates

    @property
    @rank_zero_experiment
    def experiment(self) -> ExperimentWriter:
        """Lightning's writer of rows."""
        if self._experiment is not None or self.goes_on_at is None:
            return super().experiment
        path = Path(self.log_dir) / ExperimentWriter.NAME_METRICS_FILE
        # A new writer removes the file: its rows wait under another name, also for the next start if this one fails.
        waiting = path.with_name(f".{path.name}")
        if path.is_file() and not waiting.is_file():
            os.replace(path, waiting)
        writer = super().experiment
        if waiting.is_file():
            with waiting.open(newline="", errors="replace") as file:
                # A run that was killed, or a full disk, may have left half a line at the end.
                lines = [line for line in file if line.endswith("\n")]
            writer.metrics = [_without_blanks(row) for row in csv.DictReader(lines) if self._stays(row)]
            writer.save()
            waiting.unlink()
        return writer

    def _stays(self, row: dict[str, str]) -> bool:
        # Rows bear the number of the last step but one; a validation's is that of the step before it.
        last = self.goes_on_at - 1
        # Half a line also lies in the middle, where a later writer has gone on after it.
        step = _step(row)
        if step is None:
            return False
        return step < last or (step == last and (bool(row.get("train/loss")) or not self.validates))


def _step(row: dict[str | None, str | None]) -> int | None:
    """None for a row that is not whole: short of columns, with more than there are, or without a step."""
    if None in row or None in row.values():
        return None
    try:
        return int(row.get("step", ""))
    except ValueError:
        return None


def _without_blanks(row: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in row.items() if value}
