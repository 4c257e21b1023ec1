"""Resuming a run: its overrides, its checkpoint and its logs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from omegaconf import DictConfig, open_dict

from eomt.cli.arguments import key_of, parsed, quote_paths
from eomt.cli.trust import check_overrides
from eomt.errors import InputError
from eomt.training.slurm import batch_job
from eomt.weights.checkpoint import CONTINUATION, FORMAT, PREVIOUS, intact, read_checkpoint


def with_saved_overrides(arguments: Sequence[str]) -> list[str]:
    """Put the overrides that the checkpoint's run was started with before those that are typed, and its folder behind.

    What is typed takes the place of what is saved; another choice of a group, of all saved values within it.

    Args:
        arguments: the typed arguments, with quoted paths.

    Raises:
        InputError: if a saved override is more than a plain value of a key, and trust_code=true is not typed.
    """
    typed = {key_of(argument): argument.partition("=")[2] for argument in arguments}
    if typed.get("ckpt", "null") == "null":
        return list(arguments)
    path = Path(str(parsed([f"ckpt={typed['ckpt']}"])[0].value()))
    saved = _saved_overrides(path)
    if saved is None:
        return list(arguments)
    if {"task", "experiment"} & typed.keys():
        # Another task or experiment is another configuration; values of the old one would not fit it.
        saved = []
    saved = [o for o in saved if key_of(o) not in typed and key_of(o).partition(".")[0] not in typed]
    if typed.get("trust_code", "").lower() != "true":
        check_overrides(saved)
    folder = []
    if path.parent.name == "checkpoints" and "hydra.run.dir" not in typed:
        folder = quote_paths([f"hydra.run.dir={path.absolute().parent.parent}"])
    # Overrides stand together: with a flag such as --config-dir between them, Hydra reads none behind it.
    start = next(i for i, argument in enumerate(arguments) if _is_override(argument))
    end = next((i for i in range(start, len(arguments)) if not _is_override(arguments[i])), len(arguments))
    return [*arguments[:start], *saved, *arguments[start:end], *folder, *arguments[end:]]


def _is_override(argument: str) -> bool:
    return "=" in argument and not argument.startswith("-")


def choose_checkpoint(cfg: DictConfig, overrides: Sequence[str]) -> None:
    """Set `cfg.ckpt` to the checkpoint that the run really resumes from.

    A requeued SLURM job resumes from its own last checkpoint, whatever it started from; a damaged `last.ckpt` gives
    way to the one before it.

    Args:
        cfg: the run's configuration.
        overrides: the typed overrides, as checkpoints keep them.

    Raises:
        InputError: if the folder holds another run of the same job.
    """
    own = _of_this_job(Path(cfg.run_folder), overrides)
    if own is not None:
        cfg.ckpt = str(own)
    elif cfg.ckpt and Path(cfg.ckpt).name == "last.ckpt":
        cfg.ckpt = str(intact(cfg.ckpt))


def check_unused(run_folder: str) -> None:
    """Raise InputError if a folder holds the checkpoints of another run, which a new one would overwrite."""
    for name in ("last.ckpt", PREVIOUS):
        path = Path(run_folder, "checkpoints", name)
        if path.exists():
            raise InputError(
                f"{run_folder} holds a run: resume it by ckpt={path}, or start another in a folder of its own by "
                "hydra.run.dir="
            )


def continue_logs(cfg: DictConfig, checkpoint: Mapping) -> None:
    """Let the loggers of wandb and TensorBoard resume those of the checkpoint, if it is of the same run folder.

    Lightning's CSV log has a version for each start of a run, see `read_logs`.
    """
    if Path(cfg.ckpt).absolute().parent.parent != Path(cfg.run_folder).absolute():
        return
    logs = checkpoint[CONTINUATION].get("logs")
    for settings in (cfg.logger or {}).values():
        name = settings["_target_"].rpartition(".")[2]
        key = {"WandbLogger": "id", "TensorBoardLogger": "version"}.get(name)
        saved = logs.get(name, "") if isinstance(logs, Mapping) else ""
        # A name that a file brings must not lead to another folder.
        if key and settings.get(key) is None and re.fullmatch(r"\w[\w-]*", str(saved)):
            with open_dict(settings):
                settings[key] = saved


def _saved_overrides(path: Path) -> list[str] | None:
    """The overrides in a checkpoint, or in the one before it if it is damaged; None if it is of no run."""
    for candidate in (path, path.with_name(PREVIOUS)) if path.name == "last.ckpt" else (path,):
        try:
            saved = read_checkpoint(candidate, mmap=True)[FORMAT].get("overrides")
        except InputError:
            # Weights of another source, which start a new run; or damaged, which is said when they are read.
            continue
        return [str(override) for override in saved] if isinstance(saved, list | tuple) else []
    return None


def _of_this_job(run_folder: Path, overrides: Sequence[str]) -> Path | None:
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
