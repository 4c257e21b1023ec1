"""Export of trained weights, as export.py runs it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from eomt.custom_classes import read_classes
from eomt.errors import InputError
from eomt.export import export as exporting
from eomt.export.graph import Run
from eomt.export.hub import check_push, push
from eomt.inference.find_images import find_images
from eomt.tasks import task_of
from eomt.weights.load import read_weights

log = logging.getLogger("eomt")


def export(cfg: Mapping[str, Any]) -> None:
    """Export weights.

    Args:
        cfg: export.py's checked configuration.

    Raises:
        InputError: for bad input, or if an exported graph differs from PyTorch.
    """
    # Before the weights are read, which may take long.
    request = {key: cfg[key] for key in ("format", "out", "overwrite", "postprocess")}
    request["precision"] = str(cfg["precision"])
    request["images"] = [] if cfg["images"] is None else find_images(cfg["images"], cfg["out"])[1]
    folder = exporting.check_request(**request)
    if cfg["score"] and cfg["format"] in ("eomt", "hf", "original"):
        raise InputError(f"score=true scores graphs, not format={cfg['format']}: eval.py scores that")
    if cfg["push"] is not None:
        check_push(cfg["push"], cfg["public"], cfg["overwrite"])
    if cfg["kind"] is not None:
        task_of(cfg["kind"])
    chosen = {"kind": cfg["kind"], "network": cfg["network"], "backbone": cfg["delta_base"]}
    if cfg["classes"] is not None:
        chosen["classes"] = read_classes(cfg["classes"], Path.cwd(), key="classes")
    weights = read_weights(cfg["ckpt"], **chosen)
    batch = None if cfg["dynamic_batch"] else cfg["batch_size"]
    more = {"metrics": exporting.metrics_of(cfg["ckpt"]), "name": cfg["push"]}
    score = _scorer(cfg) if cfg["score"] else None
    check = exporting.export(weights, batch=batch, score=score, **more, **request)
    if check is not None:
        what = "model.onnx on the CPU, from which model.engine is built, " if cfg["format"] == "tensorrt" else ""
        log.info("%scompared with PyTorch: %s", what, check)
    log.info("%s: %s", cfg["format"], cfg["out"])
    if cfg["push"] is not None:
        log.info("pushed: %s", push(folder, cfg["push"], cfg["public"], exporting.FILES))


def _scorer(cfg: Mapping[str, Any]) -> Callable[[Run], dict[str, float]]:
    """A function that scores another, from inputs to logits, on the validation set that the checkpoint names."""
    try:
        from eomt.cli.evaluate import scorer
    except ImportError as error:
        raise InputError(f"score=true needs the checkout and {error.name}: pip install -e '.[train]'") from error
    score = scorer(cfg["ckpt"], cfg["delta_base"])

    def logged(run: Run) -> dict[str, float]:
        scores = score(run)
        log.info("scored: %s", ", ".join(f"{name} {value:.2f}" for name, value in scores.items()))
        return scores

    return logged
