"""Training by CUDA graphs, with a stand-in for them on the CPU."""

import logging
from types import SimpleNamespace

import pytest
import torch

import train
from eomt.cli import build
from eomt.training import step_graph
from eomt.training.step_graph import Passes, StepGraph, is_small
from eomt.weights.checkpoint import read_checkpoint
from tests.random_networks import PUBLISHED, published, random_network
from tests.running import configured, equal


def stand_in(run, inputs, parameters):
    """Both passes on and into fixed memory, as graphs have them."""
    given = [torch.zeros_like(value) for value in inputs]
    tracked = list(run(*given))
    results = [output.detach().clone() for output in tracked]
    gradients = [torch.zeros_like(parameter) for parameter in parameters]

    def forward(inputs):
        for own, value in zip(given, inputs, strict=True):
            own.copy_(value)
        with torch.enable_grad():
            tracked[:] = run(*given)
        for result, output in zip(results, tracked, strict=True):
            result.copy_(output.detach())
        return tuple(result.detach() for result in results)

    def backward(gradients_of_outputs):
        found = torch.autograd.grad(tracked, parameters, gradients_of_outputs, allow_unused=True)
        for own, value in zip(gradients, found, strict=True):
            if value is not None:
                own.copy_(value)
        return tuple(None if value is None else own.detach() for own, value in zip(gradients, found, strict=True))

    return Passes(forward, backward)


def blind(run, inputs, parameters):
    """Graphs that do not read their inputs."""
    passes = stand_in(run, inputs, parameters)
    return Passes(lambda values: passes.forward([torch.zeros_like(value) for value in values]), passes.backward)


def deaf(run, inputs, parameters):
    """Graphs that do not read the gradients of their outputs."""
    passes = stand_in(run, inputs, parameters)
    return Passes(passes.forward, lambda values: passes.backward([torch.ones_like(value) for value in values]))


def one_short(run, inputs, parameters):
    """Graphs that leave a parameter without a gradient."""
    passes = stand_in(run, inputs, parameters)
    return Passes(passes.forward, lambda values: (*passes.backward(values)[:-1], None))


def too_large(run, inputs, parameters):
    raise torch.OutOfMemoryError("CUDA out of memory")


def batches():
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        images = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8, generator=generator)
        yield images, torch.rand(1, 2, 6, generator=generator) < 0.5


def trained(run, network):
    """Losses and weights of three steps of `run` that take the gradients as they are left."""
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], 1e-2)
    losses = []
    for images, dropped in batches():
        loss = sum(value.square().mean() for output in run(images, dropped) for value in output)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return losses, network.state_dict()


def network_for(frozen):
    network = random_network().train()
    network.backbone.requires_grad_(not frozen)
    return network


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize(
    ("graphs", "fault"),
    [
        (stand_in, None),
        (blind, "they give something else"),
        (deaf, "they give something else"),
        (one_short, "they give something else"),
        (too_large, "CUDA out of memory"),
    ],
)
def test_steps_are_those_of_the_network_and_wrong_graphs_are_not_used(graphs, fault, frozen, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "eomt")
    monkeypatch.setattr(step_graph, "capture_passes", graphs)
    plain, network = network_for(frozen), network_for(frozen)
    calls = []
    network.register_forward_hook(lambda *_: calls.append(None))
    assert equal(trained(StepGraph(network), network), trained(plain, plain))
    (line,) = [record.getMessage() for record in caplog.records]
    if fault:
        assert line == f"training: runs without CUDA graphs ({fault}); compile=true compiles the network instead"
    else:
        assert line.startswith("training: the network as CUDA graphs after")


def test_graphs_are_made_anew_where_a_weight_has_moved(monkeypatch):
    made = []

    def counted(*arguments):
        made.append(None)
        return stand_in(*arguments)

    monkeypatch.setattr(step_graph, "capture_passes", counted)
    network = network_for(False)
    run = StepGraph(network)
    (first, second, third) = batches()
    run(*first)
    run(*second)
    assert len(made) == 1
    network.class_head.weight.data = network.class_head.weight.data * 2
    found = run(*third)
    assert len(made) == 2
    assert equal([list(output) for output in found], [list(output) for output in network(*third)])
    run(first[0][:1], first[1][:, :1])
    assert len(made) == 3
    network.queries.requires_grad_(False)
    run(first[0][:1], first[1][:, :1])
    assert len(made) == 4


@pytest.mark.slow
@pytest.mark.parametrize("annealing", [(), ("annealing.windows=null",)])
def test_a_run_by_graphs_leaves_the_weights_of_one_without(annealing, options, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "eomt")
    monkeypatch.setattr(step_graph, "capture_passes", stand_in)
    weights = []
    for by_graphs in (True, False):

        def make_fast(module, *_, by_graphs=by_graphs):
            module.step_graphs = by_graphs

        monkeypatch.setattr("eomt.cli.fit.make_fast", make_fast)
        folder = tmp_path / f"{by_graphs}"
        train.main(configured(folder, *options, "data.batch_size=8", *annealing))
        weights.append(read_checkpoint(folder / "checkpoints" / "last.ckpt")["state_dict"])
    assert equal(*weights)
    assert caplog.text.count("the network as CUDA graphs") == 1


def test_gradients_are_those_of_a_backward_pass_without_autocast(monkeypatch):
    monkeypatch.setattr(step_graph, "capture_passes", stand_in)
    plain, network = network_for(False), network_for(False)
    images, dropped = next(batches())
    gradients = []
    for run, model in ((plain, plain), (StepGraph(network), network)):
        with torch.autocast("cpu", torch.bfloat16):
            outputs = run(images, dropped)
        sum(value.float().square().mean() for output in outputs for value in output).backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        assert (one - other).norm() <= 0.01 * one.norm() + 1e-6


@pytest.mark.parametrize(
    ("wanted", "device", "ranks", "accumulated", "small", "expected"),
    [
        # compiled, graphs of validations, graphs of training
        (None, "cuda", 1, 1, False, (True, True, False)),
        (None, "cuda", 1, 1, True, (False, True, True)),
        (None, "cuda", 2, 1, True, (True, True, False)),
        (None, "cuda", 1, 2, True, (True, True, False)),
        (None, "cpu", 1, 1, True, (False, False, False)),
        (True, "cuda", 1, 1, True, (True, True, False)),
        (True, "cpu", 1, 1, True, (True, False, False)),
        (False, "cuda", 1, 1, True, (False, False, False)),
        ("max-autotune", "cuda", 1, 1, True, ("max-autotune", True, False)),
    ],
)
def test_what_makes_a_run_fast(wanted, device, ranks, accumulated, small, expected, monkeypatch):
    compiled = []
    monkeypatch.setattr(build, "compile_network", lambda network, wanted, one_size: compiled.append(wanted))
    monkeypatch.setattr(build, "is_small", lambda network, batch_size: small)
    module = SimpleNamespace(network=random_network(), unpadded=False)
    strategy = SimpleNamespace(root_device=torch.device(device))
    trainer = SimpleNamespace(strategy=strategy, world_size=ranks, accumulate_grad_batches=accumulated)
    build.make_fast(module, trainer, wanted, 8)
    assert (*compiled, module.graphs, module.step_graphs) == expected
    assert module.compiled == bool(expected[0])


def test_the_built_in_tasks_are_small_and_published_recipes_are_not():
    assert is_small(random_network(), 8)
    for backbone, num_masked_blocks in PUBLISHED:
        assert not is_small(published(backbone, num_masked_blocks), 16)
    assert is_small(published(*PUBLISHED[0]), 2)
