"""Damaged checkpoints and archives: noticed in one line, or harmless; never read as if whole.

    python -m pytest -m stress tests/stress/test_corruption.py                    200 cases of each
    python -m pytest -m stress tests/stress/test_corruption.py --count 20 -s      and how often what happened

A case flips 1 to 20 bits anywhere in a file, cuts it off, or overwrites a part with zeros.
"""

import random
from collections import Counter

import numpy as np
import pytest
import torch

import train
from datasets.readers.coco import CocoPanoptic
from eomt.cli.fit import starting_point
from eomt.cli.resume import choose_checkpoint
from eomt.errors import InputError
from eomt.weights.checkpoint import PREVIOUS, read_checkpoint
from tests.running import configured, equal

pytestmark = pytest.mark.xdist_group("corruption")

COUNTS = [pytest.param(10, marks=pytest.mark.slow), pytest.param(200, marks=pytest.mark.stress)]
KINDS = ("bits flipped", "cut off", "zeros")


def damage(content: bytes, kind: str, draw: random.Random) -> bytes:
    """The content with one kind of damage."""
    if kind == "cut off":
        return content[: draw.randrange(len(content))]
    changed = bytearray(content)
    if kind == "zeros":
        start = draw.randrange(len(content))
        length = min(draw.choice((512, 4096, 65536)), len(content) - start)
        changed[start : start + length] = bytes(length)
    else:
        for _ in range(draw.randint(1, 20)):
            changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


@pytest.fixture(scope="module")
def run(options, tmp_path_factory):
    """A run's folder and settings, with last.ckpt and previous.ckpt."""
    folder = tmp_path_factory.mktemp("run")
    settings = (*options, "trainer.limit_val_batches=0", "callbacks.last.every_n_steps=2", "callbacks.curves=null")
    train.main(configured(folder, *settings))
    return folder, settings


def resumed_from(folder, settings):
    """The checkpoint that a resumed run reads, and its content."""
    cfg = configured(folder, *settings, f"ckpt='{folder}/checkpoints/last.ckpt'")
    choose_checkpoint(cfg)
    chosen, _ = starting_point(cfg)
    return chosen, read_checkpoint(chosen)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("both", [False, True], ids=["last", "last and previous"])
def test_damaged_checkpoints(run, request, count, both):
    folder, settings = run
    last = folder / "checkpoints" / "last.ckpt"
    content = {path: path.read_bytes() for path in (last, last.with_name(PREVIOUS))}
    whole = {str(path): read_checkpoint(path)["state_dict"] for path in content}
    happened = Counter()
    for number in range(request.config.getoption("count") or count):
        draw = random.Random(number)
        kind = draw.choice(KINDS)
        for path in content if both else [last]:
            path.write_bytes(damage(content[path], kind, draw))
        try:
            chosen, checkpoint = resumed_from(folder, settings)
            assert equal(checkpoint["state_dict"], whole[str(chosen)]), f"case {number}, {kind}: read as if whole"
            happened[kind, "previous.ckpt" if str(chosen) != str(last) else "no harm done"] += 1
        except InputError as error:
            said = str(error)
            assert both, said
            assert "\n" not in said
            happened[kind, "one line"] += 1
        finally:
            for path, before in content.items():
                path.write_bytes(before)
    print(dict(happened))


@pytest.mark.parametrize("count", COUNTS)
def test_damaged_archives(shapes, tmp_path, request, count):
    names = ("val2017.zip", "panoptic_annotations_trainval2017.zip")
    reader = CocoPanoptic(shapes, "val")
    whole = [reader.read(index) for index in range(len(reader))]
    happened = Counter()
    for number in range(request.config.getoption("count") or count):
        draw, root = random.Random(number), tmp_path / str(number)
        root.mkdir()
        victim = draw.choice(names)
        for name in names:
            content = (shapes / name).read_bytes()
            (root / name).write_bytes(damage(content, draw.choice(KINDS), draw) if name == victim else content)
        happened[read_all(root, whole)] += 1
    print(dict(happened))


def read_all(root, whole):
    """Read each image; gives what happened. Anything but a one-line error or the right pixels fails."""
    try:
        reader = CocoPanoptic(root, "val")
    except InputError as error:
        said = str(error)
        assert "\n" not in said
        return "refused at the start"
    assert len(reader) == len(whole)
    bad = 0
    for index, (image, targets) in enumerate(whole):
        try:
            read, found = reader.read(index)
        except InputError as error:
            said = str(error)
            assert "\n" not in said
            bad += 1
        else:
            assert np.array_equal(read, image)
            assert torch.equal(found.ids, targets.ids)
    return "images refused, each named" if bad else "no harm done"
