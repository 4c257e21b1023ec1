"""Segmentation of image files with progress and counts, as predict.py runs it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from concurrent.futures import Executor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from eomt.custom_classes import read_classes
from eomt.errors import InputError
from eomt.files import locked
from eomt.inference.find_images import find_images
from eomt.inference.predict_files import check_out, predict_files, processes_beside, writing_processes
from eomt.inference.segmenter import Segmenter

log = logging.getLogger("eomt")

MANY_IMAGES = 32
"""Fewer are written by threads: on a GPU's machine, processes are started for more."""


def predict(cfg: Mapping[str, Any]) -> None:
    """Segment image files.

    Args:
        cfg: predict.py's checked configuration.

    Raises:
        InputError: at the end, if images could not be read and were skipped; at once for any other bad input.
    """
    with ExitStack() as stack:
        stack.enter_context(locked(cfg["out"]))
        check_out(cfg["out"], cfg["overwrite"])
        folder, files = find_images(cfg["images"], cfg["out"])
        processes, count = None, processes_beside(cfg["num_workers"])
        if len(files) >= MANY_IMAGES and cfg["device"] != "cpu" and torch.cuda.is_available():
            processes = writing_processes(count)
        if processes is not None:
            stack.callback(processes.shutdown, cancel_futures=True)
        _predict(cfg, folder, files, processes, count)


def load_segmenter(cfg: Mapping[str, Any], what: str) -> Segmenter:
    """Load the segmenter of a checked configuration, and say `what` it segments on which device."""
    segmenter = Segmenter.load(
        cfg["ckpt"],
        cfg["device"],
        cfg["precision"],
        cfg["trust_code"],
        unpadded=cfg["unpadded"],
        compile=cfg["compile"],
        tile=cfg.get("tile", False),
        tta=cfg.get("tta"),
        max_pixels=cfg.get("max_pixels"),
        kind=cfg["kind"],
        classes=None if cfg["classes"] is None else read_classes(cfg["classes"], Path.cwd(), key="classes"),
        network=cfg["network"],
        backbone=cfg["delta_base"],
        **cfg["postprocess"],
    )
    kind, device, precision = segmenter.task.kind, segmenter.device, segmenter.precision
    log.info("%s segmentation of %s on %s, precision %s", kind, what, device, precision)
    return segmenter


def _predict(cfg: Mapping[str, Any], folder: Path, files: list[Path], processes: Executor | None, count: int) -> None:
    segmenter = load_segmenter(cfg, "1 image" if len(files) == 1 else f"{len(files)} images")
    skipped = 0
    options = {key: cfg[key] for key in ("batch_size", "num_workers", "threshold")}
    options |= {"processes": processes, "num_processes": count}
    results = predict_files(segmenter, folder, files, cfg["out"], **options)
    with tqdm(results, total=len(files), unit="image", disable=None) as done:
        for _, error in done:
            if error is not None:
                skipped += 1
                log.warning("skipped: %s", error)
    log.info("segmented: %d, skipped: %d, results: %s", len(files) - skipped, skipped, cfg["out"])
    if skipped:
        raise InputError(f"{skipped} of {len(files)} images could not be read and were skipped")
