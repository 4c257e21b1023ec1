"""Checkpoints of a run: `last.ckpt` to resume from, `previous.ckpt` before it, `best.ckpt` of the best score.

No checkpoint is written within a validation, and none between the batches of an optimizer step: a file always holds
the whole state, and the weights that a validation scores are those of the file saved just before it.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import lightning
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint

from eomt.errors import InputError
from eomt.files import ArchiveFile, replacing, sync_folder
from eomt.training.agreement import Agreement
from eomt.training.slurm import batch_job
from eomt.training.stop import StopSignals, stopped_by
from eomt.weights.checkpoint import CONTINUATION, PREVIOUS, read_checkpoint


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's reading and writing of checkpoint files: whole or not at all, and no code is run from a file."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a temporary file in the same folder, flush it to disk, and rename it.

        Raises:
            InputError: if the disk is full or cannot be written; what was at `path` stays whole.
        """
        path = Path(path)
        try:
            # Killed runs leave half-written files.
            for leftover in path.parent.glob(f".{path.stem}.*{path.suffix}"):
                leftover.unlink(missing_ok=True)
            with replacing(path) as temporary, ArchiveFile(temporary) as file:
                torch.save(checkpoint, file)
        except OSError as error:
            raise InputError(
                f"no checkpoint can be written to {path.parent} ({error.strerror or error}): free some space, then "
                f"resume by python train.py ckpt={path.parent}/last.ckpt; what was written before is whole"
            ) from error

    def load_checkpoint(self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = True) -> dict:
        """Read a checkpoint of plain values and tensors; `weights_only` is always on."""
        return read_checkpoint(path)


