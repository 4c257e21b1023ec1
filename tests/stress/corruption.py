"""Damages `last.ckpt` and resumes: what is noticed, what goes on from `previous.ckpt`, what takes no harm.

    python tests/stress/corruption.py                  200 cases
    python tests/stress/corruption.py --cases 20 --previous

A case flips 1 to 20 bits anywhere in the file, cuts it off, or overwrites a stretch with zeros. What happens must be
one line; what is read in the end must be bit for bit a checkpoint that was written. `--previous` damages both.
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import sys
import tempfile
from collections import Counter
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import train  # noqa: E402
from datasets.shapes.dataset import ensure_shapes  # noqa: E402
from eomt.cli.build import starting_point  # noqa: E402
from eomt.cli.main import resumed  # noqa: E402
from eomt.cli.resume import choose_checkpoint  # noqa: E402
from eomt.errors import InputError  # noqa: E402
from eomt.weights.checkpoint import PREVIOUS, read_checkpoint  # noqa: E402
from tests.running import SMALL, configured  # noqa: E402


def main() -> None:
    """Print how often what happened."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--previous", action="store_true", help="damage previous.ckpt as well")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["EOMT_CACHE"] = f"{folder}/cache"
        shapes = ensure_shapes(train_images=24, val_images=10, size=48)
        run = Path(folder) / "run"
        options = [*SMALL, f"data.root='{shapes}'", "trainer.max_epochs=2", "callbacks.last.every_n_steps=2"]
        train.main(configured(run, *options, "callbacks.pictures=null", "callbacks.curves=null"))
        logging.disable(logging.WARNING)
        print(f"\n| damage | what happened | cases of {arguments.cases} |\n|---|---|---|")
        found = Counter(
            case(run, options, random.Random(f"{arguments.seed} {n}"), arguments) for n in range(arguments.cases)
        )
        for (damage, outcome), count in sorted(found.items()):
            print(f"| {damage} | {outcome} | {count} |")


def case(run: Path, options: list[str], draw: random.Random, arguments: argparse.Namespace) -> tuple[str, str]:
    """Damage, resume as train.py does until training would begin, and mend; gives the damage and what happened."""
    last = run / "checkpoints" / "last.ckpt"
    files = [last, *([last.with_name(PREVIOUS)] if arguments.previous else [])]
    before = {path: path.read_bytes() for path in files}
    whole = {path.name: read_checkpoint(path) for path in (last, last.with_name(PREVIOUS))}
    damage = draw.choice(("bits flipped", "cut off", "zeros"))
    for path in files:
        path.write_bytes(damaged(before[path], damage, draw))
    try:
        resumed([f"ckpt={last}"])
        cfg = configured(run, *options, f"ckpt='{last}'")
        choose_checkpoint(cfg, [])
        chosen, _ = starting_point(cfg)
        read = read_checkpoint(chosen)
    except InputError as error:
        return damage, "one line" if "\n" not in str(error) else "several lines"
    finally:
        for path in files:
            path.write_bytes(before[path])
    wanted = whole[Path(chosen).name]["state_dict"]
    if not all(torch.equal(read["state_dict"][name], value) for name, value in wanted.items()):
        return damage, "READ AS IF WHOLE"
    return damage, "goes on from " + ("last.ckpt: no harm done" if Path(chosen) == last else PREVIOUS)


def damaged(content: bytes, damage: str, draw: random.Random) -> bytes:
    """The content with one kind of damage."""
    if damage == "cut off":
        return content[: draw.randrange(len(content))]
    changed = bytearray(content)
    if damage == "zeros":
        start = draw.randrange(len(content))
        length = min(draw.choice((512, 4096, 65536)), len(content) - start)
        changed[start : start + length] = bytes(length)
        return bytes(changed)
    for _ in range(draw.randint(1, 20)):
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


if __name__ == "__main__":
    main()
