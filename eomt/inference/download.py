"""Images from addresses of the web."""

from __future__ import annotations

import http.client
import io
import re
import time
import urllib.request
from pathlib import Path
from typing import TypeGuard

from eomt.errors import InputError, reason

MOST_BYTES = 128 * 2**20
"""The largest image that is downloaded, in bytes."""

# Seconds for a server's next bytes, and for all of them.
_PATIENCE, _LONGEST = 10, 60
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")


def is_address(source: object) -> TypeGuard[str]:
    """True for an address such as https://host/photo.jpg. A file of that name is none."""
    return isinstance(source, str) and bool(_ADDRESS.match(source)) and not Path(source).is_file()


def shown(address: str) -> str:
    """An address in messages: without its query, which may hold a secret."""
    return address.partition("?")[0]


def download(address: str) -> bytes:
    """Download a file of at most `MOST_BYTES` within a minute, by http or https alone, also where it is redirected.

    Raises:
        InputError: if the address is another, or the server cannot be reached, refuses, is too slow or sends too much.
    """
    name, deadline = shown(address), time.monotonic() + _LONGEST
    if address.partition("://")[0].lower() not in ("http", "https"):
        raise InputError(f"{name}: only http:// and https:// addresses are read; download the file and give its path")
    # Not urllib's default opener, which a redirection may lead to ftp.
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    content = io.BytesIO()
    try:
        request = urllib.request.Request(address, headers={"User-Agent": "eomt"})
        with opener.open(request, timeout=_PATIENCE) as response:
            while part := response.read1(2**16):
                content.write(part)
                if content.tell() > MOST_BYTES:
                    raise InputError(f"{name} has more than {MOST_BYTES >> 20} MiB: download it and give its path")
                if time.monotonic() > deadline:
                    raise InputError(f"{name} takes longer than {_LONGEST} s: download it and give its path")
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise InputError(f"{name} cannot be downloaded: {reason(error)}") from error
    return content.getvalue()
