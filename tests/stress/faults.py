"""Injects faults into short runs and damages archives and checkpoints at random; prints what happened.

    python tests/stress/faults.py                          the built-in shapes
    python tests/stress/faults.py --data ../shared/data/coco      a folder with COCO's panoptic archives
    python tests/stress/faults.py --cases 20 --only archive

Runs are small, on the CPU, with data workers. "same end" compares weights, optimizer and schedule with those of the
undisturbed run, bit for bit.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import logging
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import lightning
import numpy as np
import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import train  # noqa: E402
from datasets.readers.coco import CocoPanoptic  # noqa: E402
from datasets.shapes.dataset import ensure_shapes  # noqa: E402
from eomt.cli.main import explain  # noqa: E402
from eomt.errors import InputError, Stopped, worker_failure  # noqa: E402
from eomt.weights.checkpoint import read_checkpoint  # noqa: E402
from tests.running import SMALL, configured  # noqa: E402
from tests.stress import corruption  # noqa: E402
from tests.stress.resume import different, flat  # noqa: E402

STEPS = 6
FINGERPRINT = ("state_dict", "optimizer_states", "lr_schedulers")
LAST_WORDS = 230  # of a message


class Inject(lightning.Callback):
    """Lets something happen at a step of a run.

    Args:
        what: `loss`, `gradient` (NaN), `kill` (a data worker).
        steps: numbers from 1.
    """

    def __init__(self, what: str, steps: list[int]):
        self.what, self.steps = what, steps

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if trainer.global_step + 1 not in self.steps or batch_idx % trainer.accumulate_grad_batches:
            return
        if self.what == "loss":
            self._spoil(pl_module)
        if self.what == "kill":
            multiprocessing.active_children()[0].kill()

    def _spoil(self, module) -> None:
        """Make the next loss NaN in its dice term."""
        loss = module.loss.forward

        def forward(*arguments):
            module.loss.forward = loss
            terms = loss(*arguments)
            terms[-1]["dice"] = terms[-1]["dice"] * float("nan")
            return terms

        module.loss.forward = forward

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        if self.what == "gradient" and trainer.global_step + 1 in self.steps:
            pl_module.network.class_head.weight.grad[0, 0] = float("inf")


class Faults:
    """A folder to run in, a dataset, and the end of an undisturbed run."""

    def __init__(self, folder: Path, data: Path | None):
        self.folder = folder
        self.data = data or ensure_shapes(train_images=24, val_images=10, size=48)
        self.number = 0
        self.task = [] if data is None else ["task=coco_panoptic", "model=tiny"]
        self.log = _Lines()
        logging.getLogger("eomt").addHandler(self.log)
        self.run()
        self.wanted = self.state()

    def options(self, *more: str, data: Path | None = None) -> list[str]:
        """Of a run; `more` go over the others."""
        return [
            *self.task,
            *SMALL,
            "data.num_workers=2",
            f"data.root='{data or self.data}'",
            "trainer.max_epochs=-1",
            f"trainer.max_steps={STEPS}",
            "callbacks.pictures=null",
            "callbacks.curves=null",
            "callbacks.best=null",
            "callbacks.last.every_n_steps=2",
            *more,
        ]

    @property
    def here(self) -> Path:
        return self.folder / f"run{self.number}"

    def run(self, *more: str, data: Path | None = None) -> str:
        """Train; gives the first words of what was said of it, and how it ended."""
        self.number += 1
        self.log.lines.clear()
        logging.getLogger("eomt").setLevel(logging.INFO)
        begin = time.monotonic()
        try:
            with contextlib.redirect_stderr(open(os.devnull, "w")):
                train.main(configured(self.here, *self.options(*more, data=data)))
            end = "ran to its end"
        except (InputError, Stopped) as error:
            end = f'one line after {time.monotonic() - begin:.0f} s: "{_short(explain(error))}"'
        except RuntimeError as error:
            ended = str(error).startswith("DataLoader worker")
            end = f'one line: "{_short(str(worker_failure(error)))}"' if ended else f"STACK TRACE: {_short(str(error))}"
        except Exception as error:
            end = f"STACK TRACE: {type(error).__name__} {_short(str(error))}"
        said = [f'"{_short(line)}"' for line in dict.fromkeys(self.log.lines)]
        return "; ".join([*said[:1], *([f"{len(said) - 1} more such lines"] if said[1:] else []), end])

    def state(self) -> dict:
        checkpoint = read_checkpoint(self.here / "checkpoints" / "last.ckpt")
        return dict(flat({part: checkpoint[part] for part in FINGERPRINT}))

    def compared(self, happened: str) -> str:
        whole = (self.here / "checkpoints" / "last.ckpt").is_file()
        return f"{happened}; {'same' if whole and not different(self.state(), self.wanted) else 'OTHER'} end"

    def inject(self, what: str, *steps: int, more: tuple[str, ...] = ()) -> str:
        fault = f"+callbacks.fault={{_target_: tests.stress.faults.Inject, what: {what}, steps: {list(steps)}}}"
        return self.run(fault, *more)

    def copied(self, change: Callable[[Path], None]) -> Path:
        """A copy of the data, changed."""
        copy = self.folder / f"data{self.number}-{random.randrange(10**9)}"
        shutil.copytree(self.data, copy, copy_function=shutil.copyfile)
        copy.chmod(0o755)
        change(copy)
        return copy


class _Lines(logging.Handler):
    """What was warned of."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def _short(text: str) -> str:
    text = re.sub(r"/\S*/(?=[\w.]+)", "", " ".join(text.split()))
    return text if len(text) <= LAST_WORDS else f"{text[:LAST_WORDS]}..."


