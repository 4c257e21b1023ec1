"""Train EoMT.

python train.py                                            the built-in shapes, on any machine
python train.py task=coco_panoptic data.root=DIR           the published recipe, one GPU
python train.py task=coco_panoptic data.root=DIR trainer.devices=4
python train.py ckpt=RUN                                   resume a run where it ended
python train.py weights=tue-mps/coco_panoptic_eomt_large_640 task=ade20k_panoptic data.root=DIR
"""

from omegaconf import DictConfig

from datasets.layout.find import find_layout
from eomt.cli.folders import held
from eomt.cli.main import checked, command
from eomt.training.stop import listening


def main(cfg: DictConfig) -> None:
    """Train and validate under a composed configuration, see `eomt.cli.fit`."""
    checked("train", cfg)
    with listening() as signals, held(cfg.run_folder):
        from eomt.cli.fit import fit

        fit(cfg, signals)


if __name__ == "__main__":
    command("train", main, find_layout)
