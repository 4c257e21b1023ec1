"""Faults gathered from several checks."""

import pytest

from eomt.errors import MOST_DETAILS, Faults, InputError


def test_many_faults_are_counted():
    faults = Faults()
    faults.end()

    def bad(number):
        raise InputError(f"fault {number}")

    assert faults.check(int, "3") == 3
    for number in range(MOST_DETAILS + 7):
        assert faults.check(bad, number) is None
    with pytest.raises(InputError, match=r"^fault 0$") as caught:
        faults.end()
    assert len(caught.value.details) == MOST_DETAILS + 1
    assert caught.value.details[-1] == "and 7 more"