def damage_members(archive: Path, count: int) -> None:
    """Flip a byte in the middle of the first images of an archive."""
    with zipfile.ZipFile(archive) as opened:
        places = [i.header_offset + 30 + len(i.filename) + i.compress_size // 2 for i in opened.infolist()]
    content = bytearray(archive.read_bytes())
    for place in places[:count]:
        content[place] ^= 255
    archive.write_bytes(content)


def one_image(root: Path, split: str, size: tuple[int, int]) -> None:
    """Put an image of this (height, width), all of one segment, in the place of the split's first."""
    import io
    import json

    from PIL import Image

    def encoded(pixels: np.ndarray, kind: str) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, kind)
        return buffer.getvalue()

    outer = root / "panoptic_annotations_trainval2017.zip"
    files = {i.filename: zipfile.ZipFile(outer).read(i) for i in zipfile.ZipFile(outer).infolist()}
    name = f"annotations/panoptic_{split}2017"
    content = json.loads(files[f"{name}.json"])
    image, rows = content["images"][0], {a["image_id"]: a for a in content["annotations"]}
    row = rows[image["id"]]
    row["segments_info"] = row["segments_info"][:1]
    number = row["segments_info"][0]["id"]
    image["height"], image["width"] = size
    color = np.array([number & 255, number >> 8 & 255, number >> 16], np.uint8)
    inner = io.BytesIO(files[f"{name}.zip"])
    masks = {i.filename: zipfile.ZipFile(inner).read(i) for i in zipfile.ZipFile(inner).infolist()}
    (mask,) = [m for m in masks if m.endswith(row["file_name"])]
    masks[mask] = encoded(np.broadcast_to(color, (*size, 3)).copy(), "PNG")
    inner = io.BytesIO()
    _write_zip(inner, masks)
    files |= {f"{name}.json": json.dumps(content).encode(), f"{name}.zip": inner.getvalue()}
    _write_zip(outer, files)
    images = root / f"{split}2017.zip"
    files = {i.filename: zipfile.ZipFile(images).read(i) for i in zipfile.ZipFile(images).infolist()}
    (photo,) = [m for m in files if m.endswith(image["file_name"])]
    files[photo] = encoded(np.full((*size, 3), 90, np.uint8), "JPEG")
    _write_zip(images, files)


def _write_zip(target, files: dict[str, bytes]) -> None:
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)


