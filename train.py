"""Train EoMT.

python train.py                                            the built-in shapes, on any machine
python train.py task=coco_panoptic data.root=DIR           the published recipe, one GPU
python train.py task=coco_panoptic data.root=DIR trainer.devices=4
python train.py ckpt=RUN/checkpoints/last.ckpt             go on with a run
"""

from omegaconf import DictConfig, OmegaConf

from launch import command, log


def main(cfg: DictConfig) -> None:
    """Train and validate under a composed configuration."""
    import lightning
    from hydra.utils import instantiate

    from build import build_data, build_module, build_trainer
    from eomt.files import replacing

    lightning.seed_everything(cfg.seed, verbose=False)
    data = build_data(cfg)
    module = build_module(cfg, data.classes, data.image_size)
    if cfg.prefetch:
        data.prepare_data()
        if module.pretrained:
            module.network.backbone.load_pretrained(module.pretrained)
        log.info("the data's index and the pretrained weights are in the cache")
        return
    callbacks = [instantiate(callback) for callback in cfg.callbacks.values() if callback]
    loggers = [instantiate(logger) for logger in (cfg.logger or {}).values()]
    trainer = build_trainer(cfg, data, callbacks, loggers or False)
    if trainer.is_global_zero:
        with replacing(f"{cfg.run_folder}/config.yaml") as temporary:
            OmegaConf.save(cfg, temporary, resolve=True)
    trainer.fit(module, data, ckpt_path=cfg.ckpt)
    log.info("run folder: %s", cfg.run_folder)


if __name__ == "__main__":
    command("train", main)