class LastCheckpoint(Checkpoint):
    """`last.ckpt`, saved before each validation, every so many steps, at the end, and when a signal asks to stop.

    Ctrl-C, SIGTERM and SIGUSR1 finish the optimizer step (with several ranks: the one after it), save and end
    the run with `Stopped`. In a validation they end it between two batches. A run that is resumed from a checkpoint
    of before a validation starts with that validation.

    The checkpoint before is kept as `previous.ckpt`, to resume from if `last.ckpt` turns out to be damaged. It takes
    the room of one more checkpoint.

    Args:
        folder: where `last.ckpt` goes.
        every_n_steps: optimizer steps between checkpoints, at least 1.
        keep_previous: whether the checkpoint before is kept.

    Attributes:
        path: the file.
        step: optimizer steps done in the state that `last.ckpt` is known to hold; None before it is known.
        signals: what asks the run to stop; replace it by the handlers that are installed for the whole program.
    """

    def __init__(self, folder: str | Path, every_n_steps: int = 1000, keep_previous: bool = True):
        self.path = Path(folder) / "last.ckpt"
        self._new = self.path.with_name(".last.ckpt")
        self.every_n_steps = every_n_steps
        self.keep_previous = keep_previous
        self.step: int | None = None
        self.signals = StopSignals()
        self._agreement = Agreement(world_size=1)
        self._steps_done = 0
        self._between_steps = True
        self._written: int | None = None
        self._stopping = 0
        self._logs: dict[str, Any] = {}

    # When

    def on_train_start(self, trainer: lightning.Trainer, *_: Any) -> None:
        progress = trainer.fit_loop.epoch_progress
        total: Any = progress.total
        if trainer.fit_loop.restarted_mid_epoch and total.ready == total.processed:
            # Resumed from the last batch of an epoch, Lightning trains the next one, but does not count it as started:
            # a run resumed from a later checkpoint would take that epoch for a longer one.
            progress.increment_ready()
            progress.increment_started()
        self._steps_done = trainer.global_step
        self._agreement = Agreement(trainer.world_size)
        self.signals.start_training()

    def on_train_batch_start(self, trainer: lightning.Trainer, *_: Any) -> None:
        self._finish(trainer)

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        # Between the batches of an optimizer step there are gradients, which no checkpoint holds.
        self._between_steps = trainer.global_step != self._steps_done
        if not self._between_steps:
            return
        self._steps_done = trainer.global_step
        self._stopping = self._agreement.ask(self.signals.received)
        due = (
            bool(self._stopping)
            or trainer.global_step % self.every_n_steps == 0
            or trainer.global_step == trainer.max_steps
            or trainer.should_stop
            or (trainer.is_last_batch and trainer.current_epoch + 1 == trainer.max_epochs)
            # A validation between the batches of the next step scores the weights of this one.
            or any(validates_after(trainer, ahead) for ahead in range(1, trainer.accumulate_grad_batches))
        )
        # From here Lightning would take a validation that is due for done: in that case the next hook saves.
        if due and not validates_after(trainer):
            self._write(trainer)

    def on_validation_start(self, trainer: lightning.Trainer, *_: Any) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            if self._between_steps:
                self._write(trainer)
            self._finish(trainer)

    def on_validation_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        # All ranks have as many batches, or they could not ask each other.
        if trainer.state.fn == "fit" and not trainer.sanity_checking and self.step == trainer.global_step:
            self._stopping = self._agreement.ask(self.signals.received)
            self._finish(trainer)

    def on_train_epoch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        self._finish(trainer)

    def teardown(self, trainer: lightning.Trainer, pl_module: Any, stage: str) -> None:
        self.signals.training = False

    # What

    def on_save_checkpoint(self, trainer: lightning.Trainer, pl_module: Any, checkpoint: dict) -> None:
        bad = [name for name, value in checkpoint["state_dict"].items() if not value.isfinite().all()]
        if bad:
            names, before = ", ".join(bad[:3]), f"resume from {self.path}, or " if self.path.exists() else ""
            raise InputError(
                f"the weights after step {trainer.global_step} are not finite ({names}), and are not saved: "
                f"{before}start again with a lower optim.lr or trainer.precision=32-true"
            )
        if trainer.validating:
            # Lightning resumes with a validation only if one of its batches was started and not finished, and has no
            # public way to say so; from any other state it would leave this validation out.
            batches = checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]
            batches["total"].update(ready=1, started=1, processed=0, completed=0)
        checkpoint[CONTINUATION] = {
            "job": batch_job(),
            # A logger that is off for a while goes on later.
            "logs": self._logs | {type(logger).__name__: logger.version for logger in trainer.loggers},
        }

    def on_load_checkpoint(self, trainer: lightning.Trainer, pl_module: Any, checkpoint: dict) -> None:
        # A file that this run has neither written nor read may be damaged, and is not kept as the previous one.
        assert trainer.ckpt_path is not None
        read = Path(trainer.ckpt_path).resolve()
        if read == self.path.resolve():
            self.step = checkpoint.get("global_step")
        if read.parent == self.path.parent.resolve():
            logs = checkpoint.get(CONTINUATION, {}).get("logs")
            self._logs = dict(logs) if isinstance(logs, Mapping) else {}

    def _write(self, trainer: lightning.Trainer) -> None:
        """Write the state to a file beside `last.ckpt`, whose place it takes in `_finish`."""
        if not trainer.fast_dev_run:  # pyright: ignore[reportAttributeAccessIssue] Lightning sets it undeclared
            trainer.save_checkpoint(self._new)
            self._written = trainer.global_step

    def _finish(self, trainer: lightning.Trainer) -> None:
        """Let what was written become `last.ckpt`, and end the run if a signal asks for it.

        Lightning logs the numbers of a step after the step's last hook. They belong to its checkpoint, since a
        resumed run does not log them again; so the file takes its name in the next hook.
        """
        self._take_name(trainer)
        if self._stopping and self.step == trainer.global_step:
            self._agreement.close()
            # No rank leaves before the checkpoint has its name.
            trainer.strategy.barrier()
            raise stopped_by(self._stopping, f" after step {self.step}; resume by: python train.py ckpt={self.path}")

    def _take_name(self, trainer: lightning.Trainer) -> None:
        if self._written is None:
            return
        unlogged = None
        try:
            for logger in trainer.loggers:
                logger.save()
        except OSError as error:
            # A full disk may still have the room of a checkpoint, which is worth more than the log's last rows.
            unlogged = error
        if trainer.is_global_zero:
            if self.keep_previous and self.step is not None and self.path.is_file():
                keep_as(self.path, PREVIOUS)
            os.replace(self._new, self.path)
            sync_folder(self.path.parent)
        self.step, self._written = self._written, None
        if unlogged is not None:
            raise unlogged