def archive_case(root: Path, folder: Path, draw: random.Random, split: str = "val") -> str:
    """Flip 1 to 20 bits in one of a set's two archives, open it and read all; gives what happened."""
    whole = CocoPanoptic(root, split)
    wanted = [whole.read(index) for index in range(len(whole))]
    copy = folder / f"archive{draw.randrange(10**12)}"
    copy.mkdir()
    names = [f"{split}2017.zip", "panoptic_annotations_trainval2017.zip"]
    victim = draw.choice(names)
    for name in names:
        content = bytearray((root / name).read_bytes())
        if name == victim:
            for _ in range(draw.randint(1, 20)):
                content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        (copy / name).write_bytes(content)
    try:
        return _read_all(copy, split, wanted)
    finally:
        shutil.rmtree(copy)


def _read_all(root: Path, split: str, wanted: list) -> str:
    try:
        reader = CocoPanoptic(root, split)
        if len(reader) != len(wanted):
            return "OTHER IMAGES"
    except InputError as error:
        return "refused at the start, one line" if "\n" not in str(error) else "SEVERAL LINES"
    except Exception as error:
        return f"STACK TRACE: {type(error).__name__}"
    bad = 0
    for index, (image, targets) in enumerate(wanted):
        try:
            read, found = reader.read(index)
        except InputError as error:
            bad += 1
            if "\n" in str(error):
                return "SEVERAL LINES"
        except Exception as error:
            return f"STACK TRACE: {type(error).__name__}"
        else:
            if not (np.array_equal(read, image) and torch.equal(found.ids, targets.ids)):
                return "OTHER PIXELS"
    return "images left out, each with a line that names it" if bad else "all read as before: no harm done"


def checkpoint_cases(faults: Faults, cases: int) -> Counter:
    """As `tests/stress/corruption.py`, of a run that is there."""
    run = faults.folder / "checkpoints"
    train.main(configured(run, *faults.options("trainer.limit_val_batches=0")))
    arguments = SimpleNamespace(previous=False)
    return Counter(
        f"{what}: {then}"
        for what, then in (
            corruption.case(run, faults.options(), random.Random(f"0 {n}"), arguments) for n in range(cases)
        )
    )


