"""Run folders: one for each run, named when it starts, and written by one command at a time."""

from __future__ import annotations

import contextlib
import datetime
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from eomt.errors import InputError
from eomt.files import locked, replacing
from eomt.training.slurm import batch_job, first_rank

# What our commands leave in a folder; logs and settings alone are those of a run that came to nothing.
_RESULTS = ("checkpoints/*.ckpt", "metrics.json", "predictions", "pictures", "images.json", "report.json")

# The name that the first rank has found, for the ranks that it starts.
_NAME = "EOMT_RUN"

# Seconds for which a requeued job waits for the lock of its earlier start, whose node may have gone down.
_PATIENCE = 120.0


def run_id(parent: str, requeued: bool = False) -> str:
    """Name a run's folder by its time, or by the number of its SLURM job, and make it: no other run can take it then.

    Args:
        parent: the folder that it is made in. Where the name is taken, a number is added.
        requeued: whether a job goes on in the folder of its earlier start.
    """
    job = batch_job()
    name = f"slurm-{job}" if job else datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    if not first_rank():
        given = os.environ.get(_NAME, name)
        # A job may have been submitted from a run, whose name it then has in its environment.
        return given if not job or f"{given}-".startswith(f"{name}-") else name
    if "--resolve" in sys.argv or (job and requeued):
        return name
    found, number = name, 1
    while True:
        try:
            Path(parent, found).mkdir(parents=True)
        except FileExistsError:
            number += 1
            found = f"{name}-{number}"
        else:
            os.environ[_NAME] = found
            return found


@contextlib.contextmanager
def held(folder: str | Path) -> Iterator[None]:
    """Hold the lock of a run's folder within the block; the first rank does so for all.

    Raises:
        InputError: if another command holds it.
    """
    with locked(folder, _PATIENCE if batch_job() else 0) if first_rank() else contextlib.nullcontext():
        yield


def sweep_name() -> str | None:
    """The name of the folder of the sweep (`--multirun`) that this run is one of, if any."""
    if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
        return Path(HydraConfig.get().runtime.output_dir).parent.name
    return None


def task_by_default(cfg: DictConfig) -> bool:
    """True if a run trains on the built-in data because nothing else was typed."""
    typed = HydraConfig.get().overrides.task if HydraConfig.initialized() else ["task=?"]
    return cfg.task_name == "shapes_panoptic" and not any(word.startswith("task=") for word in typed)


def check_unused(folder: str | Path, ckpt: str | None = None) -> None:
    """Raise InputError if a folder holds the results of another command, with which new ones would mix.

    Args:
        folder: the run folder.
        ckpt: the checkpoint that a training run resumes from, which may go on in its own folder.
    """
    if ckpt and Path(ckpt).absolute().parents[1] == Path(folder).absolute():
        return
    found = sorted(path for words in _RESULTS for path in Path(folder).glob(words) if not path.name.startswith("."))
    if not found:
        return
    resumable = [path for path in found if path.name in ("last.ckpt", "previous.ckpt")]
    way_on = f"resume it by train.py ckpt={resumable[0]}, or " if resumable else ""
    what = "a run" if resumable else f"results already ({found[0].name})"
    raise InputError(f"{folder} holds {what}: {way_on}start another in a folder of its own by hydra.run.dir=")


def record(cfg: DictConfig, folder: str | Path) -> None:
    """Write a command's configuration, as composed, into `.hydra`.

    Hydra itself would do so before the folder is known to be free.
    """
    if HydraConfig.initialized() and first_rank():
        for name, part in (("config", cfg), ("overrides", HydraConfig.get().overrides.task)):
            with replacing(Path(folder, ".hydra", f"{name}.yaml")) as temporary:
                OmegaConf.save(part, temporary)
