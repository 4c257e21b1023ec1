"""Published checkpoints on their whole validation sets, beside the authors' scores.

    python benchmarks/published_scores.py --data coco=DIR --data ade20k=DIR --data cityscapes=DIR
    python benchmarks/published_scores.py --data coco=DIR --only coco_panoptic_large_640
    python benchmarks/published_scores.py --data coco=DIR --weights coco_panoptic_large_640=FOLDER --only ...

Evaluates by eval.py and the experiment of the same name. Needs access to the Hugging Face Hub (or files given by
--weights), the datasets as the README has them, and a GPU (or --cpu and patience). A row says why it was left out.
DINOv3 models are published as differences to Meta's backbones, which are gated; --delta-base FOLDER holds downloaded
ones, as FOLDER/dinov3-vitl16-pretrain-lvd1689m and so on.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from hydra import compose, initialize_config_dir

import eval
from eomt.cli import endings
from eomt.cli.arguments import prepared
from eomt.cli.meanings import CONFIGS
from eomt.errors import InputError
from eomt.files import replacing

ROOT = Path(__file__).parents[1]
OWNER = "tue-mps"
# Scores are published, but no weights.
UNPUBLISHED = ("coco_panoptic_small_640", "coco_panoptic_base_640")
log = logging.getLogger("eomt.benchmarks")
METRICS = {"PQ": "pq", "AP": "ap", "mIoU": "miou"}


class Recipe(NamedTuple):
    """A published model.

    Attributes:
        name: the experiment.
        dataset: the key of --data.
        repository: the weights on the Hub.
        base: the pretrained DINOv3 backbone that the weights are a difference to.
        metric, score: as published.
    """

    name: str
    dataset: str
    repository: str | None
    base: str | None
    metric: str
    score: float


class Row(NamedTuple):
    """A recipe's score here; None where it was left out, for the reason in `remark`."""

    recipe: Recipe
    score: float | None
    remark: str


def recipes() -> list[Recipe]:
    """All published models."""
    found = []
    for row in json.loads((ROOT / "tests" / "golden" / "recipes.json").read_text()):
        task, dinov3 = f"{row['dataset']}_{row['task']}", row["backbone_family"] == "dinov3"
        name = f"{task}_{'dinov3_' if dinov3 else ''}{row['variant']}"
        repository = f"{OWNER}/{task}_eomt_{row['variant']}{'_dinov3' if dinov3 else ''}"
        found.append(
            Recipe(
                name,
                row["dataset"],
                None if name in UNPUBLISHED else repository,
                row["backbone"] if dinov3 else None,
                row["published_metric"],
                row["published_score"],
            )
        )
    return found


def evaluate(recipe: Recipe, arguments: argparse.Namespace, folder: Path) -> Row:
    """The score of a recipe's weights on the whole validation set."""
    source = arguments.weights.get(recipe.name) or recipe.repository
    root = arguments.data.get(recipe.dataset)
    if source is None:
        return Row(recipe, None, "no weights are published")
    if root is None:
        return Row(recipe, None, f"no data: give --data {recipe.dataset}=DIR")
    if not torch.cuda.is_available() and not arguments.cpu:
        return Row(recipe, None, "no GPU: --cpu does without, slowly")
    typed = [f"data.root={root}", f"ckpt={source}", *arguments.overrides]
    if arguments.delta_base and recipe.base:
        typed.append(f"delta_base={arguments.delta_base / Path(recipe.base).name}")
    if arguments.cpu:
        typed.append("trainer.accelerator=cpu")
    start = time.perf_counter()
    try:
        typed += [f"experiment={recipe.name}", f"run_folder={folder}", "pictures=0"]
        cfg = compose("eval", overrides=prepared("eval", typed))
        eval.main(cfg)
        score = json.loads((folder / "metrics.json").read_text())[METRICS[recipe.metric]]
    except endings.ENDINGS as error:
        return Row(recipe, None, endings.explain(error))
    except Exception as error:
        # Too little memory, say, or a failing network: the other rows still count.
        log.exception("%s failed", recipe.name)
        return Row(recipe, None, f"{type(error).__name__}: {endings.explain(error)}")
    return Row(recipe, score, ", ".join([f"{(time.perf_counter() - start) / 60:.0f} min", *arguments.overrides]))


def table(rows: list[Row]) -> str:
    """The rows as a Markdown table."""
    head = ["| experiment | weights | metric | published | here | difference | remark |", "|---" * 7 + "|"]
    return "\n".join(head + [line(row) for row in rows])


def line(row: Row) -> str:
    """A row of the table."""
    recipe, score, remark = row
    here = ("-", "-") if score is None else (f"{score:.2f}", f"{score - recipe.score:+.2f}")
    published = f"{recipe.score:.1f}"
    cells = (recipe.name, recipe.repository or "-", recipe.metric, published, *here, remark.replace("|", "\\|"))
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Evaluate the chosen models and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", action="append", default=[], metavar="DATASET=DIR")
    parser.add_argument(
        "--weights", action="append", default=[], metavar="EXPERIMENT=SOURCE", help="instead of the Hub's"
    )
    parser.add_argument("--delta-base", type=Path, help="folder with the pretrained DINOv3 models")
    parser.add_argument("--only", nargs="+", metavar="EXPERIMENT")
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--out", type=Path, help="file that receives the table")
    parser.add_argument("overrides", nargs="*", help="further settings of eval.py, such as data.max_images=100")
    arguments = parser.parse_args()
    for name in ("data", "weights"):
        setattr(arguments, name, dict(entry.split("=", 1) for entry in getattr(arguments, name)))
    unknown = {*arguments.weights, *(arguments.only or ())} - {recipe.name for recipe in recipes()}
    if unknown:
        parser.error(f"{min(unknown)} is no published experiment; configs/experiment has them")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    chosen = [recipe for recipe in recipes() if not arguments.only or recipe.name in arguments.only]
    rows: list[Row] = []
    try:
        with initialize_config_dir(CONFIGS, version_base="1.3"), tempfile.TemporaryDirectory() as folder:
            for recipe in chosen:
                rows.append(evaluate(recipe, arguments, Path(folder) / recipe.name))
                print(line(rows[-1]), flush=True)
                # After every row: a failure must not lose the scores of many hours.
                if arguments.out:
                    with replacing(arguments.out) as temporary:
                        temporary.write_text(table(rows) + "\n", encoding="utf-8")
    finally:
        print(f"\n{table(rows)}")


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
