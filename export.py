"""Write a trained network in a form that others read.

python export.py ckpt=RUN out=DIR precision=16                           ours, of the best checkpoint
python export.py ckpt=RUN/checkpoints/last.ckpt format=hf out=DIR        for transformers
python export.py ckpt=RUN format=onnx out=DIR dynamic_batch=true images=photos
python export.py ckpt=RUN format=torch_export out=DIR batch_size=4
python export.py ckpt=DIR/pytorch_model.bin kind=semantic classes=classes.txt format=hf out=DIR
"""

from pathlib import Path

from omegaconf import DictConfig

from eomt.cli.main import checked, command, log


def main(cfg: DictConfig) -> None:
    """Export the weights that `cfg` names.

    Raises:
        InputError: for bad input, or if an exported graph differs from PyTorch.
    """
    cfg = checked("export", cfg)
    from eomt.custom_classes import read_classes
    from eomt.export.export import check_request, export, metrics_of
    from eomt.inference.predict_files import find_images
    from eomt.tasks import task_of
    from eomt.weights.load import read_weights

    # Before the weights are read, which may take long.
    request = {key: cfg[key] for key in ("format", "out", "overwrite")} | {"precision": str(cfg["precision"])}
    request["images"] = [] if cfg["images"] is None else find_images(cfg["images"], cfg["out"])[1]
    check_request(**request)
    if cfg["kind"] is not None:
        task_of(cfg["kind"])
    chosen = {"kind": cfg["kind"], "network": cfg["network"], "backbone": cfg["delta_base"]}
    if cfg["classes"] is not None:
        chosen["classes"] = read_classes(cfg["classes"], Path.cwd(), key="classes")
    weights = read_weights(cfg["ckpt"], **chosen)
    batch = None if cfg["dynamic_batch"] else cfg["batch_size"]
    check = export(weights, batch=batch, metrics=metrics_of(cfg["ckpt"]), **request)
    if check is not None:
        log.info("compared with PyTorch: %s", check)
    log.info("%s: %s", cfg["format"], cfg["out"])


if __name__ == "__main__":
    command("export", main)
