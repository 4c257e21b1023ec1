"""Train EoMT.

python train.py                                            the built-in shapes, on any machine
python train.py task=coco_panoptic data.root=DIR           the published recipe, one GPU
python train.py task=coco_panoptic data.root=DIR trainer.devices=4
python train.py ckpt=RUN/checkpoints/last.ckpt             go on with a run
"""

import lightning
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from launch import build_data, build_module, build_trainer, command, log


def main(cfg: DictConfig) -> None:
    """Train and validate under a composed configuration."""
    lightning.seed_everything(cfg.seed, verbose=False)
    data = build_data(cfg)
    module = build_module(cfg, data.classes, data.image_size)
    if cfg.prefetch:
        if module.pretrained:
            module.network.backbone.load_pretrained(module.pretrained)
        log.info("data index and pretrained weights are in the cache")
        return
    OmegaConf.save(cfg, f"{cfg.run_folder}/config.yaml", resolve=True)
    callbacks = [instantiate(callback) for callback in cfg.callbacks.values() if callback]
    loggers = [instantiate(logger) for logger in (cfg.logger or {}).values()]
    trainer = build_trainer(cfg, data, callbacks, loggers or False)
    trainer.fit(module, data, ckpt_path=cfg.ckpt)
    log.info("run folder: %s", cfg.run_folder)


if __name__ == "__main__":
    command("train", main)