@contextlib.contextmanager
def patched(owner: object, name: str, value: object):
    """Replace an attribute for a while, also for the workers that are forked meanwhile."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def failing_reads(times: int) -> Callable:
    """`os.pread` that fails with EIO the first times in each data worker."""
    real, left, main = os.pread, Counter(), os.getpid()

    def pread(*arguments):
        pid = os.getpid()
        left[pid] += 1
        if pid != main and left[pid] <= times:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(*arguments)

    return pread


def hanging_reads() -> Callable:
    """`os.pread` that does not return in data workers."""
    real, main = os.pread, os.getpid()
    return lambda *arguments: real(*arguments) if os.getpid() == main else time.sleep(600)


def full_disk(value: object, path: Path) -> None:
    Path(path).write_bytes(b"half")
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def killed_rank(faults: Faults, rank: int) -> str:
    """Kill one of two ranks of a run of its own; gives what was said and after how many seconds all had ended."""
    faults.number += 1
    options = faults.options("trainer.devices=2", "trainer.strategy=ddp", "trainer.max_steps=100000")
    options += ["trainer.limit_val_batches=0", f"hydra.run.dir={faults.here}"]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    while not (faults.here / "checkpoints" / "last.ckpt").exists():
        if process.poll() is not None:
            return f"DID NOT START: {process.stdout.read()[-300:]}"
        time.sleep(0.1)
    other = next(pid for pid in _children(process.pid) if b"LOCAL_RANK=1" in Path(f"/proc/{pid}/environ").read_bytes())
    begin = time.monotonic()
    os.kill(other if rank else process.pid, signal.SIGKILL)
    survivor = process.pid if rank else other
    while _alive(survivor) and time.monotonic() - begin < 120:
        process.poll()
        time.sleep(0.1)
    seconds = time.monotonic() - begin
    lines = re.findall(r"error: (.*)", process.communicate(timeout=60)[0])
    return f'all ended after {seconds:.0f} s: "{_short(lines[0]) if lines else "NO REASON"}"'


def _children(parent: int) -> list[int]:
    found = [int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit()]
    return [pid for pid in found if _stat(pid)[1:2] == [str(parent)]]


def _alive(pid: int) -> bool:
    return _stat(pid)[:1] not in ([], ["Z"])


def _stat(pid: int) -> list[str]:
    """State, parent, ..."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def table(faults: Faults, cases: int) -> list[tuple[str, Callable[[], object]]]:
    """What is injected, and a function that does it and says what happened."""
    split = "panoptic_annotations_trainval2017.zip"

    def damaged(name: str, count: int, *more: str) -> Callable[[], str]:
        return lambda: faults.run(*more, data=faults.copied(lambda root: damage_members(root / name, count)))

    def without(name: str) -> Callable[[], str]:
        return lambda: faults.run(data=faults.copied(lambda root: (root / name).unlink()))

    def sized(height: int, width: int) -> Callable[[], str]:
        def change(root: Path) -> None:
            one_image(root, "train", (height, width))
            one_image(root, "val", (height, width))

        return lambda: faults.run(data=faults.copied(change))

    def reading(times: int) -> Callable[[], str]:
        def run() -> str:
            with patched(os, "pread", failing_reads(times)):
                return faults.run()

        return lambda: faults.compared(run())

    def disk() -> str:
        with patched(torch, "save", full_disk):
            happened = faults.run()
        left = [path.name for path in (faults.here / "checkpoints").iterdir()]
        return f"{happened}; left behind: {', '.join(left) or 'nothing half-written'}"

    def archives() -> Counter:
        return Counter(archive_case(faults.data, faults.folder, random.Random(n)) for n in range(cases))

    def killed_worker() -> str:
        happened = faults.inject("kill", 5)
        resumed = faults.run(f"ckpt='{faults.here}/checkpoints/last.ckpt'")
        return faults.compared(f"{happened}; resumed: {resumed}")

    def hanging() -> str:
        with patched(os, "pread", hanging_reads()):
            return faults.run("data.timeout=3")

    return [
        ("NaN in the loss of a step", lambda: faults.inject("loss", 3)),
        ("infinite gradient of a step", lambda: faults.inject("gradient", 3)),
        ("NaN in every step", lambda: faults.inject("loss", *range(1, 7), more=("optim.max_skipped_steps=4",))),
        ("data worker killed by SIGKILL, then resumed", killed_worker),
        ("reads hang in the data workers, data.timeout=3", hanging),
        ("input/output error of a read, twice in each data worker", reading(2)),
        ("3 training images damaged", damaged("train2017.zip", 3)),
        ("more training images damaged than data.max_bad_images", damaged("train2017.zip", 5, "data.max_bad_images=2")),
        ("a validation image damaged", damaged("val2017.zip", 1)),
        ("annotations missing", without(split)),
        ("images missing", without("train2017.zip")),
        ("images of 1x1 in training and validation", sized(1, 1)),
        ("images of 50x20000 in training and validation", sized(50, 20000)),
        ("one training image, batch of 4", lambda: faults.run("data.max_images=1")),
        ("more targets than queries", lambda: faults.run("model.num_queries=2")),
        ("disk full while a checkpoint is written", disk),
        ("rank 1 of 2 killed by SIGKILL", lambda: killed_rank(faults, 1)),
        ("rank 0 of 2 killed by SIGKILL", lambda: killed_rank(faults, 0)),
        (f"archive: 1 to 20 bits flipped, {cases} cases", archives),
        (f"checkpoint: bits flipped, cut off, zeros; {cases} cases", lambda: checkpoint_cases(faults, cases)),
    ]


def main() -> None:
    """Print a row per fault."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a folder with COCO's panoptic archives; default the built-in shapes")
    parser.add_argument("--cases", type=int, default=200, help="of archives and of checkpoints")
    parser.add_argument("--only", default="", help="words of the faults to inject")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["EOMT_CACHE"] = f"{folder}/cache"
        faults = Faults(Path(folder), arguments.data and arguments.data.resolve())
        print("\n| what was injected | what happened |\n|---|---|", flush=True)
        for name, inject in table(faults, arguments.cases):
            if arguments.only in name:
                happened = inject()
                if isinstance(happened, Counter):
                    happened = "; ".join(f"{count} x {what}" for what, count in happened.most_common())
                print(f"| {name} | {happened.replace('|', '/')} |", flush=True)


if __name__ == "__main__":
    main()
