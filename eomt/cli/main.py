"""The command line that the entry points share: Hydra, resuming, and errors in one line.

It imports nothing heavy, so that a mistyped key is answered at once.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import functools
import logging
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

os.environ.setdefault("HYDRA_FULL_ERROR", "1")
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
# On a CPU that is shared with data workers, threads that spin while they wait slow each other down.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from eomt.errors import InputError, Stopped, worker_failure
from eomt.training.slurm import ENDING, batch_job, first_task, requeue
from eomt.training.stop import StopSignals
from eomt.weights.hub import is_hub_id

CONFIGS = str(Path(__file__).parents[2] / "configs")
log = logging.getLogger("eomt")

# What a user can mend, or has asked for: it ends a run with one line instead of a stack trace.
ENDINGS = (InputError, HydraException, OmegaConfBaseException, Stopped)

# No room on the disk, none in the quota, or a file larger than is allowed.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

# Values of these keys are paths, whose characters Hydra's override grammar would read as its own.
TEXT_KEYS = re.compile(
    r"^\+{0,2}(ckpt|weights|delta_base|out|hydra\.run\.dir|(\w+\.)*(root|folder|pretrained|images|annotations|labels|classes))="
)
# Values of these may be lists of paths; in one without quotes of the user's own, commas part the entries.
LIST_KEYS = re.compile(r"^images=")
LIST = re.compile(r"^\[[^'\"{}$]+\]$")
# Those of these are read from other folders later on, so that they are made absolute.
PATH_KEYS = re.compile(r"^\+{0,2}(ckpt|weights|delta_base|(\w+\.)*(root|pretrained))=")
# Those of these may also be ids of the Hugging Face Hub, which are no paths.
HUB_KEYS = re.compile(r"^\+{0,2}(ckpt|weights|delta_base)=")


def run_id() -> str:
    """Names a run's folder: a SLURM job keeps its number when it is requeued, and all its ranks share it.

    Within an interactive allocation runs follow each other under one number, so that time names them.
    """
    job = batch_job()
    return f"slurm-{job}" if job else datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S")


def monitor(kind: str) -> str:
    """The metric by which the best checkpoint of a kind of segmentation is chosen."""
    from eomt.tasks import task_of

    return task_of(kind).monitor


OmegaConf.register_new_resolver("run_id", run_id, use_cache=True, replace=True)
OmegaConf.register_new_resolver("monitor", monitor, replace=True)


def command(config_name: str, function: Callable[[DictConfig], None]) -> None:
    """Run a command line: compose the configuration, call `function` with it, and end with a clear line.

    Exit status: 0, also when a SLURM job goes on later; 1 for bad input; 130 when Ctrl-C stopped the run, 138
    when SIGUSR1 did, 143 when SIGTERM did.
    """
    # Importing takes longer than anything before training: a signal then ends the run in order, too.
    try:
        with StopSignals() if config_name == "train" else contextlib.nullcontext():
            _run(config_name, function)
    finally:
        # All is done, or said: what is left is to close logs, also while SLURM ends a job that is requeued.
        for number in ENDING:
            signal.signal(number, signal.SIG_IGN)


def _run(config_name: str, function: Callable[[DictConfig], None]) -> None:
    try:
        arguments = quote_paths(sys.argv[1:])
        if config_name == "train":
            arguments = resumed(arguments)
        if config_name == "eval":
            # Hydra would take these for its groups, whose settings are those of training.
            arguments = [re.sub(r"^(task|model|experiment)=", r"recipe.\1=", argument) for argument in arguments]
        if os.environ.get("SLURM_PROCID", "0") != "0":
            rank = os.environ["SLURM_PROCID"]
            arguments += ["hydra.output_subdir=null", f"hydra.job.name={config_name}_rank_{rank}"]
        sys.argv[1:] = arguments
    except (InputError, Stopped) as error:
        _end(error)
    try:
        hydra.main(version_base="1.3", config_path=CONFIGS, config_name=config_name)(_guarded(function))()
    except (*ENDINGS, KeyboardInterrupt) as error:
        _end(error)
    except OSError as error:
        if error.filename is None and error.errno not in FULL:
            raise
        key = "out" if config_name in ("predict", "export") else "hydra.run.dir"
        # Opening a file names it, writing into it does not.
        where = f"{error.filename}: " if error.filename is not None else ""
        way_out = "free some space, or choose" if error.errno in FULL else "choose"
        _end(InputError(f"{where}{error.strerror}; {way_out} another folder by {key}="))


def training_config(overrides: list[str]) -> DictConfig:
    """The configuration that train.py would have with these overrides, for the other commands."""
    # Its run folder is Hydra's to say, and there is no Hydra run of it.
    overrides = [*overrides, "run_folder=''"]
    if GlobalHydra().is_initialized():
        return hydra.compose("train", overrides)
    with hydra.initialize_config_dir(CONFIGS, version_base="1.3"):
        return hydra.compose("train", overrides)


def _guarded(function: Callable[[DictConfig], None]) -> Callable[[DictConfig], None]:
    # Within the job, so that Hydra does not add lines of its own.
    @functools.wraps(function)
    def guarded(cfg: DictConfig) -> None:
        if any(os.environ.get(rank, "0") != "0" for rank in ("LOCAL_RANK", "SLURM_PROCID")):
            log.setLevel(logging.WARNING)  # the first process says it for all
        try:
            function(cfg)
        except (*ENDINGS, KeyboardInterrupt) as error:
            _end(error)
        except Exception as error:
            if type(error).__module__.startswith(("torch._inductor", "torch._dynamo")):
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                _end(InputError(f"the network cannot be compiled here ({reason}): set compile=false"))
            if isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker"):
                _end(worker_failure(error))
            if isinstance(error, RuntimeError) and re.search("gloo|nccl|connection (closed|reset)", str(error), re.I):
                reason = str(error).splitlines()[0][:200]
                _end(InputError(f"another rank has ended or cannot be reached ({reason}): resume from last.ckpt"))
            if not type(error).__module__.startswith("wandb"):
                raise
            _end(InputError(f"wandb: {error}; run `wandb login`, or set logger.wandb.offline=true"))

    return guarded


def _remove_if_nothing_began() -> None:
    """Remove a run folder in which nothing but Hydra's own files was left."""
    if any(os.environ.get(rank, "0") != "0" for rank in ("LOCAL_RANK", "SLURM_PROCID")):
        return
    if not HydraConfig.initialized() or not HydraConfig.get().runtime.output_dir:
        return
    folder = Path(HydraConfig.get().runtime.output_dir)
    own = {".hydra", "config.yaml", f"{HydraConfig.get().job.name}.log"}
    if folder.is_dir() and {path.name for path in folder.iterdir()} <= own:
        shutil.rmtree(folder, ignore_errors=True)


