"""The command line: names of run folders, and errors in one line."""

import logging
import os
import subprocess
import sys

import pytest
from hydra.core.global_hydra import GlobalHydra

from eomt.cli import main
from eomt.errors import InputError
from tests.running import ROOT


@pytest.fixture(autouse=True)
def restored_logging():
    """Hydra configures the whole process's logging."""
    root, ours = logging.getLogger(), logging.getLogger("eomt")
    before = root.handlers[:], root.level, ours.level
    yield
    root.handlers[:], root.level, ours.level = before
    ours.disabled = False


def _fails_within(error):
    try:
        raise error
    except InputError as cause:
        raise RuntimeError("Error in call to target") from cause


def test_error_lines_are_one_line_and_our_own_words_win():
    with pytest.raises(RuntimeError) as error:
        _fails_within(InputError("data.root is not set:\n  set it"))
    assert main.explain(error.value) == "data.root is not set: set it"
    assert main.explain(ValueError("a\n\tb")) == "a b"


def test_code_that_cannot_be_imported_is_named():
    from hydra.utils import instantiate

    with pytest.raises(main.ENDINGS) as error:
        instantiate({"_target_": "circles_nobody_has.Circles"})
    line = main.explain(error.value)
    assert line.startswith("circles_nobody_has.Circles cannot be imported (")
    assert line.endswith("is its folder in PYTHONPATH?")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["seeed=1"], "seeed is no key of the configuration: --cfg job prints all that there are"),
        (["trainer.accumulate_grad_batches=2"], "trainer.accumulate_grad_batches follows from data.global_batch"),
        (["model=null"], "model=null must be base, dinov3_base, "),
        (["model=[1,2,3]"], "model=[1,2,3] must be base, dinov3_base, "),
        (["model=enormous"], "In 'train': Could not find 'model/enormous' Available options in 'model': base"),
        (["images="], "images= is empty: give a path, or null for none"),
        (["seed=[1"], "no viable alternative at input"),
    ],
)
def test_a_mistyped_argument_ends_the_command_in_one_line(arguments, line, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.setattr(main.sys, "argv", ["train.py", *arguments, f"hydra.run.dir={tmp_path}/run"])
    with pytest.raises(SystemExit) as end:
        main._run("train", lambda cfg: None)
    GlobalHydra.instance().clear()
    assert end.value.code == 1
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("error: ")
    assert line in said


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
    """As `python train.py --help | head -1`."""
    script, *flags = arguments.split()
    read, write = os.pipe()
    os.close(read)
    ended = subprocess.run([sys.executable, ROOT / script, *flags], stdout=write, stderr=subprocess.PIPE, check=False)
    os.close(write)
    assert (ended.returncode in (0, 141), ended.stderr) == (True, b"")
