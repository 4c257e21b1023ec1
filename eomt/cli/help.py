"""The page of `--help` of a command, and the key that was meant by one that there is not."""

from __future__ import annotations

import difflib
import re
import shutil
import textwrap
from collections.abc import Iterator
from pathlib import Path

from eomt.cli.meanings import CONFIGS, keys_of
from eomt.cli.settings import WITHOUT_RUN, Scored
from eomt.errors import InputError

GROUPS = {
    "task": "data and recipe",
    "model": "the network",
    "experiment": "a published recipe, or small_set for your own data",
    "logger": "where numbers are logged",
    "debug": "a short run that tests the set-up",
}
"""The groups of train.py's configuration from which a file is chosen, and what for."""

FOLDER = "hydra.run.dir"
"""Hydra's key of the run folder."""

# The names that other tools have for a key; where a command has several of these keys, all are named. These keys are
# also the most used.
_PEERS = {
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


# Files of a group that the short page of `--help` names one by one.
_MANY = 12


def help_of(command: str, about: str, words: str = "") -> str:
    """The page of `--help`: what a command does, examples, the groups of its configuration, and its keys.

    Args:
        command: its name, such as "train".
        about: what it does, and examples: the docstring of its script.
        words: "" shows the keys that are most used, "all" all, and any other word the keys whose names have it.
    """
    own = keys_of(command)
    shown = {k.name: k for k in own.values() if _is_shown(k.name, command, words)}
    if not shown:
        return f"no key of {command}.py has {words} in its name"
    rows = list(_rows({f"{key.name}={key.default}": key.meaning for key in shown.values()}))
    if words not in ("", "all"):
        return "\n".join(rows)
    lines = [about.strip(), ""]
    if command in ("train", "check_data"):
        lines += ["Choices, as in task=coco_panoptic:", *_rows({f"{g}=": _options(g, words) for g in GROUPS}), ""]
    part = f"The {len(shown)} most used of {len(own)} keys" if len(shown) < len(own) else "Keys"
    lines += [f"{part} and their defaults:", *rows]
    if len(shown) < len(own):
        lines.append("--help all shows all keys, --help WORD those with WORD in their names, as --help lora.")
    if command == "check_data":
        lines.append("and the keys of train.py: python train.py --help")
    if command == "eval":
        sections = ", ".join(name for name in Scored.model_fields)
        lines.append(f"and these of train.py, which go over the checkpoint's: {sections}; python train.py --help")
    if command not in WITHOUT_RUN:
        lines.append(f"{FOLDER}=DIR writes into DIR instead of below runs/.")
    lines += ["", "--cfg job prints all settings instead of running; --multirun runs each of key=a,b in turn."]
    return "\n".join(lines)


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
    peers = [name for name, words in _PEERS.items() if name in known and last in words.split()]
    same = [name for name in known if name.rpartition(".")[2] == last] or [n for n in known if last in n.split(".")]
    if peers or same:
        return [*peers, *sorted(same, key=lambda name: name.count("."))[:1]][:3]
    ends = {name.rpartition(".")[2]: name for name in reversed(known)}
    alike = difflib.get_close_matches(key, known, 3, 0.8)
    return alike or [ends[end] for end in difflib.get_close_matches(last, ends, 3, 0.75)]


def _known(command: str) -> list[str]:
    """All that can be typed for a command."""
    names = list(keys_of(command))
    if command not in WITHOUT_RUN:
        names += [name for name in (*GROUPS, FOLDER, *keys_of("train")) if name not in names]
    if command == "eval":
        shared = {*keys_of(command), *GROUPS, FOLDER}
        names = [name for name in names if name in shared or name.partition(".")[0] in Scored.model_fields]
    return [*names, *(name.replace(".train.", ".val.") for name in names if name.startswith("data.train."))]


def _is_shown(name: str, command: str, words: str) -> bool:
    """True if a page of `--help` has a key: of train.py's many, the short page has those that other tools have, too."""
    return words == "all" or (words in name if words else command != "train" or name in _PEERS)


def _options(group: str, words: str) -> str:
    """The purpose of a group, and its files; of many, the short page has the first."""
    names = sorted(path.stem for path in Path(CONFIGS, group).glob("*.yaml"))
    if words != "all" and len(names) > _MANY:
        names = [*names[:3], f"and {len(names) - 3} more"]
    return f"{GROUPS[group]}: {', '.join(names)}"


def _rows(rows: dict[str, str]) -> Iterator[str]:
    """Lines of a name and its meaning, wrapped to the terminal."""
    width = max(60, shutil.get_terminal_size((120, 0)).columns)
    indent = min(40, 4 + max(map(len, rows)))
    for name, meaning in rows.items():
        start = f"  {name}".ljust(indent - 2) + "  "
        yield textwrap.fill(start + meaning, width, subsequent_indent=" " * indent, break_on_hyphens=False)