def _end(error: BaseException) -> NoReturn:
    """Say in one line why the run ended, and exit."""
    _remove_if_nothing_began()
    if not isinstance(error, Stopped | KeyboardInterrupt):
        print(f"error: {explain(error)}", file=sys.stderr)
        sys.exit(1)
    status = 130
    message = str(error) or "stopped by Ctrl-C"
    if isinstance(error, Stopped):
        status = error.status
        if error.number in ENDING and batch_job():
            message, status = _requeued(message, status)
    if os.environ.get("LOCAL_RANK", "0") != "0":
        # Another status would have Lightning or torchrun kill the first rank before it has closed its logs.
        status = 0
    elif first_task():
        print(flush=True)  # the progress bar's line ends
        log.info("%s", message)
    sys.exit(status)


def _requeued(message: str, status: int) -> tuple[str, int]:
    """What to say and the exit status after putting a stopped job back into the queue."""
    for number in ENDING:
        # The requeuing itself ends this process by these, which has a log or two to close.
        signal.signal(number, signal.SIG_IGN)
    if not first_task():
        return message, 0  # another status would let srun end the first task before it has requeued
    reason = requeue()
    if reason:
        return f"{message} (not requeued: {reason})", status
    return f"{message.partition(';')[0]}; the job is requeued and goes on from there by itself", 0


