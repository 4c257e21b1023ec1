"""Suggestions for a key that does not exist, or a word that is not key=value."""

from __future__ import annotations

import difflib
import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from eomt.cli.meanings import CONFIGS, GROUPS, keys_of
from eomt.cli.settings import WITHOUT_RUN, Scored
from eomt.errors import InputError
from eomt.weights.hub import SUFFIXES, run_checkpoint

FOLDER = "hydra.run.dir"
"""Hydra's key of the run folder."""

# The names that other tools have for a key; where a command has several of these keys, all are named. These keys are
# also the most used.
PEERS = {
    "ckpt": "checkpoint checkpoint_path ckpt_path model model_path model_name_or_path resume resume_from_checkpoint",
    "weights": "model_name_or_path pretrained_model load_from init_from",
    "images": "source input inputs image img folder path file files",
    "out": "output output_dir out_dir save_dir save_path project name dest",
    FOLDER: "output output_dir out_dir out save_dir save_path project name work_dir run_dir",
    "overwrite": "exist_ok force overwrite_output_dir",
    "threshold": "conf confidence conf_thres score_thr score_threshold min_score",
    "format": "fmt type to",
    "dynamic_batch": "dynamic dynamic_axes",
    "batch_size": "batch bs",
    "num_workers": "workers",
    "precision": "amp half fp16 bf16 dtype torch_dtype",
    "save_predictions": "save save_json save_txt",
    "pictures": "plots visualize vis show",
    "seed": "random_state manual_seed",
    "task": "dataset dataset_name",
    "logger": "report_to tracker wandb tensorboard",
    "compile": "torch_compile",
    "activation_checkpointing": "gradient_checkpointing grad_checkpointing",
    "data.root": "data_dir data_root data_path dataset_dir dataset_path path root",
    "data.batch_size": "batch bs per_device_train_batch_size train_batch_size samples_per_gpu",
    "data.eval_batch_size": "per_device_eval_batch_size val_batch_size test_batch_size",
    "data.global_batch": "accumulate accumulate_grad_batches gradient_accumulation_steps nbs total_batch_size",
    "data.image_size": "imgsz img_size img input_size crop_size resolution size",
    "data.num_workers": "workers dataloader_num_workers",
    "data.classes": "names nc num_classes class_names id2label",
    "data.scale_range": "scale scale_jitter jitter",
    "data.train.images": "img_dir image_dir train_dir",
    "data.train.annotations": "ann_file annotation_file",
    "data.augmentations": "augment aug augmentation transforms",
    "data.max_images": "fraction subset max_train_samples",
    "model.backbone": "arch architecture encoder",
    "model.pretrained": "pretrained_backbone",
    "model.freeze_backbone": "freeze freeze_encoder",
    "model.lora.rank": "lora lora_r lora_rank",
    "optim.lr": "learning_rate lr0 base_lr",
    "optim.warmup_steps": "warmup warmup_epochs warmup_ratio warmup_iters",
    "trainer.max_epochs": "epochs epoch num_epochs num_train_epochs n_epochs",
    "trainer.max_steps": "steps num_steps iterations iters max_iters",
    "trainer.devices": "device gpu gpus num_gpus n_gpu nproc_per_node",
    "trainer.accelerator": "device",
    "trainer.num_nodes": "nodes nnodes",
    "trainer.precision": "amp half fp16 bf16 mixed_precision",
    "trainer.gradient_clip_val": "clip clip_grad grad_clip max_grad_norm",
    "trainer.val_check_interval": "eval_steps val_interval eval_interval",
    "trainer.log_every_n_steps": "logging_steps log_interval",
    "callbacks.early_stopping.patience": "early_stopping",
    "callbacks.ema.decay": "ema ema_decay",
    "callbacks.last.every_n_steps": "save_steps save_period save_interval every_n_train_steps",
    "postprocess.score_threshold": "conf confidence conf_thres score_thr threshold",
    "postprocess.overlap_threshold": "iou iou_thres overlap_mask_area_threshold",
    "postprocess.top_k": "max_det max_detections max_per_image",
}

# Hydra's flags, and those that take a value.
_FLAGS = ("--hydra-help", "--version", "--resolve", "--run", "-r", "--multirun", "-m", "--shell-completion", "-sc")
_VALUE_FLAGS = ("--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd")
_VALUE_FLAGS += ("--experimental-rerun", "--info", "-i")


def is_flag(word: str, before: str) -> bool:
    """True for a flag of Hydra's, and for the value of one that stands before it."""
    return word in _FLAGS or word.partition("=")[0] in _VALUE_FLAGS or before in _VALUE_FLAGS


def unknown(key: str, command: str) -> str:
    """The line for a key that a command has not: which was meant, as far as can be told."""
    if (command, key) == ("eval", "split"):
        return "split is no key of eval.py, which scores the set that data.val names: data.val.images= chooses another"
    found, known = nearest(key, command), keys_of("train") | keys_of(command)
    training = nearest(key, "train")[:1] if command == "eval" and not found else []
    if training:
        return f"{key} is no key of eval.py: {training[0]} is one of training"
    if command in ("train", "check_data") and key in known:
        return f"{key} is a key of other tasks or choices ({known[key].meaning}): --help all lists all"
    hint = f": did you mean {' or '.join(found)}" if found else ""
    if len(found) == 1 and found[0] in known:
        hint += f" ({known[found[0]].meaning})"
    return f"{key} is no key of {command}.py{hint}{'?' if hint else ':'} --help all lists all"


