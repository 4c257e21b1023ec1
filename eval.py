"""Evaluate a checkpoint on its validation set.

python eval.py ckpt=RUN/checkpoints/last.ckpt
python eval.py ckpt=RUN/checkpoints/best.ckpt data.root=DIR save_predictions=true
"""

from omegaconf import DictConfig, OmegaConf

from eomt.errors import InputError
from launch import command, log


def main(cfg: DictConfig) -> None:
    """Score a checkpoint; what is not null in `cfg` takes the place of the checkpoint's own settings."""
    from assemble import build_data, build_trainer, load_module
    from eomt.callbacks import MetricsFile, PredictionPictures, Progress, SavePredictions
    from eomt.checkpoint import FORMAT, check_same_classes, foreign_code, read_checkpoint

    if cfg.ckpt is None:
        raise InputError("ckpt is not set: give a checkpoint, as in ckpt=RUN/checkpoints/best.ckpt")
    checkpoint = read_checkpoint(cfg.ckpt)
    foreign = foreign_code(checkpoint)
    if foreign and not cfg.trust_code:
        raise InputError(f"ckpt= would run {', '.join(foreign)}: if you trust it, say so by trust_code=true")
    # Where it was trained says nothing of where it is evaluated.
    here = {"trainer": {"accelerator": "auto", "strategy": "auto", "devices": "auto", "num_nodes": 1}}
    given = _given(OmegaConf.to_container(cfg, resolve=True))
    settings = OmegaConf.merge(checkpoint[FORMAT]["config"], here, given)
    module = load_module(checkpoint, settings)
    data = build_data(settings)
    check_same_classes(module.classes, data.val_classes)
    callbacks = [Progress(), MetricsFile(cfg.run_folder), PredictionPictures(cfg.run_folder, cfg.pictures)]
    if cfg.save_predictions:
        callbacks.append(SavePredictions(f"{cfg.run_folder}/predictions"))
    trainer = build_trainer(settings, callbacks, False)
    trainer.validate(module, data, verbose=False)
    if trainer.is_global_zero:
        log.info("%s", module.task.table(module.scores))
        log.info("results: %s", cfg.run_folder)


def _given(values: dict) -> dict:
    """The entries that are not null, at any depth."""
    nested = {k: _given(v) if isinstance(v, dict) else v for k, v in values.items()}
    return {k: v for k, v in nested.items() if v is not None and v != {}}


if __name__ == "__main__":
    command("eval", main)
