"""Check a dataset before training on it.

python check_data.py task=coco_panoptic data.root=DIR
python check_data.py task=folder_semantic data.root=DIR data.classes=classes.txt split=train
"""

from omegaconf import DictConfig

from eomt.cli.main import command
from eomt.errors import InputError


def main(cfg: DictConfig) -> None:
    """Read every image, report what is broken or odd by name, and draw some images with their targets.

    Raises:
        InputError: if anything is broken. Odd things are warnings.
    """
    from datasets.check.run import check_data
    from eomt.cli.build import build_data, check_numbers

    check_numbers(cfg)
    if cfg.split not in (None, "train", "val"):
        raise InputError(f"split={cfg.split} must be train or val; leave it out to check both")
    for key in ("pictures", "shown"):
        if isinstance(cfg[key], bool) or not isinstance(cfg[key], int) or cfg[key] < 0:
            raise InputError(f"{key}={cfg[key]} must be a whole number of at least 0")
    splits = ("train", "val") if cfg.split is None else (cfg.split,)
    check_data(build_data(cfg), splits, cfg.model.num_queries, cfg.run_folder, cfg.shown, cfg.pictures)


if __name__ == "__main__":
    command("check_data", main)
