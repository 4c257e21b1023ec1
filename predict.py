"""Segment images with a checkpoint: pictures to look at, and official result files.

python predict.py ckpt=RUN/checkpoints/best.ckpt images=photo.jpg
python predict.py ckpt=RUN/checkpoints/best.ckpt images=FOLDER out=DIR threshold=0.7
python predict.py ckpt=RUN/checkpoints/best.ckpt 'images=photos/**/*.jpg' device=cpu
python predict.py ckpt=RUN/checkpoints/best.ckpt images=[a.jpg,b.png]
python predict.py ckpt=tue-mps/coco_panoptic_eomt_large_640 images=photo.jpg
"""

from pathlib import Path

from omegaconf import DictConfig

from eomt.cli.main import checked, command, log
from eomt.errors import InputError


def main(cfg: DictConfig) -> None:
    """Segment the images that `cfg` names.

    Raises:
        InputError: at the end, if images could not be read and were skipped; at once for any other bad input.
    """
    cfg = checked("predict", cfg)

    from tqdm import tqdm
    from tqdm.contrib.logging import logging_redirect_tqdm

    from eomt.class_list import read_classes
    from eomt.inference.predict_files import INDEX, find_images, predict_files
    from eomt.inference.segmenter import Segmenter

    if Path(cfg["out"], INDEX).exists() and not cfg["overwrite"]:
        raise InputError(f"out={cfg['out']} has results already: choose another folder, or set overwrite=true")
    folder, files = find_images(cfg["images"], cfg["out"])
    classes = None if cfg["classes"] is None else read_classes(cfg["classes"], Path.cwd(), key="classes")
    segmenter = Segmenter.load(
        cfg["ckpt"],
        cfg["device"],
        cfg["precision"],
        cfg["trust_code"],
        unpadded=cfg["unpadded"],
        kind=cfg["kind"],
        classes=classes,
        network=cfg["network"],
        backbone=cfg["delta_base"],
        **cfg["postprocess"],
    )
    log.info(
        "%s segmentation of %s on %s, precision %s",
        segmenter.task.kind,
        "1 image" if len(files) == 1 else f"{len(files)} images",
        segmenter.device,
        segmenter.precision,
    )
    skipped = 0
    with logging_redirect_tqdm(), tqdm(total=len(files), unit="image", disable=None) as bar:
        done = predict_files(
            segmenter, folder, files, cfg["out"], cfg["batch_size"], cfg["num_workers"], cfg["threshold"]
        )
        for _, error in done:
            bar.update()
            if error is not None:
                skipped += 1
                log.warning("skipped: %s", error)
    log.info("segmented: %d, skipped: %d, results: %s", len(files) - skipped, skipped, cfg["out"])
    if skipped:
        raise InputError(f"{skipped} of {len(files)} images could not be read and were skipped")


if __name__ == "__main__":
    command("predict", main)
