"""What the entry points share: Hydra, one-line errors, and objects from a configuration."""

from __future__ import annotations

import datetime
import functools
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

os.environ.setdefault("HYDRA_FULL_ERROR", "1")
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import hydra
import lightning
import torch
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from datasets.module import SegmentationData, accumulation
from eomt.callbacks.stop import Stopped
from eomt.checkpoint import FORMAT, AtomicCheckpointIO, read_checkpoint
from eomt.classes import Classes
from eomt.errors import InputError
from eomt.module import EoMTModule
from eomt.network import EoMT
from eomt.tasks import task_of

CONFIGS = str(Path(__file__).parent / "configs")
log = logging.getLogger("eomt")

# What a user can mend, or has asked for: it ends a run with one line instead of a stack trace.
ENDINGS = (InputError, HydraException, OmegaConfBaseException, Stopped)

# Values of these keys are paths, whose characters Hydra's override grammar would read as its own.
PATH_KEYS = re.compile(r"^\+{0,2}(ckpt|hydra\.run\.dir|(\w+\.)*(root|folder|pretrained|images|annotations))=")


def run_id() -> str:
    """Names a run's folder: a SLURM job keeps its number when it is requeued, and all its ranks share it."""
    job = os.environ.get("SLURM_JOB_ID")
    return f"slurm-{job}" if job else datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S")


OmegaConf.register_new_resolver("run_id", run_id, use_cache=True, replace=True)
OmegaConf.register_new_resolver("monitor", lambda kind: task_of(kind).monitor, replace=True)


def command(config_name: str, function: Callable[[DictConfig], None]) -> None:
    """Run a command line: compose the configuration, call `function` with it, and end with a clear line.

    Exit status: 0, 1 for bad input, 130 when the user stopped the run.
    """
    try:
        arguments = quote_paths(sys.argv[1:])
        if config_name == "train":
            arguments = resumed(arguments)
        if os.environ.get("SLURM_PROCID", "0") != "0":
            rank = os.environ["SLURM_PROCID"]
            arguments += ["hydra.output_subdir=null", f"hydra.job.name={config_name}_rank_{rank}"]
        sys.argv[1:] = arguments
    except InputError as error:
        _end(error)
    try:
        hydra.main(version_base="1.3", config_path=CONFIGS, config_name=config_name)(_guarded(function))()
    except ENDINGS as error:
        _end(error)


def _guarded(function: Callable[[DictConfig], None]) -> Callable[[DictConfig], None]:
    # Within the job, so that Hydra does not add lines of its own.
    @functools.wraps(function)
    def guarded(cfg: DictConfig) -> None:
        try:
            function(cfg)
        except ENDINGS as error:
            _end(error)

    return guarded


def _end(error: Exception) -> NoReturn:
    """Say in one line why the run ended, and exit."""
    if isinstance(error, Stopped):
        log.info("%s", error)
        sys.exit(130)
    print(f"error: {explain(error)}", file=sys.stderr)
    sys.exit(1)


def explain(error: BaseException) -> str:
    """One line: our own words if bad input lies behind the error, otherwise its text and its root's."""
    chain = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    ours = [e for e in chain if isinstance(e, InputError)]
    text = str(ours[-1]) if ours else str(error)
    if not ours and str(chain[-1]) not in text:
        text += f" ({chain[-1]})"
    return " ".join(text.split())


def quote_paths(arguments: list[str]) -> list[str]:
    """Quote the values of path-like keys, so that `ckpt=a=b (1).ckpt` means what it says."""
    quoted = []
    for argument in arguments:
        key, _, value = argument.partition("=")
        plain = value and value[0] not in "'\"[" and "${" not in value and value != "null"
        if PATH_KEYS.match(argument) and plain:
            escaped = value.replace("\\", "\\\\").replace("'", "\\'")
            argument = f"{key}='{escaped}'"
        quoted.append(argument)
    return quoted


