"""The command line: names of run folders, and errors in one line."""

import importlib
import logging
import os
import re
import subprocess
import sys

import pytest
from hydra.core.global_hydra import GlobalHydra

from eomt.cli import main
from eomt.cli.help import help_of
from eomt.cli.meanings import keys_of
from tests.running import ROOT


@pytest.fixture(autouse=True)
def restored_logging():
    """Hydra configures the whole process's logging."""
    root, ours = logging.getLogger(), logging.getLogger("eomt")
    before = root.handlers[:], root.level, ours.level
    yield
    root.handlers[:], root.level, ours.level = before
    ours.disabled = False


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["seeed=1"], "seeed is no key of train.py: did you mean seed ("),
        (["data.train.splt=val"], "data.train.splt is no key of train.py: did you mean data.train.split"),
        (["logger/csv=x"], "logger/csv is no key of train.py"),
        (["model=enormous"], "model=enormous is not there: choose one of base, dinov3_7b, dinov3_base, "),
        (["model=vitl"], "model=vitl is not there: did you mean large? All: base, dinov3_7b, dinov3_base, "),
        (["task=coco"], "task=coco is not there: did you mean coco_instance or coco_panoptic? All: ade20k_panoptic, "),
        (["images="], "images= is empty: give a path, or null for none"),
        (["task=coco_panoptic"], "data.root is not set: give the folder that holds the dataset, as in data.root=DIR"),
    ],
)
def test_a_mistyped_argument_ends_the_command_in_one_line(arguments, line, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.setattr(main.sys, "argv", ["train.py", *arguments, f"hydra.run.dir={tmp_path}/run"])
    with pytest.raises(SystemExit) as end:
        main._run("train", lambda cfg: main.checked("train", cfg))
    GlobalHydra.instance().clear()
    assert end.value.code == 1
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("error: ")
    assert line in said


@pytest.mark.parametrize("command", ["train", "eval", "predict", "export", "check_data", "demo"])
def test_help_is_the_commands_own(command, monkeypatch, capsys):
    entry = importlib.import_module(command)
    monkeypatch.setattr(main.sys, "argv", [f"{command}.py", "task=coco_panoptic", "-h", "all"])
    main._run(command, entry.main)
    page = capsys.readouterr().out
    keys = {line.split("=")[0].strip(): line for line in page.splitlines() if line.startswith("  ")}
    for name, key in keys_of(command).items():
        assert key.meaning.split()[0] in keys[name], name
    examples = [line for line in page.splitlines() if line.startswith(f"python {command}.py ")]
    assert len([*examples, *re.findall(rf"^python {command}.py$", page, re.MULTILINE)]) == 5
    assert not re.search(r"powered by|overrid|launcher|recipe: dinov3", page)


def test_help_is_short_unless_more_is_asked_for(monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    pages = {words: help_of("train", "Train.", words).splitlines() for words in ("", "all", "lora", "xyz")}
    assert len(pages[""]) < 90 < len(pages["all"])
    assert any(line.startswith("  data.root=") for line in pages[""])
    assert [line.split("=")[0] for line in pages["lora"]] == ["  model.lora.rank", "  model.lora.alpha"]
    assert pages["xyz"] == ["no key of train.py has xyz in its name"]


def test_the_current_folder_stays(monkeypatch, tmp_path):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(main.sys, "argv", ["export.py", "ckpt=x", "out=null"])
    with pytest.raises(SystemExit):
        main._run("export", lambda cfg: main.checked("export", cfg))
    GlobalHydra.instance().clear()
    assert tmp_path.is_dir()


@pytest.mark.slow
@pytest.mark.parametrize("arguments", ["train.py --help", "predict.py --cfg all", "export.py --hydra-help"])
def test_a_reader_that_has_enough_is_no_error(arguments):
    """The output of `python train.py --help | head -1`."""
    script, *flags = arguments.split()
    read, write = os.pipe()
    os.close(read)
    ended = subprocess.run([sys.executable, ROOT / script, *flags], stdout=write, stderr=subprocess.PIPE, check=False)
    os.close(write)
    assert (ended.returncode in (0, 141), ended.stderr) == (True, b"")
