"""Resuming a run: its configuration, its checkpoint and its logs."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, open_dict

from eomt.cli.check import plain
from eomt.cli.console import note
from eomt.cli.layout import typed_task
from eomt.cli.meanings import CONFIGS
from eomt.cli.nodes import READER_KEYS
from eomt.cli.overrides import key_of, parsed
from eomt.cli.paths import quote_paths
from eomt.cli.settings import CHOICES, Run
from eomt.cli.trust import check_config, inside
from eomt.errors import InputError
from eomt.training.slurm import batch_job
from eomt.weights.checkpoint import CONTINUATION, FORMAT, PREVIOUS, intact, read_checkpoint
from eomt.weights.hub import LAST_FIRST, run_checkpoint

RESUMED = "resumed"
"""The name by which Hydra finds the configuration of the run that is resumed."""


def resumed(arguments: Sequence[str]) -> tuple[list[str], str]:
    """Let Hydra compose what is typed over the configuration of the run that ckpt= is of, in that run's folder.

    Another task, model or experiment makes another configuration, of which the old one's values are no part; another
    logger, trainer or callbacks replaces that section alone, and debug sets some values.

    Args:
        arguments: the typed arguments, with quoted paths; ckpt= may also be a run's folder.

    Returns:
        The arguments with the run's folder, unless a folder is typed; and the name of the configuration.

    Raises:
        InputError: if weights= is typed, too; if another model or experiment is, without the task, which would be
            another; if the saved configuration holds more than plain values of known keys, or would write outside the
            run's folder, and trust_code=true is not typed.
    """
    arguments, keys = list(arguments), [key_of(argument) for argument in arguments]
    place = max(place for place, key in enumerate(keys) if key == "ckpt")
    last = dict(zip(keys, arguments, strict=True))
    given, weights = (parsed([last[key]])[0].value() if key in last else None for key in ("ckpt", "weights"))
    if given is not None and weights is not None:
        raise InputError("ckpt= goes on with a run, weights= begins one from them: type one of them")
    path = run_checkpoint(Path(str(given)), LAST_FIRST)
    saved = None if given is None else _saved_part(path)
    if saved is None:
        return arguments, "train"
    if path != Path(str(given)):
        arguments[place] = quote_paths([f"ckpt={path}"])[0]
    if path.parent.name == "checkpoints" and "hydra.run.dir" not in keys:
        # Overrides stand together: with a flag such as --config-dir between them, Hydra reads none behind it.
        arguments.insert(keys.index("ckpt") + 1, *quote_paths([f"hydra.run.dir={path.absolute().parents[1]}"]))
    own = yaml.safe_load(Path(CONFIGS, "train.yaml").read_text())
    if not isinstance(saved.get("config"), Mapping):
        return arguments, "train"
    if {*keys} & {*CHOICES}:
        _say_replaced(arguments, saved["config"].get("task_name"), own["defaults"])
        return arguments, "train"
    chosen = {*keys} & {"logger", "trainer", "callbacks", "debug"}
    config = {key: saved["config"][key] for key in Run.model_fields if key in saved["config"] and key not in chosen}
    trusted = "trust_code=true" in [argument.lower() for argument in arguments]
    if not trusted:
        check_config(str(path), str(config.get("kind")), config)
    config = inside(config, config.get("run_folder"), trusted)
    data = config.get("data")
    if isinstance(data, Mapping):
        seed = {"seed": "${seed}"} if data.get("seed") == config.get("seed") else {}
        config["data"] = {**with_references(data, keys), **seed}
    config |= {key: own[key] for key in ("hydra", "ckpt", "trust_code", "prefetch", "run_folder")}
    kept = {"_self_", "override hydra/job_logging", *chosen}
    config["defaults"] = [entry for entry in own["defaults"] if kept & {*([entry] if entry == "_self_" else entry)}]
    ConfigStore.instance().store(RESUMED, config)
    return arguments, RESUMED


def choose_checkpoint(cfg: DictConfig) -> None:
    """Set `cfg.ckpt` to the checkpoint that the run really resumes from.

    A requeued SLURM job resumes from its own last checkpoint, whatever it started from; a damaged `last.ckpt` gives
    way to the one before it.

    Args:
        cfg: the run's configuration.

    Raises:
        InputError: if the folder holds another run of the same job.
    """
    own = _of_this_job(cfg)
    if own is not None:
        cfg.ckpt = str(own)
    elif cfg.ckpt and Path(cfg.ckpt).name == "last.ckpt":
        cfg.ckpt = str(intact(cfg.ckpt))


def continue_logs(cfg: DictConfig, checkpoint: Mapping) -> None:
    """Let the loggers of wandb, TensorBoard and MLflow resume those of the checkpoint, if it is of the same run folder.

    Lightning's CSV log has a version for each start of a run, see `read_logs`.
    """
    if Path(cfg.ckpt).absolute().parent.parent != Path(cfg.run_folder).absolute():
        return
    logs = checkpoint[CONTINUATION].get("logs")
    for settings in (cfg.logger or {}).values():
        name = settings["_target_"].rpartition(".")[2]
        key = {"WandbLogger": "id", "TensorBoardLogger": "version", "MLFlowLogger": "run_id"}.get(name)
        saved = logs.get(name, "") if isinstance(logs, Mapping) else ""
        # A name that a file brings must not lead to another folder.
        if key and settings.get(key) is None and re.fullmatch(r"\w[\w-]*", str(saved)):
            with open_dict(settings):
                settings[key] = saved


def with_references(data: Any, typed: Sequence[str]) -> Any:
    """The `data` of a checkpoint's configuration, all of whose values are resolved, with its readers' references.

    What is typed for `data` then reaches the readers, also null, unless another value is typed for one of them.

    Args:
        data: the section, plain.
        typed: the keys that are typed.
    """
    if not isinstance(data, Mapping):
        return data
    data = dict(data)
    for split in ("train", "val"):
        reader = data.get(split)
        if isinstance(reader, Mapping):
            shared = [name for name in READER_KEYS if name in reader and name in data]
            same = [name for name in shared if reader[name] == data[name] or f"data.{name}" in typed]
            data[split] = {**reader, **{name: f"${{data.{name}}}" for name in same}}
    return data


def _say_replaced(arguments: Sequence[str], task: Any, defaults: Sequence[Any]) -> None:
    """Say that the settings of a typed task, model or experiment take the place of the run's.

    Args:
        arguments: the typed arguments.
        task: the name of the run's task.
        defaults: those of train.yaml.

    Raises:
        InputError: if no task is typed, and the default is another.
    """
    default = next(entry["task"] for entry in defaults if "task" in entry)
    words = " ".join(word for word in arguments if key_of(word) in CHOICES)
    if typed_task({key_of(word): word for word in arguments}) is None and task != default:
        raise InputError(
            f"{words} takes settings of its own, of task={default} if none is typed, and ckpt= is of a run of "
            f"task={str(task)[:80]}: type that, too, with its data, or leave {words} out"
        )
    note(f"{words}: settings are those of a new run with what is typed, not the run's own")


def _saved_part(path: Path) -> Mapping[str, Any] | None:
    """The description of its run in a checkpoint, or in the one before a damaged one; None if it is of no run."""
    for candidate in (path, path.with_name(PREVIOUS)) if path.name == "last.ckpt" else (path,):
        # Weights of another source start a new run; what is damaged is said when it is read.
        with contextlib.suppress(InputError):
            return read_checkpoint(candidate, mmap=True)[FORMAT]
    return None


def _of_this_job(cfg: DictConfig) -> Path | None:
    """The last checkpoint that an earlier start of this SLURM job has left in its run folder."""
    job, last = batch_job(), Path(cfg.run_folder, "checkpoints", "last.ckpt")
    if job is None or not (last.is_file() or last.with_name(PREVIOUS).is_file()):
        return None
    last = intact(last)
    saved = read_checkpoint(last, mmap=True)
    if saved.get(CONTINUATION, {}).get("job") != job:
        return None
    config = plain(cfg)
    if {**config, "ckpt": None} != {**(saved[FORMAT].get("config") or {}), "ckpt": None}:
        raise InputError(
            f"{cfg.run_folder} holds another run of this job, started with other settings: give each run of a job a "
            "folder of its own by hydra.run.dir="
        )
    return last