def resumed(arguments: list[str]) -> list[str]:
    """With `ckpt=`, begin with the overrides that the checkpoint's run was started with, and go on in its
    folder; what is typed now comes later and wins."""
    typed = {argument.partition("=")[0].lstrip("+"): argument.partition("=")[2] for argument in arguments}
    path = Path(typed.get("ckpt", "").strip("'"))
    if typed.get("ckpt", "null") in ("", "null"):
        return arguments
    saved = read_checkpoint(path)[FORMAT].get("overrides", [])
    if any(o.partition("=")[0].lstrip("+") in ("task", "experiment") for o in arguments):
        # Another task or experiment is another configuration; values of the old one would not fit it.
        saved = []
    saved = [o for o in saved if o.partition("=")[0].lstrip("+~") not in typed and not o.startswith("hydra.")]
    folder = path.absolute().parent.parent
    if path.parent.name == "checkpoints" and "hydra.run.dir" not in typed:
        arguments = [*arguments, *quote_paths([f"hydra.run.dir={folder}"])]
    return saved + arguments


def build_data(cfg: DictConfig) -> SegmentationData:
    """The data module of a configuration; `data.root` is for its readers."""
    settings = OmegaConf.to_container(cfg.data, resolve=True)
    settings.pop("root", None)
    return instantiate(settings, _convert_="all")


def build_module(cfg: DictConfig, classes: Classes, image_size: tuple[int, int]) -> EoMTModule:
    """A new network with its loss and recipe."""
    model = OmegaConf.to_container(cfg.model, resolve=True)
    pretrained = model.pop("pretrained")
    return EoMTModule(
        network=EoMT(image_size=image_size, num_classes=len(classes), **model),
        task=task_of(cfg.kind),
        classes=classes,
        loss=instantiate(cfg.loss),
        annealing_windows=OmegaConf.to_container(cfg.annealing.windows, resolve=True)
        if cfg.annealing.windows is not None
        else None,
        annealing_power=cfg.annealing.power,
        validate_masked=cfg.annealing.validate_masked,
        pretrained=pretrained,
        seed=cfg.seed,
        run={"config": portable(cfg), "overrides": _task_overrides()},
        **OmegaConf.to_container(cfg.optim, resolve=True),
    )


def load_module(checkpoint: dict) -> EoMTModule:
    """The trained network of a checkpoint, ready to evaluate.

    Raises:
        InputError: if the weights do not fit the network that the checkpoint describes.
    """
    saved = checkpoint[FORMAT]
    cfg = OmegaConf.create(saved["config"])
    module = EoMTModule(
        network=EoMT(**saved["network"]),
        task=task_of(saved["kind"]),
        classes=Classes.from_list(saved["classes"]),
        loss=instantiate(cfg.loss),
        annealing_windows=cfg.annealing.windows,
        validate_masked=cfg.annealing.validate_masked,
        seed=cfg.seed,
    )
    try:
        module.load_state_dict(checkpoint["state_dict"])
    except (KeyError, RuntimeError) as error:
        raise InputError(f"ckpt= holds other weights than its network has: {error}") from error
    return module


def build_trainer(
    cfg: DictConfig, data: SegmentationData, callbacks: list, loggers: list | bool
) -> lightning.Trainer:
    """The Lightning trainer, with the accumulation that makes up the global batch."""
    settings = OmegaConf.to_container(cfg.trainer, resolve=True)
    if settings["precision"] is None:
        on_gpu = torch.cuda.is_available() and settings["accelerator"] in ("auto", "gpu", "cuda")
        settings["precision"] = "bf16-mixed" if on_gpu else "32-true"
    plugins = [AtomicCheckpointIO(), *(settings.pop("plugins") or [])]
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision(cfg.matmul_precision)
    # What we count on and Lightning warns of: our loaders shard by themselves, and few steps may be wanted.
    for words in ("does not have many workers", "the number of training batches", "exists and is not empty"):
        warnings.filterwarnings("ignore", f".*{words}.*")
    trainer = lightning.Trainer(
        **settings, callbacks=callbacks, logger=loggers, plugins=plugins, use_distributed_sampler=False
    )
    trainer.accumulate_grad_batches = accumulation(data.global_batch, data.batch_size, trainer.world_size)
    return trainer


def portable(cfg: DictConfig) -> dict:
    """The configuration as plain values, fit for a checkpoint."""
    return OmegaConf.to_container(cfg, resolve=True)


def _task_overrides() -> list[str]:
    """What was typed to start this run, without Hydra's own keys."""
    from hydra.core.hydra_config import HydraConfig

    if not HydraConfig.initialized():
        return []
    return [o for o in HydraConfig.get().overrides.task if not o.startswith(("ckpt=", "prefetch="))]
