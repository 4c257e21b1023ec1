"""Evaluate a checkpoint on its validation set.

python eval.py ckpt=RUN                                                  its best checkpoint
python eval.py ckpt=RUN/checkpoints/last.ckpt data.root=DIR              the data lies elsewhere now
python eval.py ckpt=RUN save_predictions=true postprocess.score_threshold=0.7
python eval.py ckpt=RUN trainer.devices=1 data.eval_batch_size=1 unpadded=true
python eval.py ckpt=tue-mps/coco_panoptic_eomt_large_640 task=coco_panoptic data.root=DIR
"""

from omegaconf import DictConfig

from datasets.layout.find import find_layout
from eomt.cli.folders import check_unused, held
from eomt.cli.main import checked, command


def main(cfg: DictConfig) -> None:
    """Score weights on the validation set of their settings, see `eomt.cli.evaluate`."""
    checked("eval", cfg)
    with held(cfg.run_folder):
        check_unused(cfg.run_folder)
        from eomt.cli.eval_settings import weights_and_settings
        from eomt.cli.evaluate import evaluate

        evaluate(cfg, *weights_and_settings(cfg))


if __name__ == "__main__":
    command("eval", main, find_layout)