class BestCheckpoint(Checkpoint):
    """`best.ckpt`: the `last.ckpt` of before the validation whose score is the best so far.

    So `best.ckpt` holds the weights that were scored, averages with `callbacks.ema`. A score that is not a number is
    kept only until another one comes.

    Args:
        monitor: the score.
        mode: "max" where higher is better, "min" where lower is.

    Attributes:
        score: the best so far; None before the first.
        step: the optimizer step of that score.

    Raises:
        InputError: before training, without `callbacks.last`.
    """

    def __init__(self, monitor: str, mode: Literal["max", "min"] = "max"):
        self.monitor = monitor
        self.mode = mode
        self.score: float | None = None
        self.step: int | None = None

    def setup(self, trainer: lightning.Trainer, pl_module: Any, stage: str) -> None:
        last = next((c for c in trainer.checkpoint_callbacks if isinstance(c, LastCheckpoint)), None)
        if last is None:
            raise InputError("callbacks.best keeps copies of last.ckpt, which callbacks.last=null does not write")
        self._last = last

    def on_validation_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        if trainer.sanity_checking or trainer.fast_dev_run:  # pyright: ignore[reportAttributeAccessIssue] Lightning sets it undeclared
            return
        score = trainer.callback_metrics.get(self.monitor)
        # A run that is resumed in another folder has a score, but no file there.
        kept = self._last.path.with_name("best.ckpt").is_file()
        if score is None or (kept and not self._is_better(float(score))):
            return
        self.score, self.step = float(score), trainer.global_step
        if trainer.is_global_zero and self._last.step == trainer.global_step and self._last.path.is_file():
            keep_as(self._last.path, "best.ckpt")

    def _is_better(self, score: float) -> bool:
        if self.score is None or math.isnan(self.score):
            return True
        return score > self.score if self.mode == "max" else score < self.score

    def state_dict(self) -> dict[str, Any]:
        """Return the best score so far."""
        return {"score": self.score, "step": self.step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume from a best score."""
        score, step = state_dict["score"], state_dict.get("step")
        self.score, self.step = None if score is None else float(score), None if step is None else int(step)


def validates_after(trainer: lightning.Trainer, ahead: int = 0) -> bool:
    """True if Lightning validates after the current batch.

    Lightning's own function is private. A wrong result here would cost a needless checkpoint, or the validation of a
    run that is killed between two hooks.

    Args:
        trainer: the trainer, in `on_train_batch_end`.
        ahead: ask for the batch that many after the current one.
    """
    every, batches = trainer.check_val_every_n_epoch, trainer.val_check_batch
    if not trainer.enable_validation or (every is not None and (trainer.current_epoch + 1) % every):
        return False
    if trainer.should_stop:
        return True
    done = trainer.fit_loop.total_batch_idx if every is None else trainer.fit_loop.batch_idx
    # None where validations follow the clock.
    return batches is not None and (done + 1 + ahead) % batches == 0


def keep_as(path: Path, name: str) -> None:
    """Give a file a second name in its folder, under which it stays when another file takes the first."""
    temporary = path.with_name(f".{name}")
    temporary.unlink(missing_ok=True)
    try:
        os.link(path, temporary)
    except OSError:
        # A file system without hard links.
        shutil.copyfile(path, temporary)
    os.replace(temporary, path.with_name(name))
