"""Batches of fixed sizes, with a stand-in for CUDA graphs on the CPU."""

import logging
import os
from contextlib import contextmanager
from functools import partial

import pytest
import torch

from eomt.errors import InputError
from eomt.inference import graphs
from eomt.inference.graphs import FixedBatches, compile_network
from eomt.inference.segmenter import Segmenter
from eomt.model.outputs import Logits
from eomt.tasks import task_of
from tests.random_networks import CLASSES, KINDS, OPTIONS, assert_same, random_image, random_network


class FakeGraph:
    """Runs on a copy of the input into fixed memory, as a graph does."""

    def __init__(self, run, images):
        self.run, self.given = run, torch.zeros_like(images)

    def __call__(self, images):
        return self.run(self.given.copy_(images))


class Stale(FakeGraph):
    """A graph that does not read its input."""

    def __call__(self, images):
        return self.run(self.given)


def too_large(run, images):
    raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.fixture
def images():
    return torch.stack([torch.from_numpy(random_image(32, 32, k)).permute(2, 0, 1) for k in range(7)])


def record_sizes(network):
    sizes = []
    network.register_forward_hook(lambda module, args, output: sizes.append(len(args[0])))
    return sizes


@pytest.mark.parametrize("graph", [FakeGraph, Stale, too_large])
def test_smaller_batches_are_filled_up_and_a_graph_is_used_where_it_gives_the_same(graph, images, monkeypatch, caplog):
    network = random_network().eval()
    monkeypatch.setattr(graphs, "capture", graph)
    batches, sizes = FixedBatches(network, fill=False, graphs=True), record_sizes(network)
    with torch.inference_mode(), caplog.at_level(logging.INFO, "eomt"):
        expected = network(images)[-1].logits()
        sizes.clear()
        found = [batches(part, 3) for part in images.split(3)]
        found.append(batches(images[:1], 1))
    assert set(sizes[:-1]) <= {3, 1}
    assert [len(part.class_logits) for part in found] == [3, 3, 1, 1]
    whole = Logits(*(torch.cat(parts)[:7] for parts in zip(*found, strict=True)))
    for one, other in zip(whole, expected, strict=True):
        torch.testing.assert_close(one, other)
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    if graph is FakeGraph:
        assert not warnings
        assert len(batches._captured) == 2
        batches.release()
        batches(images[:3], 3)
        assert caplog.text.count("ready for batches of 3") == 1
    else:
        words = "it gives other logits" if graph is Stale else "CUDA out of memory"
        assert warnings == [f"network: runs without CUDA graphs ({words}); compile=false leaves them out"]


@pytest.mark.parametrize("ended", [True, False])
def test_a_capture_that_fails_leaves_the_device_as_it_was(ended, monkeypatch):
    """Also one that the device has given up, whose end fails before PyTorch takes its stream and its pool back."""
    calls = []

    @contextmanager
    def graph(graph, pool, stream, capture_error_mode):
        try:
            yield
        finally:
            if not ended:
                raise RuntimeError("operation failed due to a previous error during capture")

    def end(device, pool):
        calls.append((device, pool))
        if ended:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")

    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: "before")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_stream", calls.append)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 5))
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", end, raising=False)
    monkeypatch.setattr(torch._C, "_cuda_releasePool", lambda *_: calls.append("released"), raising=False)
    monkeypatch.setattr(graphs, "_capturing_stream", lambda device: f"stream of {device}")
    monkeypatch.setattr(graphs, "_GIVEN_UP", kept := [])
    words = "no memory" if ended else "previous error"
    with pytest.raises(RuntimeError, match=words) as fault, graphs.capturing("graph"):
        raise RuntimeError("no memory")
    assert graphs.capture_fault(fault.value) == "no memory"
    assert calls == ["before", (1, (0, 5)), "released"][: 2 if ended else 3]
    assert kept == ([] if ended else ["graph"])


def test_a_network_on_a_cpu_sees_batches_as_they_are(images):
    network = random_network().eval()
    sizes = record_sizes(network)
    batches = FixedBatches(network, fill=False, graphs=False)
    with torch.inference_mode():
        batches(images, 16)
    assert sizes == [7]


@pytest.mark.parametrize("kind", KINDS)
def test_a_segmenter_with_graphs_and_threads_gives_the_same_in_the_same_order(kind, monkeypatch):
    images = [random_image(*size, seed) for seed, size in enumerate([(40, 50), (30, 30), (20, 90), (64, 32), (1, 7)])]

    def results(**options):
        segmenter = Segmenter(random_network().double(), task_of(kind, OPTIONS[kind]), CLASSES, "cpu")
        segmenter._batches = FixedBatches(segmenter.network, False, **options)
        return [segmenter(images, batch_size, 2) for batch_size in (1, 2, 4, 100)]

    expected = results(graphs=False)
    monkeypatch.setattr(graphs, "capture", FakeGraph)
    monkeypatch.setattr("eomt.inference.background.Background.__init__.__defaults__", (True,))
    for one, other in zip(results(graphs=True), expected, strict=True):
        for mine, theirs in zip(one, other, strict=True):
            assert_same(mine, theirs, 1e-6)


def test_training_and_validation_are_compiled_once_each(images, monkeypatch, tmp_path):
    """Whatever masks are dropped, and however few images the last batch of a validation has."""
    compiled = []

    def backend(module, inputs):
        compiled.append(module)
        return module.forward

    network = random_network()
    monkeypatch.setenv("EOMT_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", f"{tmp_path}/torchinductor_me")
    monkeypatch.setattr(network, "compile", partial(network.compile, backend=backend))
    compile_network(network, True)
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "compiled")
    batches = FixedBatches(network, fill=True, graphs=False)
    for epoch in range(2):
        for dropped in (torch.zeros(1, 4, 6), torch.ones(1, 4, 6)):
            network.train()(images[:4], dropped.bool())[-1].class_logits.sum().backward()
        network.eval()
        with torch.inference_mode():
            found = [len(batches(part, 2).class_logits) for part in images[: 6 + epoch].split(2)]
        assert found == [2, 2, 2, 1][: 3 + epoch]
    assert len(compiled) == 2


def test_no_such_way_to_compile():
    with pytest.raises(InputError, match="compile=fast is none of true, false, max-autotune"):
        compile_network(random_network(), "fast")
