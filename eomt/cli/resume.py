"""Going on with a run: from which checkpoint, and with which logs."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig, open_dict

from eomt.errors import InputError
from eomt.training.slurm import batch_job
from eomt.weights.checkpoint import CONTINUATION, FORMAT, PREVIOUS, intact, read_checkpoint


def choose_checkpoint(cfg: DictConfig, overrides: list[str]) -> None:
    """Set `cfg.ckpt` to what the run really goes on from.

    A requeued SLURM job goes on from its own last checkpoint, whatever it began with; a damaged `last.ckpt` gives
    way to the one before it.

    Args:
        cfg: of the run.
        overrides: what was typed, as checkpoints keep it.

    Raises:
        InputError: if the folder holds another run of the same job.
    """
    own = _of_this_job(Path(cfg.run_folder), overrides)
    if own is not None:
        cfg.ckpt = str(own)
    elif cfg.ckpt and Path(cfg.ckpt).name == "last.ckpt":
        cfg.ckpt = str(intact(cfg.ckpt))


def continue_logs(cfg: DictConfig) -> None:
    """Let the loggers of wandb and TensorBoard resume those of the run's checkpoint, if it is of the same run folder.

    Lightning's CSV log has a version for each start of a run, see `read_logs`.
    """
    path = Path(cfg.ckpt).absolute()
    if path.parent.parent != Path(cfg.run_folder).absolute():
        return
    logs = read_checkpoint(path, mmap=True).get(CONTINUATION, {}).get("logs", {})
    for settings in (cfg.logger or {}).values():
        name = settings["_target_"].rpartition(".")[2]
        key = {"WandbLogger": "id", "TensorBoardLogger": "version"}.get(name)
        if key and name in logs and settings.get(key) is None:
            with open_dict(settings):
                settings[key] = logs[name]


def _of_this_job(run_folder: Path, overrides: list[str]) -> Path | None:
    """The last checkpoint that an earlier start of this SLURM job has left in its run folder."""
    job, last = batch_job(), run_folder / "checkpoints" / "last.ckpt"
    if job is None or not (last.is_file() or last.with_name(PREVIOUS).is_file()):
        return None
    last = intact(last)
    saved = read_checkpoint(last, mmap=True)
    if saved.get(CONTINUATION, {}).get("job") != job:
        return None
    if sorted(saved[FORMAT].get("overrides", [])) != sorted(overrides):
        raise InputError(
            f"{run_folder} holds another run of this job, started with other settings: give each run of a job a "
            "folder of its own by hydra.run.dir="
        )
    return last
