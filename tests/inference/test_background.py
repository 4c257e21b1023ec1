"""Post-processing in threads: order, the check at the start, errors."""

import threading

import pytest
import torch

from eomt.inference.background import Background

CPU = torch.device("cpu")


@pytest.mark.parametrize("concurrent", [False, True])
def test_results_come_in_order_and_each_once(concurrent):
    background, done = Background(CPU, 1, concurrent), []
    with torch.inference_mode():
        # The first one is computed both ways, but only once taken.
        futures = [background.submit(lambda k=k: torch.tensor(k).square(), done.append) for k in range(5)]
    for future in futures:
        future.result()
    assert [int(value) for value in done] == [0, 1, 4, 9, 16]
    assert all(value.is_inference() for value in done)
    assert background.concurrent == concurrent


def test_without_threads_where_they_give_another_result(caplog):
    background, here = Background(CPU, 1, True), threading.current_thread()
    futures = [background.submit(lambda: [threading.current_thread() is here, torch.ones(2)]) for _ in range(3)]
    assert all(future.result()[0] for future in futures)
    assert not background.concurrent
    assert caplog.text.count("gave another result") == 1


def test_an_error_comes_with_the_result():
    background = Background(CPU, 1, True)
    background.submit(lambda: 0)
    future = background.submit(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        future.result()


@pytest.mark.parametrize("concurrent", [False, True])
def test_nothing_is_computed_under_autocast(concurrent):
    background, ones = Background(CPU, 1, concurrent), torch.ones(2, 2)
    with torch.autocast("cpu", torch.bfloat16):
        futures = [background.submit(lambda: ones @ ones, lambda found: (found, found @ ones)) for _ in range(3)]
    for future in futures:
        assert [found.dtype for found in future.result()] == [torch.float32, torch.float32]
    assert background.concurrent == concurrent
