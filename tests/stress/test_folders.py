"""Exported folders whose descriptions are hostile: read, or refused in one line; nothing else happens.

    python -m pytest -m stress tests/stress/test_folders.py                   all 2,200 values
    python -m pytest -m "slow or stress" tests/stress/test_folders.py         every 40th of them

Each value of config.json, preprocessor_config.json and eomt.json in turn takes each hostile one.
"""

import copy
import json
import os
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from eomt.errors import InputError
from eomt.inference.segmenter import Segmenter
from tests.weights.sources import SEVEN, part_of, small, write_folder, write_huggingface

HOSTILE = (
    10**9,
    2**62,
    2**64,
    -1,
    0,
    1e308,
    float("nan"),
    True,
    None,
    "x",
    "",
    "../../etc",
    "/etc",
    "evil--evil.Model",
)
HOSTILE += ([], {}, [10**9] * 2, {"a": {"b": {}}}, ["x"] * 5, "\x1b[2J\x07", "a" * 10**6, {"_target_": "os.system"})
MORE = {"auto_map": {"AutoModel": "evil--evil.Model"}, "_target_": "os.system", "trust_remote_code": True}
MORE |= {"_name_or_path": "../../x", "quantization_config": {"quant_method": "evil"}, "base_model": "/etc"}
TEXTS = ("", "[]", '{"a":' * 10**5, "[" * 10**5, '{"hidden_size": 1' + "0" * 5000 + "}", '{"a": 1e999}', "\0" * 100)

_WATCHED = ("subprocess.", "os.system", "os.exec", "socket.", "os.remove", "os.rename", "os.mkdir", "shutil.")
_seen: list[str] | None = None


def _watch(event: str, arguments: tuple) -> None:
    if _seen is None:
        return
    writes = event == "open" and (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    if writes or event.startswith(_WATCHED) or (event == "import" and arguments[0].startswith("evil")):
        _seen.append(f"{event} {arguments!r}"[:200])


@pytest.fixture(scope="module", autouse=True)
def watched():
    """Events of Python's audit; a hook cannot be removed."""
    sys.addaudithook(_watch)
    yield
    globals()["_seen"] = None


def places(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """The path of each value in a description: of lists the first two entries."""
    yield path
    pairs = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    for key, inner in pairs:
        yield from places(inner, (*path, key))


def replaced(value: Any, path: tuple, hostile: Any) -> Any:
    """A copy with another value at a path."""
    if not path:
        return hostile
    value = copy.deepcopy(value)
    inner = value
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = hostile
    return value


@pytest.mark.parametrize("every", [pytest.param(40, marks=pytest.mark.slow), pytest.param(1, marks=pytest.mark.stress)])
@pytest.mark.parametrize("form", ["hf", "ours"])
def test_hostile_descriptions(tmp_path, monkeypatch, form, every):
    global _seen
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    network = small(7)
    if form == "hf":
        write_huggingface(tmp_path, network, SEVEN, "panoptic")
    else:
        write_folder(tmp_path, network.state_dict(), part_of(network))
    image = np.zeros((40, 50, 3), np.uint8)
    Segmenter.load(tmp_path, device="cpu")(image)
    refused = 0
    for file in sorted(tmp_path.glob("*.json")):
        honest = file.read_text()
        content = json.loads(honest)
        texts = [json.dumps(replaced(content, path, value)) for path in places(content) for value in HOSTILE]
        texts += [json.dumps(content | {key: value}) for key, value in MORE.items()] + list(TEXTS)
        for text in texts[::every]:
            file.write_text(text)
            _seen = []
            try:
                Segmenter.load(tmp_path, device="cpu")(image)
            except InputError:
                refused += 1
            seen, _seen = _seen, None
            assert not seen, (file.name, text[:200])
        file.write_text(honest)
    assert refused
