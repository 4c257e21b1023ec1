"""Messages beside a progress bar."""

import io
import logging

from tqdm import tqdm

from eomt.cli.console import Console


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
