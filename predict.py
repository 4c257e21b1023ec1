"""Segment images with a checkpoint: pictures to look at, and official result files.

python predict.py ckpt=RUN images=photo.jpg                              with its best checkpoint
python predict.py ckpt=RUN/checkpoints/last.ckpt images=FOLDER out=DIR threshold=0.7
python predict.py ckpt=RUN 'images=photos/**/*.jpg' device=cpu
python predict.py ckpt=RUN images=[a.jpg,b.png]
python predict.py ckpt=tue-mps/coco_panoptic_eomt_large_640 images=photo.jpg
"""

from omegaconf import DictConfig

from eomt.cli.main import checked, command


def main(cfg: DictConfig) -> None:
    """Segment the images that `cfg` names, see `eomt.cli.predict`."""
    cfg = checked("predict", cfg)
    from eomt.cli.predict import predict

    predict(cfg)


if __name__ == "__main__":
    command("predict", main)
