"""Train EoMT.

python train.py                                            the built-in shapes, on any machine
python train.py task=coco_panoptic data.root=DIR           the published recipe, one GPU
python train.py task=coco_panoptic data.root=DIR trainer.devices=4
python train.py ckpt=RUN/checkpoints/last.ckpt             go on with a run
python train.py weights=tue-mps/coco_panoptic_eomt_large_640 task=ade20k_panoptic data.root=DIR
"""

from omegaconf import DictConfig, OmegaConf

from eomt.cli.main import command, log


def main(cfg: DictConfig) -> None:
    """Train and validate under a composed configuration."""
    from eomt.training.stop import StopSignals

    with StopSignals() as signals:
        _train(cfg, signals)


def _train(cfg: DictConfig, signals) -> None:
    import lightning

    from datasets.module import accumulation
    from eomt.cli.build import (
        begin_with,
        build_callbacks,
        build_data,
        build_loggers,
        build_module,
        build_trainer,
        check_numbers,
        compile_network,
        starting_point,
        typed_overrides,
    )
    from eomt.cli.resume import choose_checkpoint, continue_logs
    from eomt.files import replacing
    from eomt.training.callbacks import WeightAverage
    from eomt.training.checkpoint import LastCheckpoint
    from eomt.weights.checkpoint import check_same_model, check_same_training, read_checkpoint

    check_numbers(cfg)
    choose_checkpoint(cfg, typed_overrides())
    data = build_data(cfg)
    lightning.seed_everything(cfg.seed, verbose=False)
    module = build_module(cfg, data.classes, data.image_size)
    resume, weights = starting_point(cfg)
    if weights:
        begin_with(module, weights, cfg.strict)
    if (module.freeze or module.lora) and not (module.pretrained or weights or resume):
        log.warning(
            "note: the frozen part of the backbone is random: begin with weights=, or with model.pretrained=true"
        )
    if cfg.prefetch:
        data.setup("fit")
        if module.pretrained:
            module.network.backbone.load_pretrained(module.pretrained)
        log.info("the data's index and the pretrained weights are in the cache")
        return
    callbacks = build_callbacks(cfg)
    for callback in callbacks:
        if isinstance(callback, LastCheckpoint):
            callback.signals = signals
    if resume:
        continue_logs(cfg)
    loggers = build_loggers(cfg)
    trainer = build_trainer(cfg, callbacks, loggers or False)
    trainer.accumulate_grad_batches = accumulation(data.global_batch, data.batch_size, trainer.world_size)
    if resume:
        checkpoint = read_checkpoint(resume, mmap=True)
        check_same_model(checkpoint, cfg.kind, data.classes, module.network.spec)
        check_same_training(checkpoint, module.learns, any(isinstance(c, WeightAverage) for c in callbacks))
    if trainer.is_global_zero:
        with replacing(f"{cfg.run_folder}/config.yaml") as temporary:
            OmegaConf.save(cfg, temporary, resolve=True)
    compile_network(module, trainer, cfg.compile)
    trainer.fit(module, data, ckpt_path=resume)
    if module.validated_at != trainer.global_step and trainer.limit_val_batches and not trainer.fast_dev_run:
        # The run ended within an epoch, or in one that is not validated.
        trainer.validate(module, data, verbose=False)
    if trainer.is_global_zero:
        if module.scores:
            log.info("%s", module.task.table(module.scores))
        log.info("run folder: %s", cfg.run_folder)


if __name__ == "__main__":
    command("train", main)
