"""Messages in the terminal, beside progress bars."""

from __future__ import annotations

import logging
import re
import sys

from tqdm import tqdm

from eomt.errors import Stopped
from eomt.training.slurm import first_rank

# Characters that control a terminal, but for ends of lines and tabs.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class Console(logging.StreamHandler):
    """Handler that gives each message a line of its own: a progress bar is cleared before it and drawn again below."""

    def format(self, record: logging.LogRecord) -> str:
        # A hostile file's name, or a name in it, would be a command to the terminal.
        return _CONTROL.sub("?", super().format(record))

    def emit(self, record: logging.LogRecord) -> None:
        try:
            with tqdm.external_write_mode(self.stream):
                super().emit(record)
        except Exception as error:  # as where the reader of a pipe has gone
            if isinstance(error.__context__, Stopped):
                # A signal came while tqdm took its lock, which it then cannot give back.
                raise error.__context__ from None
            self.handleError(record)


NOTES: list[str] = []
"""Lines that `note` has said, until the command's log has them."""


def note(text: str) -> None:
    """Say something before there is a log, and keep it for that, in `NOTES`; the first rank does so for all."""
    if first_rank():
        NOTES.append("note: " + "".join(mark if mark.isprintable() else "?" for mark in text))
        print(NOTES[-1], file=sys.stderr)
