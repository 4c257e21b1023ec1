"""Graphs compute what the network computes, without our code."""

import pytest
import torch
from PIL import Image

from eomt.errors import InputError
from eomt.export import compare, graph
from eomt.export.export import export
from tests.export.exporting import dinov3_network, run, weights_of
from tests.random_networks import CLASSES, random_image, random_network, write_checkpoint
from tests.running import ROOT
from tests.weights.sources import SEVEN


@pytest.fixture(scope="module")
def onnx_folder(tmp_path_factory):
    """A network of ours as ONNX for any batch: its checkpoint and the exported folder."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    folder = tmp_path_factory.mktemp("onnx")
    Image.fromarray(random_image(20, 70)).save(folder / "image.png")
    checkpoint = write_checkpoint(folder / "model.ckpt", "semantic")
    run(f"ckpt={checkpoint}", "format=onnx", f"out={folder / 'out'}", "dynamic_batch=true", f"images={folder}")
    return folder


@pytest.mark.slow
def test_onnx_in_half_precision_with_a_fixed_batch(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    network = dinov3_network()
    check = export(weights_of(network), "onnx", tmp_path / "out", precision="16", batch=2)
    assert check.inputs == 2
    assert 0 < check.difference < 0.01 * check.largest
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx", providers=["CPUExecutionProvider"])
    (images,) = session.get_inputs()
    assert (images.name, images.type, images.shape) == ("images", "tensor(uint8)", [2, 3, 32, 32])
    assert [(o.name, o.type) for o in session.get_outputs()] == [
        ("mask_logits", "tensor(float)"),
        ("class_logits", "tensor(float)"),
    ]
    assert (tmp_path / "out" / "model.onnx").stat().st_size < 0.7 * sum(4 * p.numel() for p in network.parameters())
    noise = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    run = graph.load_onnx(tmp_path / "out" / "model.onnx")
    with torch.no_grad():
        reference = network(noise)[-1].logits()
    for found, expected in zip(compare.run_in_batches(lambda x: run(x), noise, 2), reference, strict=True):
        assert (found - expected).abs().max() < 0.01 * expected.abs().max()


def test_onnx_holds_no_path_of_the_machine(onnx_folder):
    content = (onnx_folder / "out" / "model.onnx").read_bytes()
    assert str(ROOT).encode() not in content
    assert b".py" not in content


@pytest.mark.parametrize(("precision", "batch"), [("32", None), ("bf16", 1), ("16", None)])
def test_torch_export_runs_without_our_code(precision, batch, tmp_path):
    network = random_network().eval() if batch is None else dinov3_network()
    classes = CLASSES if batch is None else SEVEN
    check = export(weights_of(network, classes), "torch_export", tmp_path / "out", precision=precision, batch=batch)
    # On a CPU the network upscales by another operation than its graph.
    tolerance = 1e-6 if precision == "32" else 0.05
    assert check.difference <= tolerance * check.largest
    path = tmp_path / "out" / "model.pt2"
    assert str(ROOT).encode() not in path.read_bytes()
    loaded = torch.export.load(path).module()
    images = torch.randint(0, 256, (batch or 5, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        found, reference = loaded(images), network(images)[-1].logits()
    for ours, theirs in zip(reference, found, strict=True):
        assert theirs.dtype == torch.float32
        assert (ours - theirs).abs().max() <= tolerance * ours.abs().max()


def test_a_runtime_that_fails_is_told_in_one_line(tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("[ONNXRuntimeError] : 9 : NOT_IMPLEMENTED\nmore")

    monkeypatch.setattr(graph, "write_torch_export", fail)
    message = (
        r"format=torch_export: .*\(RuntimeError: \[ONNXRuntimeError\] : 9 : NOT_IMPLEMENTED\): nothing was written"
    )
    with pytest.raises(InputError, match=message) as caught:
        export(weights_of(random_network(), CLASSES), "torch_export", tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