def explain(error: BaseException) -> str:
    """One line: our own words if bad input lies behind the error, otherwise its text and its root's."""
    chain = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    ours = [e for e in chain if isinstance(e, InputError)]
    text = str(ours[-1]) if ours else str(error)
    if not ours and str(chain[-1]) not in text:
        text += f" ({chain[-1]})"
    text = text.partition("Config search path:")[0]
    unknown = re.search(r"Could not override '([^']+)'.*not in struct", text, re.DOTALL)
    if unknown and unknown[1] == "trainer.accumulate_grad_batches":
        return "trainer.accumulate_grad_batches follows from data.global_batch and data.batch_size: set those"
    target = re.search(r"Error locating target '([^']+)'", text)
    if target:
        return f"{target[1]} cannot be imported ({chain[-1]}): is its folder in PYTHONPATH?"
    if unknown:
        return f"{unknown[1]} is no key of the configuration: --cfg job prints all that there are"
    return " ".join(text.split())


def quote_paths(arguments: list[str]) -> list[str]:
    """Quote the values of path-like keys, so that `ckpt=a=b (1).ckpt` means what it says, and make paths
    absolute, so that a checkpoint finds its data from any folder."""
    quoted = []
    for argument in arguments:
        key, _, value = argument.partition("=")
        plain = value and (value[0] not in "'\"[{" or os.path.exists(value)) and "${" not in value
        if TEXT_KEYS.match(argument) and plain and value.lower() not in ("null", "true", "false"):
            if PATH_KEYS.match(argument) and not (HUB_KEYS.match(argument) and is_hub_id(value)):
                value = os.path.abspath(os.path.expanduser(value))
            argument = f"{key}={_quoted(value)}"
        elif LIST_KEYS.match(argument) and LIST.match(value):
            argument = f"{key}=[{','.join(_quoted(entry.strip()) for entry in value[1:-1].split(','))}]"
        quoted.append(argument)
    return quoted


def _quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def resumed(arguments: list[str]) -> list[str]:
    """With `ckpt=`, begin with the overrides that the checkpoint's run was started with, and go on in its
    folder; what is typed now comes later and wins."""
    typed = {argument.partition("=")[0].lstrip("+"): argument.partition("=")[2] for argument in arguments}
    if typed.get("ckpt", "null") in ("", "null"):
        return arguments
    path = Path(typed["ckpt"].strip("'").replace("\\'", "'").replace("\\\\", "\\"))
    from eomt.weights.checkpoint import FORMAT, PREVIOUS, read_checkpoint

    # Should last.ckpt be damaged, the run goes on from the one before it, as it was started.
    for candidate in (path, path.with_name(PREVIOUS)) if path.name == "last.ckpt" else (path,):
        try:
            saved = read_checkpoint(candidate, mmap=True)[FORMAT].get("overrides", [])
            break
        except InputError:
            continue
    else:
        # Weights from elsewhere, which carry no run to go on with; or damaged, which is said when they are read.
        return arguments
    if any(o.partition("=")[0].lstrip("+") in ("task", "experiment") for o in arguments):
        # Another task or experiment is another configuration; values of the old one would not fit it.
        saved = []
    foreign = [o for o in saved if _names_foreign_code(o) and o.partition("=")[0].lstrip("+") not in typed]
    if foreign:
        raise InputError(f"ckpt= would run code of someone's own: if you trust it, type {' '.join(foreign)} again")
    keys = [o.partition("=")[0].lstrip("+~") for o in saved]
    # What is typed now takes the place of what was typed then; another group, of all values within the old one.
    saved = [o for o, key in zip(saved, keys, strict=True) if key not in typed and key.split(".")[0] not in typed]
    folder = path.absolute().parent.parent
    if path.parent.name == "checkpoints" and "hydra.run.dir" not in typed:
        arguments = [*arguments, *quote_paths([f"hydra.run.dir={folder}"])]
    return saved + arguments


def _names_foreign_code(override: str) -> bool:
    from eomt.weights.checkpoint import OWN_CODE

    key, _, value = override.partition("=")
    value = value.strip("'\"")
    if key.lstrip("+") == "kind":
        return "." in value
    return "_target_" in override and not (key.endswith("_target_") and value.startswith(OWN_CODE))
