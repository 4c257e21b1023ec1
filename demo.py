"""Segment images in the browser: drop one, see its segments, hover for class and score, download the results.

python demo.py ckpt=RUN                                  with its best checkpoint
python demo.py ckpt=RUN/checkpoints/last.ckpt device=cpu port=8000
python demo.py ckpt=RUN max_megabytes=100 max_megapixels=200
python demo.py ckpt=RUN host=0.0.0.0                     for other machines, too
python demo.py ckpt=tue-mps/coco_panoptic_eomt_large_640
"""

from omegaconf import DictConfig

from eomt.cli.main import checked, command


def main(cfg: DictConfig) -> None:
    """Serve the page until the process is stopped, see `eomt.cli.demo`."""
    cfg = checked("demo", cfg)
    from eomt.cli.demo import serve

    serve(cfg)


if __name__ == "__main__":
    command("demo", main)
