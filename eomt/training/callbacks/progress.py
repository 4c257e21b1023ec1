"""Progress of a run: the progress bar and lines, an early end if the score no longer rises."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Literal

import lightning
from lightning.pytorch.callbacks import Callback, EarlyStopping, TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm

from eomt.training.module import EoMTModule

log = logging.getLogger("eomt")
# Of this logger's lines the configuration of the logs writes to the file alone.
progress_log = logging.getLogger("eomt.progress")

# Of a validation's scores, lines and table show so many: pq, sq, rq; ap, ap50, ap75; miou and accuracies.
_SHOWN_SCORES = 3


class Progress(TQDMProgressBar):
    """One bar for the whole run in optimizer steps, with loss, learning rates (heads/backbone), mask probability per
    block and the score so far; below it, one for each validation."""

    def __init__(self, refresh_rate: int = 10):
        super().__init__(refresh_rate=refresh_rate)

    def init_train_tqdm(self) -> Tqdm:
        bar = super().init_train_tqdm()
        bar.total, bar.initial = self.trainer.lightning_module.total_steps, self.trainer.global_step
        bar.n = bar.initial
        return bar

    def on_train_epoch_start(self, trainer: lightning.Trainer, *_: Any) -> None:
        self.train_progress_bar.set_description(f"Epoch {trainer.current_epoch}")

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: EoMTModule, *_: Any) -> None:
        step, bar = trainer.global_step, self.train_progress_bar
        if step != bar.n and self._should_update(step, bar.total):
            bar.n = step
            bar.set_postfix(self.get_metrics(trainer, pl_module))

    def on_exception(self, *_: Any) -> None:
        # What is said next begins on a line of its own.
        for bar in (self._val_progress_bar, self._train_progress_bar):
            if bar is not None:
                bar.close()

    def get_metrics(self, trainer: lightning.Trainer, pl_module: EoMTModule) -> dict:
        # Not what is logged for a bar: Lightning would wait at each step for the device to have it.
        step, monitor = pl_module.last_step, pl_module.task.monitor
        shown = {}
        if step is not None:
            shown["loss"] = f"{float(step.loss):.2f}"
            shown["lr"] = "/".join(f"{rate:.1e}" for rate in step.rates.values())
            shown["masks"] = " ".join(f"{p:.2f}" for p in pl_module.probabilities)
        if monitor in pl_module.scores:
            shown[monitor] = f"{pl_module.scores[monitor]:.1f}"
        return shown


class ProgressLines(Callback):
    """A line every `trainer.log_every_n_steps` optimizer steps and for each validation.

    Where there is a bar, the lines of steps are written to the log's file alone.

    Attributes:
        validations: the scores of each validation by optimizer step, also of those before a resume. A checkpoint
            knows none of after the last training step.
    """

    def __init__(self) -> None:
        self.validations: dict[int, dict[str, float]] = {}
        self._step = 0
        # The first step, and when it was done.
        self._first: tuple[int, float] | None = None
        self._began = self._validation_began = 0.0

    def on_train_start(self, trainer: lightning.Trainer, pl_module: EoMTModule) -> None:
        self._step, self._first = trainer.global_step, None
        self._began = time.perf_counter()

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: EoMTModule, *_: Any) -> None:
        step, total = trainer.global_step, pl_module.total_steps
        every = trainer.log_every_n_steps  # pyright: ignore[reportAttributeAccessIssue] Lightning sets it undeclared
        now = time.perf_counter()
        if not trainer.is_global_zero:
            return
        if pl_module.compiled and self._began:
            log.info("first batch after %.0f s, compilation included", now - self._began)
        self._began = 0.0
        if step == self._step:
            return
        self._step = step
        if every and (step % every == 0 or step == total):
            parts = [f"step {step} of {total}", f"loss {float(trainer.callback_metrics['train/loss']):.3f}"]
            monitor = pl_module.task.monitor
            parts += [f"{monitor} {pl_module.scores[monitor]:.2f}"] if monitor in pl_module.scores else []
            if self._first:
                left = (now - self._first[1]) / (step - self._first[0]) * (total - step)
                speed = trainer.callback_metrics.get("speed/images_per_second")  # of Trackers
                parts += [f"{speed:.1f} images/s"] if speed else []
                parts += [f"{_duration(left)} left"]
            self._line(trainer, ", ".join(parts))
        # The first step, in which the network may be compiled, is not timed.
        self._first = self._first or (step, now)

    def on_validation_start(self, *_: Any) -> None:
        self._validation_began = time.perf_counter()

    def on_validation_batch_end(
        self, trainer: lightning.Trainer, pl_module: EoMTModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        # An evaluation alone, in tenths.
        done, total = batch_idx + 1, trainer.num_val_batches[0]
        if trainer.state.fn != "fit" and trainer.is_global_zero and 10 * done // total > 10 * batch_idx // total:
            left = (time.perf_counter() - self._validation_began) / done * (total - done)
            self._line(trainer, f"validation: batch {done} of {total}, {_duration(left)} left")

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: EoMTModule) -> None:
        took = time.perf_counter() - self._validation_began
        if trainer.sanity_checking:
            return
        self.validations[pl_module.step] = dict(pl_module.scores)
        if trainer.is_global_zero and trainer.state.fn == "fit":
            shown = list(pl_module.scores.items())[:_SHOWN_SCORES]
            scores = ", ".join(f"{name} {score:.2f}" for name, score in shown)
            log.info("validation after step %d: %s (%s)", pl_module.step, scores, _duration(took))

    def table(self) -> str:
        """All validations, one a line."""
        names = list(next(iter(self.validations.values()), {}))[:_SHOWN_SCORES]
        width = max([len(name) for name in names] + [6]) + 2
        lines = ["step".rjust(8) + "".join(name.rjust(width) for name in names)]
        for step, scores in sorted(self.validations.items()):
            lines.append(f"{step:8}" + "".join(f"{scores[name]:{width}.2f}" for name in names))
        return "\n".join(lines)

    @staticmethod
    def _line(trainer: lightning.Trainer, text: str) -> None:
        (progress_log if trainer.progress_bar_callback else log).info("%s", text)

    def state_dict(self) -> dict[str, Any]:
        return {"validations": self.validations}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self.validations = dict(state_dict["validations"])


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


class EarlyStop(EarlyStopping):
    """End of a run after `patience` validations without a better score.

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
