"""All that a GPU is measured by, in one command and at most nine minutes of one card.

    python benchmarks/gpu.py                                          # a table, and the same as JSON
    python benchmarks/gpu.py --original PATH --data ../shared/data/coco --json gpu.json
    python benchmarks/gpu.py --sections step network
    python benchmarks/gpu.py --device cpu --small                     # the same code on toy sizes: numbers mean nothing

Sections, each in a process of its own: `counts` (operations dispatched by matching and losses, forward and backward;
waits of a step for the device), `step` (EoMT-L, bf16, batch 16 compiled, 4 eager; memory; losses alone), `peers`
(transformers' and, with `--original PATH`, the original's step), `network` (mask-free, weights cast once: S, B, L of
DINOv2 and DINOv3 by a CUDA graph, L also compiled), `files` (JPEG files to panoptic segments and result files),
`merging` (panoptic post-processing), `runs` (train.py and eval.py on COCO files, and the built-in task). What fails or
does not fit into the time is said and left out. Without a GPU the counts alone are printed.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch
from common import (
    interleaved,
    matmul_rate,
    our_network,
    peak_of,
    step_flops,
    synchronise,
)
from lightning.pytorch.callbacks import Callback
from torch.utils._python_dispatch import TorchDispatchMode

from eomt.inference.graphs import FixedBatches, compile_network
from eomt.inference.precision import with_cast_weights
from tests.host_syncs import HostSyncs

# What each section may take; what it leaves is for the later ones. Nine minutes in all.
SECONDS = {"counts": 30, "step": 140, "peers": 90, "network": 90, "files": 70, "merging": 20, "runs": 100}
WORKERS = 8
# Images a second at batch 1 on an H100, as published.
PUBLISHED = {"small": 330, "base": 261, "large": 128, "dinov3_small": 570, "dinov3_base": 347, "dinov3_large": 157}
Row = tuple[str, float, str]


class Operations(TorchDispatchMode):
    """Counter of dispatched operations, without those that only look at memory in another way."""

    def __init__(self):
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not func.is_view:
            self.found[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def counts(options: argparse.Namespace) -> Iterator[Row]:
    """Operations of matching and losses, and waits for the device; on small features, which change no count."""
    from training_step import loss_alone

    setting = step_setting(options, 4, "tiny", 64, compiled=False)
    ours = loss_alone(argparse.Namespace(batch=4, pixels=64, queries=50), setting)["ours"]
    ours()
    with Operations() as operations:
        ours()
    yield "operations of matching and losses, batch 4, 4 outputs", sum(operations.found.values()), ""
    with HostSyncs() as waits:
        setting.steps["ours"]()
    yield "operations of a step whose result the host needs", sum(waits.found.values()), ""
    if setting.device.type == "cuda":
        torch.cuda.set_sync_debug_mode("warn")
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            setting.steps["ours"]()
        torch.cuda.set_sync_debug_mode("default")
        yield "waits of a step for the device", sum("synchroniz" in str(one.message) for one in found), ""


def step(options: argparse.Namespace) -> Iterator[Row]:
    from training_step import loss_alone

    for batch, compiled in ((2, False),) if options.small else ((16, True), (4, False)):
        setting = step_setting(options, batch, compiled=compiled)
        start = time.perf_counter()
        setting.steps["ours"]()
        synchronise(setting.device)
        if compiled:
            yield f"first training step, batch {batch}, with compilation", time.perf_counter() - start, "s"
        seconds = interleaved({"": setting.steps["ours"]}, setting.device, options.rounds, 2)[""]
        how = "compiled" if compiled else "eager"
        yield f"training step, {how}, batch {batch}", 1e3 * seconds, "ms"
        yield f"training step, {how}, batch {batch}", batch / seconds, "images/s"
        yield f"peak memory of a step, batch {batch}", peak_of(setting.steps["ours"], setting.device) / 2**10, "GiB"
        sides = loss_alone(argparse.Namespace(batch=batch, pixels=options.pixels, queries=options.queries), setting)
        yield f"matching and losses alone, batch {batch}", 1e3 * time_of(sides["ours"], setting.device), "ms"
    flops = step_flops(setting.network, batch, options.pixels, setting.loss.num_points, 20 * batch)
    rate = matmul_rate(setting.device, setting.dtype)
    yield f"limit of a step's arithmetic, batch {batch}", 1e3 * flops / rate, "ms"


def peers(options: argparse.Namespace) -> Iterator[Row]:
    sides = [("transformers", 4, False), ("transformers", 16, False)]
    # Its compilation may take longer than the time that is left.
    sides += [("original", 4, False), ("original", 16, True)] if options.original else []
    for side, batch, compiled in sides:
        batch = 2 if options.small else batch
        setting = step_setting(options, batch, compiled=compiled, side=side)
        how = "compiled" if compiled else "eager"
        yield f"training step of {side}, {how}, batch {batch}", 1e3 * time_of(setting.steps[side], setting.device), "ms"
        memory = peak_of(setting.steps[side], setting.device) / 2**10
        yield f"peak memory of {side}'s step, batch {batch}", memory, "GiB"
        del setting
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def network(options: argparse.Namespace) -> Iterator[Row]:
    device = torch.device(options.device)
    for size in ("tiny",) if options.small else ("large", *(size for size in PUBLISHED if size != "large")):
        whole = our_network(size, options.pixels, options.queries).to(device).eval()
        for compiled in (False, True) if size in ("large", "tiny") else (False,):
            cast = with_cast_weights(whole, torch.bfloat16)
            compile_network(cast, compiled and device.type == "cuda")
            batches = FixedBatches(cast, fill=True, graphs=device.type == "cuda")
            for batch in (1, 4, 16) if size == "large" and not compiled else (1, 16):
                images = torch.randint(0, 256, (batch, 3, options.pixels, options.pixels), dtype=torch.uint8).to(device)
                with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16):
                    seconds = time_of(lambda: batches(images, batch), device)  # noqa: B023
                    found = batches(images, batch)
                    expected = whole(images)[-1].logits()
                name = f"network {size}, {'compiled' if compiled else 'eager'}, batch {batch}"
                yield name, batch / seconds, "images/s"
                yield f"{name}: largest difference to autocast", float((found[0] - expected[0]).abs().max()), ""
                del found, expected
        yield f"network {size}, published, batch 1", PUBLISHED.get(size, 0), "images/s"


def files(options: argparse.Namespace) -> Iterator[Row]:
    from inference import CLASSES, keep_queries, synthetic_images

    from eomt.inference.predict_files import predict_files, processes_beside, writing_processes
    from eomt.inference.segmenter import Segmenter
    from eomt.tasks import task_of

    count = processes_beside(WORKERS)
    processes = writing_processes(count)  # before the GPU is in use
    writers = {"processes": processes, "num_processes": count}
    with tempfile.TemporaryDirectory() as folder:
        paths = synthetic_images(Path(folder), 8 if options.small else 512)
        random = our_network(options.size, options.pixels, options.queries)
        keep_queries(random, paths[0], 40)
        segmenter = Segmenter(random, task_of("panoptic"), CLASSES, options.device, "bf16", compile=not options.small)
        for batch in (1, 16):
            part = paths[: max(1, len(paths) * batch // 16)]
            segmenter(paths[: 2 * batch], batch)
            seconds = time_of(lambda: list(segmenter.stream(part, batch, WORKERS)), segmenter.device, 1, 0)  # noqa: B023
            yield f"files to panoptic segments, batch {batch}, {WORKERS} workers", len(part) / seconds, "images/s"
        out = Path(folder, "out")
        start = time.perf_counter()
        done = list(predict_files(segmenter, Path(folder), paths, out, 16, WORKERS, **writers))
        yield (
            "the same with pictures and result files (predict.py)",
            len(done) / (time.perf_counter() - start),
            "images/s",
        )
    processes.shutdown()


def merging(options: argparse.Namespace) -> Iterator[Row]:
    from inference import post_processing

    own = argparse.Namespace(**vars(options), postprocess="panoptic", classes=133)
    torch.set_grad_enabled(False)
    for kept in (20, 60, 200):
        sides = post_processing(own, min(kept, options.queries), 480, 640)
        taken = interleaved(sides, torch.device(options.device), options.rounds)
        for side, seconds in taken.items():
            yield f"panoptic merging, 480x640, {kept} kept queries, {side}", 1e3 * seconds, "ms"


class Clock(Callback):
    """Seconds a batch after the first ones; the device is waited for at both ends of these alone."""

    def __init__(self, skipped: int):
        self.skipped, self.batches, self.start, self.seconds = skipped, 0, 0.0, float("nan")

    def tick(self, module) -> None:
        self.batches += 1
        if self.batches == self.skipped:
            synchronise(module.device)
            self.start = time.perf_counter()

    def stop(self, module) -> None:
        synchronise(module.device)
        if self.batches > self.skipped:
            self.seconds = (time.perf_counter() - self.start) / (self.batches - self.skipped)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.tick(pl_module)

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
        self.tick(pl_module)

    def on_train_end(self, trainer, pl_module) -> None:
        self.stop(pl_module)

    def on_validation_epoch_end(self, trainer, pl_module) -> None:
        self.stop(pl_module)


def runs(options: argparse.Namespace) -> Iterator[Row]:
    import hydra

    from eomt.cli.build import build_data, build_module, build_trainer, make_fast
    from eomt.cli.meanings import CONFIGS

    def run(clock: Clock, validate: bool, *overrides: str) -> float:
        with tempfile.TemporaryDirectory() as folder:
            own = (f"run_folder='{folder}'", "trainer.enable_progress_bar=false", "trainer.enable_checkpointing=false")
            with hydra.initialize_config_dir(CONFIGS, version_base="1.3"):
                cfg = hydra.compose("train", [*own, f"trainer.accelerator={options.accelerator}", *overrides])
            data = build_data(cfg)
            module = build_module(cfg, data.classes, data.image_size)
            trainer = build_trainer(cfg, [clock], False)
            trainer.accumulate_grad_batches = data.accumulation(trainer.world_size)
            if validate and trainer.precision == "bf16-mixed":
                module.network = with_cast_weights(module.network, torch.bfloat16)
            make_fast(module, trainer, cfg.compile, data.batch_size)
            trainer.validate(module, data, verbose=False) if validate else trainer.fit(module, data)
            return clock.seconds

    batch, steps = (2, 6) if options.small else (16, 40)
    if options.data:
        small = ["model=tiny", "data.image_size=64"] if options.small else []
        real = ["task=coco_instance", f"data.root='{options.data}'", f"data.num_workers={WORKERS}", *small]
        real += [
            "model.pretrained=false",
            f"data.batch_size={batch}",
            f"data.global_batch={batch}",
            f"data.eval_batch_size={batch}",
        ]
        limits = [f"trainer.max_steps={steps}", "trainer.max_epochs=-1", "trainer.limit_val_batches=0"]
        yield (
            f"train.py on COCO files, batch {batch}",
            batch / run(Clock(steps // 2), False, *real, *limits),
            "images/s",
        )
        yield f"eval.py on COCO files, batch {batch}", batch / run(Clock(2), True, *real), "images/s"
    limits = [f"trainer.max_steps={6 * steps}", "trainer.limit_val_batches=0"]
    yield "train.py, the built-in task", 1 / run(Clock(2 * steps), False, *limits), "steps/s"


def step_setting(
    options: argparse.Namespace,
    batch: int,
    size: str | None = None,
    pixels: int | None = None,
    compiled: bool = True,
    side: str = "ours",
):
    """`training_step.build` for one side."""
    from training_step import build

    compiled = compiled and not options.small
    changes = {"batch": batch, "size": size or options.size, "pixels": pixels or options.pixels, "compile": compiled}
    return build(argparse.Namespace(**{**vars(options), "targets": 20, **changes}), side)


def time_of(run, device: torch.device, rounds: int = 5, warm_up: int = 3) -> float:
    return interleaved({"": run}, device, rounds, warm_up)[""]


SECTIONS = {f.__name__: f for f in (counts, step, peers, network, files, merging, runs)}


def main() -> None:
    """Run the sections one after the other, and print their rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--original", metavar="PATH", help="a checkout of the original, to measure beside")
    parser.add_argument("--data", metavar="DIR", help="a folder with COCO's archives, for train.py and eval.py")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there, too")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else None)
    parser.add_argument("--small", action="store_true", help="toy sizes, to try the script")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--section", choices=SECTIONS, help="run this one in this process, a row per line")
    options = parser.parse_args()
    options.precision, options.accelerator = "bf16", "cpu" if options.device in (None, "cpu") else "gpu"
    options.size, options.pixels, options.queries = ("tiny", 64, 50) if options.small else ("large", 640, 200)
    if options.section:
        options.device = options.device or "cpu"
        torch.set_float32_matmul_precision("medium")
        for row in SECTIONS[options.section](options):
            print(json.dumps(row), flush=True)
        return
    if options.device is None:
        print("no GPU here: counts alone, on the CPU")
        options.sections = ["counts"]
    card = torch.cuda.get_device_name() if options.device and options.device != "cpu" else "CPU"
    about = {"card": card, "torch": torch.__version__, "date": f"{datetime.date.today()}", "commit": commit()}
    print(", ".join(f"{key} {value}" for key, value in about.items()), "\n\n| | | |\n|---|---|---|", sep="")
    rows, end = [], time.monotonic()
    for name in options.sections:
        end += SECONDS[name]
        for row in run_section(name, end - time.monotonic()):
            rows.append(row)
            print(f"| {row[0]} | {row[1]:.4g} | {row[2]} |", flush=True)
    result = json.dumps({**about, "rows": rows})
    print(f"\n{result}")
    if options.json:
        options.json.write_text(result)


def run_section(name: str, seconds: float) -> Iterator[Row]:
    """The rows of a section, run by this script in a process that is ended after `seconds`."""
    if seconds < 20:
        print(f"{name}: left out, the time is over")
        return
    command = [sys.executable, *sys.argv, "--section", name]
    try:
        done = subprocess.run(command, capture_output=True, timeout=seconds)
        output = done.stdout
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        fault = lines[-1] if done.returncode and lines else ""
    except subprocess.TimeoutExpired as error:
        output, fault = error.stdout or b"", "the time is over"
    for line in output.decode(errors="replace").splitlines():
        if line.startswith("["):
            yield tuple(json.loads(line))
    if fault:
        print(f"{name}: not all rows: {fault}")


def commit() -> str:
    """The commit of this checkout."""
    command = ["git", "-C", Path(__file__).parent, "describe", "--always", "--dirty"]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True).stdout.strip() or "unknown"


if __name__ == "__main__":
    main()
