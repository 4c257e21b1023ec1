"""Export of trained weights, as export.py runs it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eomt.custom_classes import read_classes
from eomt.export import export as exporting
from eomt.inference.predict_files import find_images
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
    request = {key: cfg[key] for key in ("format", "out", "overwrite")} | {"precision": str(cfg["precision"])}
    request["images"] = [] if cfg["images"] is None else find_images(cfg["images"], cfg["out"])[1]
    exporting.check_request(**request)
    if cfg["kind"] is not None:
        task_of(cfg["kind"])
    chosen = {"kind": cfg["kind"], "network": cfg["network"], "backbone": cfg["delta_base"]}
    if cfg["classes"] is not None:
        chosen["classes"] = read_classes(cfg["classes"], Path.cwd(), key="classes")
    weights = read_weights(cfg["ckpt"], **chosen)
    batch = None if cfg["dynamic_batch"] else cfg["batch_size"]
    check = exporting.export(weights, batch=batch, metrics=exporting.metrics_of(cfg["ckpt"]), **request)
    if check is not None:
        log.info("compared with PyTorch: %s", check)
    log.info("%s: %s", cfg["format"], cfg["out"])
