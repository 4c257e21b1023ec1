"""Values of wrong type or range for every key of every command: each ends in one line, none in a stack trace.

python -m pytest -m stress tests/stress/test_values.py -s

The keys are those of the composed configurations. Values that are right for a key are run as far as the objects that
they make: data, network, callbacks, loggers and trainer of a training, and the whole of the other commands.
"""

import importlib
import random
import subprocess
import sys
from collections import Counter

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from PIL import Image

from eomt.cli import main
from eomt.cli.overrides import key_of
from eomt.cli.settings import Scored
from tests.running import ROOT, SMALL, composed, configured

pytestmark = pytest.mark.xdist_group("values")

VALUES = (
    "abc",
    "-1",
    "0",
    "1.5",
    "null",
    "nan",
    "-inf",
    "true",
    "no",
    "[]",
    "{}",
    "[1,2,3]",
    "''",
    "9999999999999999999",
)
PER_KEY = 4
QUIET = ("hydra/job_logging=none", "hydra/hydra_logging=none")  # fmt: skip


@pytest.fixture(scope="module")
def start(shapes, tmp_path_factory):
    """For each command, the arguments of a run that ends well within seconds."""
    folder = tmp_path_factory.mktemp("values")
    Image.new("RGB", (64, 48)).save(folder / "image.png")
    from eomt.cli.build import build_data, build_module

    options = [*SMALL, f"data.root='{shapes}'"]
    cfg = configured(folder, *options)
    data = build_data(cfg)
    module = build_module(cfg, data.classes, data.image_size)
    checkpoint = {"state_dict": module.state_dict(), "global_step": 1}
    module.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, folder / "model.ckpt")
    ckpt = f"ckpt={folder}/model.ckpt"
    here = ("trainer.accelerator=cpu", "trainer.enable_progress_bar=false", "data.num_workers=0", "pictures=0")
    return {
        "train": options,
        "check_data": [*options, "data.max_images=2", "pictures=0"],
        "eval": [ckpt, f"data.root={shapes}", *here, "data.max_images=2", "trainer.limit_val_batches=1"],
        "predict": [ckpt, f"images={folder}/image.png", f"out={folder}/out", "overwrite=true", "device=cpu"],
        "export": [ckpt, f"out={folder}/exported", "overwrite=true"],
    }


def keys(name):
    """All keys of a command, of leaves and of sections."""

    def walk(values, path):
        if path:
            yield path
        for key, value in values.items() if isinstance(values, dict) else ():
            yield from walk(value, f"{path}.{key}" if path else key)

    found = set(walk(OmegaConf.to_container(composed(name), resolve=False), ""))
    if name == "eval":
        # The keys of a run that go over the checkpoint's.
        run = OmegaConf.to_container(composed("train"), resolve=False)
        found |= set(walk({key: run[key] for key in Scored.model_fields}, ""))
    return found - {"run_folder", "ckpt", "out", "settings"}


def builds(cfg):
    """train.py up to its first step."""
    main.checked("train", cfg)
    from eomt.cli.build import build_callbacks, build_data, build_loggers, build_module, build_trainer
    from eomt.cli.fit import starting_point

    data = build_data(cfg)
    build_module(cfg, data.classes, data.image_size)
    starting_point(cfg)
    trainer = build_trainer(cfg, build_callbacks(cfg), build_loggers(cfg) or False)
    data.accumulation(trainer.world_size)


def ended(name, function, arguments, monkeypatch, capsys):
    """Run a command: its error line, or "" where it ended well; raises what would be a stack trace."""
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments, *QUIET])
    try:
        main._run(name, function)
    except SystemExit as end:
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        if end.code != 1 or len(lines) != 1:
            raise RuntimeError(f"status {end.code}, {len(lines)} lines") from end
        return lines[0]
    finally:
        GlobalHydra.instance().clear()
    return ""


@pytest.mark.stress
@pytest.mark.parametrize("name", ["train", "predict", "export", "eval", "check_data"])
def test_no_value_ends_in_a_stack_trace(name, start, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.chdir(tmp_path)
    OmegaConf.register_new_resolver("run_id", lambda: "run", replace=True)
    function = builds if name == "train" else importlib.import_module(name).main
    assert ended(name, function, start[name], monkeypatch, capsys) == "", (
        "the run that the values are put into ends well"
    )
    counts, traces = Counter(), []
    # The keys that check_data.py shares with train.py are checked with those.
    shared = keys("train") if name == "check_data" else set()
    for key in sorted(keys(name) - shared):
        for value in random.Random(key).sample(VALUES, PER_KEY):
            rest = [argument for argument in start[name] if key_of(argument) != key]
            try:
                line = ended(name, function, [*rest, f"{key}={value}"], monkeypatch, capsys)
            except BaseException as error:
                traces.append(f"{key}={value}: {type(error).__name__}: {str(error)[:200]}")
                continue
            counts["refused" if line else "taken"] += 1
    with capsys.disabled():
        print(f"\n{name}: {dict(counts)}, stack traces: {len(traces)}", *traces, sep="\n")
    assert not traces


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("eval", ["ckpt=.", "trainer.devices=abc"], "error: trainer.devices=abc must be auto, -1"),
        ("predict", ["ckpt=.", "images=.", "batch_size=-1"], "error: batch_size=-1 must be a whole number"),
        ("check_data", ["pictures=1.5"], "error: pictures=1.5 must be a whole number of at least 0"),
    ],
)
def test_processes_end_with_one_line(name, arguments, said, tmp_path):
    command = [sys.executable, str(ROOT / f"{name}.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False, timeout=120)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(said)
    assert not list(tmp_path.rglob("*.log"))
