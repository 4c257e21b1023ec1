"""Check a dataset before training on it.

python check_data.py                                       the built-in shapes
python check_data.py task=coco_panoptic data.root=DIR
python check_data.py task=coco_instance data.root=DIR split=val shown=100
python check_data.py task=folder_semantic data.root=DIR data.classes=classes.txt pictures=0
python check_data.py experiment=small_set task=coco_instance data.root=DIR model.num_queries=200
"""

from omegaconf import DictConfig

from datasets.layout.find import find_layout
from eomt.cli.main import checked, command


def main(cfg: DictConfig) -> None:
    """Read every image, report what is broken or odd by name, and draw some images with their targets.

    Raises:
        InputError: if anything is broken. Odd things are warnings.
    """
    checked("check_data", cfg)

    from datasets.check.run import check_data
    from eomt.cli.build import build_data
    from eomt.cli.folders import check_unused, held

    splits = ("train", "val") if cfg.split is None else (cfg.split,)
    with held(cfg.run_folder):
        check_unused(cfg.run_folder)
        check_data(build_data(cfg), splits, cfg.model.num_queries, cfg.run_folder, cfg.shown, cfg.pictures)


if __name__ == "__main__":
    command("check_data", main, find_layout)
