"""Repeated reads."""

import errno

import pytest

from datasets.files import retry
from datasets.files.decode import decode_rgb
from datasets.files.retry import PAUSES, read_with_retry
from eomt.errors import InputError
from tests.label_files import photo


@pytest.fixture
def waited(monkeypatch):
    waited = []
    monkeypatch.setattr(retry.time, "sleep", waited.append)
    return waited


@pytest.mark.parametrize(("number", "attempts"), [(errno.EIO, 4), (errno.ESTALE, 4), (errno.ENOENT, 1), (None, 1)])
def test_errors_that_may_pass_are_tried_again(waited, number, attempts):
    tried = []

    def read(index):
        tried.append(index)
        raise InputError("cannot read x") from OSError(number, "reason")

    with pytest.raises(InputError, match="cannot read x"):
        read_with_retry(read, 7)
    assert tried == [7] * attempts
    assert waited == list(PAUSES[: attempts - 1])


def test_a_read_that_succeeds_in_the_end(waited):
    left = [errno.ETIMEDOUT]

    def read(index):
        if left:
            raise InputError("cannot read x") from OSError(left.pop(), "reason")
        return index + 1

    assert read_with_retry(read, 7) == 8


def test_damaged_images_are_not_read_again(waited):
    with pytest.raises(InputError, match="cannot be decoded"):
        read_with_retry(lambda _: decode_rgb(photo(9, 9)[:-30], "x.jpg"), 0)
    assert not waited