def in_our_words(error: BaseException, command: str) -> BaseException:
    """The error, or in its place one that names what was meant where Hydra knows no such key or option."""
    text = str(error)
    option = re.search(r"Could not find '([^']+)/([^']+)'.*Available options in '[^']+':((\n\t\S+)+)", text, re.DOTALL)
    if option:
        group, typed, options = option[1], option[2], option[3].split()
        short = typed.lower().replace("vit", "").strip("-_ ")
        alike = [name for name in options if name in typed or typed in name]
        alike = alike or [name for name in options if short and name.startswith(short)]
        alike = alike or difflib.get_close_matches(typed, options, 3, 0.5)
        hint = f"did you mean {' or '.join(alike[:3])}? All: " if alike else "choose one of "
        return InputError(f"{group}={typed} is not there: {hint}{', '.join(options)}")
    key = re.search(r"Could not override '([^']+)'", text)
    return InputError(unknown(key[1], command)) if key else error


def nearest(key: str, command: str) -> list[str]:
    """The keys of a command, three at most, of which one may be meant: of that name, of a peer's, or spelled alike."""
    known = _known(command)
    last = key.rpartition(".")[2].lower()
    peers = [name for name, words in PEERS.items() if name in known and last in words.split()]
    same = [name for name in known if name.rpartition(".")[2] == last] or [n for n in known if last in n.split(".")]
    if peers or same:
        return [*peers, *sorted(same, key=lambda name: name.count("."))[:1]][:3]
    ends = {name.rpartition(".")[2]: name for name in reversed(known)}
    alike = difflib.get_close_matches(key, known, 3, 0.8)
    return alike or [ends[end] for end in difflib.get_close_matches(last, ends, 3, 0.75)]


def flag_fault(flag: str, rest: Sequence[str]) -> str:
    """The fault of a flag of Hydra's, or of its value; "" if nothing is."""
    if flag in ("--cfg", "-c") and rest[:1] not in (["job"], ["hydra"], ["all"]):
        return f"{flag} takes what is to be printed: --cfg job, the settings; or hydra, or all"
    return f"{flag} takes a value" if flag in _VALUE_FLAGS[:-2] and not rest else ""


def fault_of(command: str, word: str, rest: Sequence[str]) -> str:
    """The fault of an argument that is not key=value, and the way to type it; "" if nothing is."""
    key, equals, value = word.partition("=")
    following = rest[0] if rest else ""
    separate = bool(following) and not following.startswith("-") and "=" not in following
    if word.startswith("-"):
        return f"{word}: keys are typed without dashes: {_typed(command, key, value or following * separate)}"
    if not equals and following.startswith("="):
        joined = word + "".join(rest[: 2 if following == "=" else 1])
    elif equals and not value and separate:
        joined = word + following
    else:
        joined = re.sub(r"\s*=\s*", "=", word, count=1)
    if joined != word:
        return f"{joined.replace('=', ' = ', 1)}: type it without spaces: {shlex.quote(joined)}"
    if separate and _is_open(value):
        end = next((n for n in range(1, len(rest) + 1) if not _is_open(" ".join([value, *rest[:n]]))), len(rest))
        return f"{word}: a space ends an argument, quote it: {shlex.quote(' '.join([word, *rest[:end]]))}"
    return "" if (equals and key) or word.startswith("~") else f"{word or repr(word)}: {_meant(command, word)}"


def _known(command: str) -> list[str]:
    """All that can be typed for a command."""
    names = list(keys_of(command))
    if command not in WITHOUT_RUN:
        names += [name for name in (*GROUPS, FOLDER, *keys_of("train")) if name not in names]
    if command == "eval":
        shared = {*keys_of(command), *GROUPS, FOLDER}
        names = [name for name in names if name in shared or name.partition(".")[0] in Scored.model_fields]
    return [*names, *(name.replace(".train.", ".val.") for name in names if name.startswith("data.train."))]


def _is_open(value: str) -> bool:
    """True if brackets are opened that are not closed."""
    return any(value.count(a) > value.count(b) for a, b in ("[]", "{}"))


def _typed(command: str, key: str, value: str) -> str:
    """The way to type a key that is called so, with its value if there is one."""
    key = key.lstrip("-").replace("-", "_")
    known = keys_of(command) | keys_of("train")
    key = key if key in (*known, *GROUPS) else [*nearest(key, command), key][0]
    switch = key in known and known[key].default in ("true", "false")
    return shlex.quote(f"{key}={value}") if value else f"{key}={'true' if switch else 'VALUE'}"


def _meant(command: str, word: str) -> str:
    """The way to type a word that has no key."""
    options = [group for group in GROUPS if os.path.isfile(f"{CONFIGS}/{group}/{word}.yaml")]
    if word in keys_of(command):
        typed = _typed(command, word, "")
    elif options and command not in WITHOUT_RUN:
        typed = f"{options[0]}={word}"
    elif word.endswith(SUFFIXES) or run_checkpoint(Path(word)) != Path(word):
        typed = shlex.quote(f"ckpt={word}")
    elif command == "predict" and (os.path.exists(word) or "." in word):
        typed = shlex.quote(f"images={word}")
    elif command != "export" and os.path.isdir(word):
        typed = shlex.quote(f"data.root={word}")
    else:
        return "arguments are key=value; --help all lists the keys"
    return f"arguments are key=value: {typed}?"
