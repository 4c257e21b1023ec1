"""The end of a command: errors in one line."""

import errno
import os
import sys

import pytest
from hydra.core.global_hydra import GlobalHydra

from eomt.cli import main
from eomt.cli.endings import ENDINGS, explain
from eomt.errors import InputError

QUIET = ("hydra/job_logging=none", "hydra/hydra_logging=none")


def _fails_within(error):
    try:
        raise error
    except InputError as cause:
        raise RuntimeError("Error in call to target") from cause


def test_error_lines_are_one_line_and_our_own_words_win():
    with pytest.raises(RuntimeError) as error:
        _fails_within(InputError("data.root is not set:\n  set it"))
    assert explain(error.value) == "data.root is not set: set it"
    assert explain(ValueError("a\n\tb")) == "a b"


def test_code_that_cannot_be_imported_is_named():
    from hydra.utils import instantiate

    with pytest.raises(ENDINGS) as error:
        instantiate({"_target_": "circles_nobody_has.Circles"})
    line = explain(error.value)
    assert line.startswith("circles_nobody_has.Circles cannot be imported (")
    assert line.endswith("is its folder in PYTHONPATH?")


@pytest.mark.parametrize("within", [False, True])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_under_a_log_is_one_line(monkeypatch, capsys, tmp_path, number, within):
    """The error of writing, other than of opening, names no file."""

    def full(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.setattr(sys, "argv", ["train.py", f"hydra.run.dir={tmp_path}/run", *QUIET])
    if not within:
        monkeypatch.setattr(main.hydra, "main", lambda **_: lambda function: full)
    with pytest.raises(SystemExit) as ended:
        main._run("train", full)
    GlobalHydra.instance().clear()
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert said == f"error: {os.strerror(number)}; free some space, or choose another folder by hydra.run.dir=\n"
