"""`last.ckpt`: the state to go on from, however the run ends."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import lightning
from lightning.pytorch.callbacks import Checkpoint

from eomt.errors import InputError, Stopped
from eomt.files import sync_folder
from eomt.training.agreement import Agreement
from eomt.training.signals import StopSignals
from eomt.training.slurm import ENDING, batch_job
from eomt.weights.checkpoint import CONTINUATION, PREVIOUS


class LastCheckpoint(Checkpoint):
    """Saves `last.ckpt` after each validation, every so many steps, at the end, and when a signal asks to stop.

    Ctrl-C, SIGTERM and SIGUSR1 finish the optimizer step (with several ranks: the one after it), save and end
    the run with `Stopped`. In a validation they end it between two batches; the resumed run validates anew.

    The checkpoint before is kept as `previous.ckpt`, to go on from if `last.ckpt` turns out to be damaged. It
    costs the room of one more checkpoint; the writing itself takes no more than that.

    Args:
        folder: where `last.ckpt` goes.
        every_n_steps: optimizer steps between checkpoints, at least 1.
        keep_previous: whether the checkpoint before is kept.

    Raises:
        InputError: if `every_n_steps` is no such number.

    Attributes:
        signals: what asks the run to stop; replace it by the one that is installed for the whole program.
    """

    def __init__(self, folder: str | Path, every_n_steps: int = 1000, keep_previous: bool = True):
        if isinstance(every_n_steps, bool) or not isinstance(every_n_steps, int) or every_n_steps < 1:
            raise InputError(f"callbacks.last.every_n_steps={every_n_steps} must be a whole number of at least 1")
        self.path = Path(folder) / "last.ckpt"
        self.every_n_steps = every_n_steps
        self.keep_previous = keep_previous
        self.signals = StopSignals()
        self._agreement: Agreement | None = None
        self._saved_at: tuple[int, bool] | None = None
        self._seen_step: int | None = None
        self._between_steps = True
        # Lightning validates after the last hook of a batch: a state saved in between has that before it.
        self._validation_due = False
        self._stopping = 0
        self._rows_to_save = False
        # A file that this run has neither written nor gone on from may be damaged.
        self._known_whole = False

    # When

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._saved_at, self._seen_step = (trainer.global_step, False), trainer.global_step
        self._agreement = Agreement(trainer.world_size)
        self.signals.training = True
        # Later than Lightning, whose handlers would save in the middle of a step or talk to other ranks.
        self.signals.install(signal.SIGINT, *ENDING)

    def on_train_batch_start(self, trainer: lightning.Trainer, pl_module, batch, batch_idx: int) -> None:
        self._end_if_stopping(trainer)
        _count_this_epoch(trainer.fit_loop.epoch_progress)
        if self._rows_to_save:
            self._save_logs(trainer)

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module, outputs, batch, batch_idx: int) -> None:
        # Between the micro-batches of an optimizer step there are gradients, which no checkpoint holds.
        self._between_steps = trainer.global_step != self._seen_step
        self._seen_step = trainer.global_step
        loop = trainer.fit_loop
        self._validation_due = loop.epoch_loop._should_check_val_fx(loop._data_fetcher)
        if not self._between_steps:
            return
        # Acted upon in the next hook: Lightning logs this step's numbers after the last hook of the batch.
        self._stopping = self._agreement.ask(self.signals.received)
        due = trainer.global_step % self.every_n_steps == 0 or trainer.global_step == trainer.max_steps
        if self._stopping or due:
            self._save(trainer)

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if trainer.state.fn != "fit":
            self.signals.install(*ENDING)
        elif not trainer.sanity_checking:
            self._end_if_stopping(trainer)
            self._validation_due = True

    def on_validation_batch_end(
        self, trainer: lightning.Trainer, pl_module, outputs, batch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        # Ranks have as many batches, or they could not ask each other.
        if self._between_steps:
            self._stopping = self._agreement.ask(self.signals.received)
            if self._stopping and self._saved_at != (trainer.global_step, True):
                self._save(trainer)
            self._end_if_stopping(trainer)

    def on_validation_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._validation_due = False

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking and self._between_steps:
            self._save(trainer)

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._end_if_stopping(trainer)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if trainer.global_step != self._saved_at[0]:
            self._save(trainer)

    def teardown(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        self.signals.training = False

    # What

    def on_save_checkpoint(self, trainer: lightning.Trainer, pl_module, checkpoint: dict) -> None:
        if self._validation_due:
            _let_validation_come_next(checkpoint["loops"]["fit_loop"])
        checkpoint[CONTINUATION] = {
            "job": batch_job(),
            "validates": self._validation_due,
            "validated_at": pl_module.validated_at,
            "logs": {type(logger).__name__: logger.version for logger in trainer.loggers},
        }

    def on_load_checkpoint(self, trainer: lightning.Trainer, pl_module, checkpoint: dict) -> None:
        self._known_whole = Path(trainer.ckpt_path).resolve() == self.path.resolve()
        # A run that had only to end is not validated again.
        pl_module.validated_at = checkpoint.get(CONTINUATION, {}).get("validated_at")

    def _save(self, trainer: lightning.Trainer) -> None:
        if trainer.fast_dev_run:
            return
        unlogged = None
        try:
            self._save_logs(trainer)
        except OSError as error:
            # A full disk may still have the room of a checkpoint, which is worth more than the log's last rows.
            unlogged = error
        if trainer.is_global_zero and self.keep_previous and self._known_whole and self.path.is_file():
            _keep(self.path, self.path.with_name(PREVIOUS))
        # Not every strategy writes whole files; a name is taken in one step under all.
        new = self.path.with_name(f".{self.path.name}")
        trainer.save_checkpoint(new)
        if trainer.is_global_zero:
            os.replace(new, self.path)
            sync_folder(self.path.parent)
        self._known_whole = True
        if unlogged is not None:
            raise unlogged
        self._saved_at = (trainer.global_step, self._validation_due)
        self._rows_to_save = True

    def _save_logs(self, trainer: lightning.Trainer) -> None:
        """What is logged so far belongs to the checkpoint: whoever goes on from it does not log it again."""
        self._rows_to_save = False
        for logger in trainer.loggers:
            logger.save()

    def _end_if_stopping(self, trainer: lightning.Trainer) -> None:
        if not self._stopping:
            return
        self._agreement.close()
        # Nobody goes before the checkpoint is in its place.
        trainer.strategy.barrier()
        self._save_logs(trainer)
        name = "Ctrl-C" if self._stopping == signal.SIGINT else signal.Signals(self._stopping).name
        raise Stopped(
            f"stopped by {name} after step {trainer.global_step}; go on by: python train.py ckpt={self.path}",
            self._stopping,
        )


def _keep(path: Path, previous: Path) -> None:
    """Give a file a second name, so that the first can be taken by another file."""
    temporary = previous.with_name(f".{previous.name}")
    temporary.unlink(missing_ok=True)
    try:
        os.link(path, temporary)
    except OSError:
        # A file system without hard links; until the new file is there, this one is gone on from.
        temporary = path
    os.replace(temporary, previous)


def _count_this_epoch(progress) -> None:
    """An epoch that is under way is one more than those that are done.

    Lightning leaves it out after going on from the last batch of an epoch: that run is right, but one that goes on
    from a later checkpoint of it takes its epoch for a longer one.
    """
    for part in (progress.total, progress.current):
        part.ready = part.started = part.processed + 1


def _let_validation_come_next(fit_loop: dict) -> None:
    """Turn the state of Lightning's loops after a batch, or in a validation, into "before the validation".

    Without this a resumed run leaves that validation out: Lightning takes a checkpoint from here for one that
    a validation has ended with. What it reads as "go back and run the validation" is a validation batch that
    was started and not ended.
    """
    batches = fit_loop["epoch_loop.batch_progress"]
    for part in ("total", "current"):
        batches[part]["completed"] = batches[part]["processed"]
    validation = fit_loop["epoch_loop.val_loop.batch_progress"]
    validation["total"].update(ready=1, started=1, processed=0, completed=0)
    validation["current"].update(ready=0, started=0, processed=0, completed=0)
    validation["is_last_batch"] = False
