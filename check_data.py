"""Check a dataset before training on it.

python check_data.py task=coco_panoptic data.root=DIR
python check_data.py task=folder_semantic data.root=DIR data.classes=classes.txt split=train
"""

from omegaconf import DictConfig

from eomt.cli.main import command, log
from eomt.errors import InputError


def main(cfg: DictConfig) -> None:
    """Read every image, report what is broken or odd by name, and draw some images with their targets.

    Raises:
        InputError: if anything is broken. What is merely odd ends the check in peace.
    """
    from PIL import Image

    from datasets.check.contact_sheet import train_sheet, val_sheet
    from datasets.check.report import ERROR, WARNING
    from datasets.check.run import check_data
    from eomt.cli.build import build_data, check_numbers
    from eomt.files import replacing

    check_numbers(cfg)
    if cfg.split not in (None, "train", "val"):
        raise InputError(f"split={cfg.split} must be train or val; leave it out to check both")
    for key in ("pictures", "shown"):
        if isinstance(cfg[key], bool) or not isinstance(cfg[key], int) or cfg[key] < 0:
            raise InputError(f"{key}={cfg[key]} must be a whole number of at least 0")
    splits = ("train", "val") if cfg.split is None else (cfg.split,)
    data = build_data(cfg)
    report, fit = check_data(data, splits, cfg.model.num_queries)
    path = f"{cfg.run_folder}/report.json"
    report.write(path)
    report.log(cfg.shown)
    sheets = {"train": train_sheet, "val": val_sheet}
    for split, indices in fit.items():
        if cfg.pictures and len(indices) and (sheet := sheets[split](data, indices, cfg.pictures)) is not None:
            with replacing(f"{cfg.run_folder}/contact_{split}.png") as temporary:
                Image.fromarray(sheet).save(temporary)
            log.info("pictures: %s/contact_%s.png", cfg.run_folder, split)
    errors, warnings = report.count(ERROR), report.count(WARNING)
    if errors:
        raise InputError(f"the check found {errors} errors and {warnings} warnings, all of them in {path}")
    log.info("no errors, %d warnings; report: %s", warnings, path)


if __name__ == "__main__":
    command("check_data", main)
