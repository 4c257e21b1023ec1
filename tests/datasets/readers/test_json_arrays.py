"""Streaming of COCO's JSONs."""

import json

import pytest

from datasets.readers.json_arrays import stream_arrays
from eomt.errors import InputError

DIGITS, DEEP = "9" * 5000, "[" * 100_000
BROKEN = [f'{{"images": [{{"id": {DIGITS}', f'{{"info": {DEEP}', f'{{"images": [{DEEP}']
BROKEN += ["", "{", '{"images": [{"id": 1', "[]", '{"info": [1 2]}', '{"a" 1}', "\0", "{}", "{[1]: 2}", '{{"a": 1}: 2}']


@pytest.mark.parametrize("text", BROKEN, ids=lambda text: text[:20])
def test_broken_json(text):
    with pytest.raises(InputError, match=r"^x\.json (is not valid JSON|has no|is a list)") as caught:
        list(stream_arrays([text.encode()], ["images", "annotations"], "x.json"))
    assert "\n" not in str(caught.value)


def test_a_list_is_no_set():
    with pytest.raises(InputError, match=r"^x\.json is a list, such as of results: COCO's form is an object with "):
        list(stream_arrays([b' [{"image_id": 1}]'], ["images"], "x.json"))


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_json_in_pieces(size):
    wanted = [{"n": 'ü\n"[', "v": [1, {}]}, 2.5, -17, None, "x", []]
    value = {"number": 12345, "a": wanted, "skip": {"a": [1]}, "b": [], "c": 1}
    text = b"\xef\xbb\xbf" + json.dumps(value, indent=1, ensure_ascii=False).encode() + b"\n"
    pieces = [text[k : k + size] for k in range(0, len(text), size)]
    assert list(stream_arrays(pieces, ["a", "b"], "file")) == [("a", element) for element in wanted]


def test_json_is_not_held_whole():
    pending = {"now": 0, "most": 0}

    def chunks():
        yield b'{"a": ['
        for _ in range(2000):
            pending["now"] += 1
            pending["most"] = max(pending["most"], pending["now"])
            yield b'"' + b"x" * 100 + b'",'
        yield b"0]}"

    for _ in stream_arrays(chunks(), ["a"], "file"):
        pending["now"] -= 1
    assert pending["most"] < 10


def test_an_element_that_would_fill_the_memory_is_refused():
    chunks = (b'{"a": ["' if k == 0 else b"x" * (1 << 20) for k in range(200))
    with pytest.raises(InputError, match=r"file is not valid JSON \(an element of more than 32 MB"):
        list(stream_arrays(chunks, ["a"], "file"))
    assert next(chunks)
