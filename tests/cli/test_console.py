"""Messages beside a progress bar."""

import io
import logging

import pytest
from tqdm import tqdm

from eomt.cli.console import Console
from eomt.errors import Stopped


def test_a_message_stands_on_a_line_of_its_own():
    terminal = io.StringIO()
    log = logging.Logger("test")
    log.addHandler(Console(terminal))
    with tqdm(total=2, file=terminal, mininterval=0) as bar:
        bar.update()
        log.warning("said")
        bar.update()
    message, rest = terminal.getvalue().split("said")
    assert message.rpartition("\r")[2] == ""
    assert not message.rpartition("\r")[0].rpartition("\r")[2].strip()  # the bar is cleared
    assert rest.startswith("\n\r")
    assert "2/2" in rest


def test_a_terminal_that_has_gone_is_no_error(monkeypatch):
    monkeypatch.setattr(logging, "raiseExceptions", False)
    gone = io.StringIO()
    handler = Console(gone)
    gone.close()
    handler.emit(logging.makeLogRecord({"msg": "unread"}))


def test_a_name_gives_the_terminal_no_command():
    terminal = io.StringIO()
    Console(terminal).emit(logging.makeLogRecord({"msg": "\x1b[2J\x9bname\ttable\nrow é"}))
    assert terminal.getvalue() == "?[2J?name\ttable\nrow é\n"


def test_a_signal_within_a_message_is_not_lost(monkeypatch):
    """tqdm then gives back a lock that it does not have, and that error would hide the signal's."""

    class Lock:
        def acquire(self):
            raise Stopped("stopped by SIGTERM")

        def release(self):
            raise RuntimeError("cannot release un-acquired lock")

    monkeypatch.setattr(tqdm, "_lock", Lock())
    with pytest.raises(Stopped):
        Console(io.StringIO()).emit(logging.makeLogRecord({"msg": "text"}))
