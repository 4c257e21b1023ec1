"""Graphs that end in post-processing give what `eomt.postprocess` gives, in every runtime and precision."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from eomt.errors import InputError
from eomt.export import compare, graph
from eomt.export.export import export
from eomt.export.postprocess import output_of
from eomt.inference.result import Result
from eomt.inference.segmenter import Segmenter
from eomt.model.outputs import Logits
from eomt.postprocess.geometry import FIT_AND_PAD, Placement
from eomt.tasks import task_of
from tests.export.exporting import run, weights_of
from tests.random_networks import CLASSES, KINDS, OPTIONS, random_image, random_network, write_checkpoint
from tests.running import ROOT

# Of those that TensorRT 10 supports (onnx-tensorrt 10.1, docs/operators.md), the ones that could be met here.
TENSORRT = (
    "Abs Add And ArgMax ArgMin Cast Ceil Clip Concat Constant ConstantOfShape Conv ConvTranspose Cos CumSum "
    "DequantizeLinear Div Einsum Equal Erf Exp Expand Flatten Floor Gather GatherElements GatherND Gelu Gemm Greater "
    "GreaterOrEqual Identity LayerNormalization Less LessOrEqual Log MatMul Max Min Mod Mul Neg Not Or Pad Pow "
    "QuantizeLinear Range Reciprocal ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum Reshape Resize "
    "ScatterElements ScatterND Shape Sigmoid Sign Sin Size Slice Softmax Split Sqrt Squeeze Sub Sum Tanh Tile TopK "
    "Transpose Trilu Unsqueeze Where Xor"
)
SIZE = (64, 96)


def assert_ours(kind, task, found, logits, placement, size):
    """Assert that a graph gives for one image what the task predicts from its logits."""
    expected = task.predict(logits, placement, size, CLASSES)
    height, width = placement[:2]
    if kind == "semantic":
        assert torch.equal(found["map"][:height, :width], expected.labels[expected.ids.long() - 1].int())
        return
    if kind == "panoptic":
        numbers = (found["labels"] >= 0).nonzero()[:, 0]
        assert not found["map"][height:].any()
        assert not found["map"][:, width:].any()
        masks = found["map"][:height, :width] == numbers[:, None, None] + 1
        assert {*found["map"].unique().tolist()} <= {0, *(numbers + 1).tolist()}
    else:
        numbers = torch.arange(len(found["labels"]))
        assert not found["masks"][:, height:].any()
        assert not found["masks"][:, :, width:].any()
        masks = found["masks"][:, :height, :width]
        assert np.array_equal(found["boxes"].numpy(), Result(expected, CLASSES).boxes)
    assert torch.equal(found["labels"][numbers], expected.labels)
    assert torch.allclose(found["scores"][numbers], expected.scores, rtol=0, atol=1e-5)
    assert torch.equal(masks, expected.masks())


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        *OPTIONS.items(),
        ("instance", {"top_k": 5000}),
        ("panoptic", {"score_threshold": 0.6, "overlap_threshold": 0.7}),
        ("panoptic", {"score_threshold": 1.0}),
    ],
)
def test_equal_to_ours_with_and_without_padding(kind, options):
    torch.manual_seed(0)
    masks = torch.nn.functional.interpolate(3 * torch.randn(4, 9, 4, 6), (16, 24), mode="bilinear")
    logits = Logits(masks, 2 * torch.randn(4, 9, len(CLASSES) + 1))
    task = task_of(kind, options)
    output = output_of(task, CLASSES, SIZE)
    sizes = [SIZE] * 4 if kind == "semantic" else [SIZE, (64, 50), (30, 96), (1, 96)]
    found = output(*logits, *[torch.tensor(sizes)] * len(output.inputs))
    for number, size in enumerate(sizes):
        own = {name: value[number] for name, value in zip(output.outputs, found, strict=True)}
        one = Logits(*(part[number : number + 1] for part in logits))
        assert_ours(kind, task, own, one, Placement(*size, *size), SIZE)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for number in range(6):
        Image.fromarray(random_image(20 + 5 * number, 45, number)).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def exported(tmp_path_factory, photos):
    """A function that exports a network of a kind once for any batch, and gives the folder."""
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    folder = tmp_path_factory.mktemp("graphs")

    def of(kind, format="onnx", precision="32"):
        out = folder / f"{kind}-{format}-{precision}"
        if not out.exists():
            weights = weights_of(
                random_network().eval(), kind=kind, classes=CLASSES, config={"postprocess": OPTIONS[kind]}
            )
            images = sorted(photos.iterdir())
            export(weights, format, out, precision=precision, batch=None, images=images, postprocess=True)
        return out

    return of


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_a_graph_gives_our_segments(kind, format, exported, photos):
    if format == "openvino":
        pytest.importorskip("openvino")
        from eomt.export.runtimes import load_openvino

        whole = load_openvino(exported(kind, format) / "model.xml")
    else:
        whole = graph.load_onnx(exported(kind) / "model.onnx")
    network, task = random_network().eval(), task_of(kind, OPTIONS[kind])
    output = output_of(task, CLASSES, network.image_size)
    # As ours sees them, whatever the kind: fitted and padded, and the scaled image as the original.
    inputs, placements = zip(
        *(FIT_AND_PAD.prepare(Image.open(p), (32, 32)) for p in sorted(photos.iterdir())), strict=True
    )
    if kind == "semantic":
        placements = [Placement(32, 32, 32, 32)] * len(inputs)
    for start, count in ((0, 1), (1, 2), (3, 3)):
        batch, own = torch.cat(inputs[start : start + count]), placements[start : start + count]
        sizes = torch.tensor([placement[2:] for placement in own])
        found = whole(batch, *[sizes] * len(output.inputs))
        with torch.no_grad():
            logits = network(batch)[-1].logits()
        for number, placement in enumerate(own):
            one = {name: value[number] for name, value in zip(output.outputs, found, strict=True)}
            scaled = Placement(*placement[2:], *placement[2:])
            assert_ours(kind, task, one, Logits(*(p[number : number + 1] for p in logits)), scaled, (32, 32))


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "precision"), [*((kind, "32") for kind in KINDS), ("instance", "int8")])
def test_no_operator_that_tensorrt_lacks(kind, precision, exported):
    onnx = pytest.importorskip("onnx")
    model = onnx.load(exported(kind, precision=precision) / "model.onnx")
    assert {node.op_type for node in model.graph.node} <= {*TENSORRT.split()}
    assert {node.domain for node in model.graph.node} == {""}


@pytest.mark.slow
def test_int8_changes_the_blocks_alone(exported, photos):
    onnx = pytest.importorskip("onnx")
    folder = exported("instance", precision="int8")
    model = onnx.load(folder / "model.onnx").graph
    producer = {name: node for node in model.node for name in node.output}
    layers = [
        n for n in model.node if n.op_type == "MatMul" and producer.get(n.input[1], n).op_type == "DequantizeLinear"
    ]
    # Four linear layers of each of the two blocks; TensorRT takes no zero points but 0.
    assert len(layers) == 8
    points = {n.input[2] for n in model.node if n.op_type == "DequantizeLinear"}
    assert not any(onnx.numpy_helper.to_array(value).any() for value in model.initializer if value.name in points)
    card = (folder / "README.md").read_text()
    assert "int8 in the blocks' linear layers" in card
    network = random_network().eval()
    inputs = torch.cat([FIT_AND_PAD.prepare(Image.open(p), (32, 32))[0] for p in sorted(photos.iterdir())])
    output = output_of(task_of("instance", OPTIONS["instance"]), CLASSES, (32, 32))
    sizes = torch.tensor([[32, 32]] * len(inputs))
    with torch.no_grad():
        expected = output(*network(inputs)[-1].logits(), sizes)
    masks = graph.load_onnx(folder / "model.onnx")(inputs, sizes)[3]
    assert (masks == expected[3]).float().mean() > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_the_example_gives_the_segmenters_result(kind, format, exported, tmp_path):
    if format == "openvino":
        pytest.importorskip("openvino")
    # As large as the network's input, or two windows of it: other sizes are resized after the decision.
    image = tmp_path / "image.png"
    Image.fromarray(random_image(32, 32, 4)).save(image)
    script = (
        "import sys; sys.path.insert(0, 'examples'); import run_graph, json; from pathlib import Path; "
        "run_graph.main(*sys.argv[1:]); from PIL import Image; "
        "rows = run_graph.segment(Path(sys.argv[1]), Image.open(sys.argv[2])); "
        "print(json.dumps([[name, score, mask.tolist()] for name, score, mask in rows])); "
        "assert not {'torch', 'eomt'} & sys.modules.keys()"
    )
    command = [sys.executable, "-c", script, exported(kind, format), image, tmp_path / "picture.png"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    result = Segmenter(random_network(), task_of(kind, OPTIONS[kind]), CLASSES, "cpu")(image)
    result = result.above(0.5) if kind == "instance" else result
    rows = json.loads(done.stdout.splitlines()[-1])
    assert [row[0] for row in rows] == result.names
    assert np.allclose([row[1] for row in rows], result.scores, atol=1e-4)
    for row, mask in zip(rows, result.masks, strict=True):
        assert np.array_equal(row[2], mask)
    assert (tmp_path / "picture.png").is_file()


def test_a_graph_that_differs_is_not_written():
    network = random_network().eval()
    output = output_of(task_of("instance", OPTIONS["instance"]), CLASSES, network.image_size)
    whole = lambda images, sizes: list(output(*network(images)[-1].logits(), sizes))  # noqa: E731
    logits = lambda images: network(images)[-1].logits()  # noqa: E731
    with torch.no_grad():
        compare.check_postprocess(output, logits, whole, 2, [graph.noise(network, 3)])
        wrong = lambda *inputs: [whole(*inputs)[0] + 1, *whole(*inputs)[1:]]  # noqa: E731
        with pytest.raises(InputError, match=r"100\.0% of the exported graph's labels differ from ours"):
            compare.check_postprocess(output, logits, wrong, None, [graph.noise(network, 1)])


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["format=onnx", "precision=int8"], "precision=int8 is calibrated on photos"),
        (["precision=int8"], "precision=int8 cannot be had in format=eomt: choose 32, 16, bf16"),
        (["format=torch_export", "postprocess=true"], "postprocess=true is for format=onnx, openvino, tensorrt, not"),
        (["score=true"], "score=true scores graphs, not format=eomt"),
        (["format=tensorrt"], "trtexec --onnx=model.onnx --saveEngine=model.engine"),
    ],
)
def test_what_cannot_be_had_is_told_in_one_line(typed, message, tmp_path):
    if "tensorrt" in typed[0] and torch.cuda.is_available():
        pytest.skip("needs a machine without a GPU")
    checkpoint = write_checkpoint(tmp_path / "model.ckpt", "panoptic")
    with pytest.raises(InputError, match=message):
        run(f"ckpt={checkpoint}", f"out={tmp_path / 'out'}", *typed)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_example_says_what_is_missing(photos, tmp_path):
    network = random_network().eval()
    export(weights_of(network, kind="instance", classes=CLASSES), "onnx", tmp_path / "logits", batch=1)
    image, damaged = next(photos.iterdir()), tmp_path / "damaged"
    shutil.copytree(tmp_path / "logits", damaged)
    (damaged / "model.onnx").write_bytes(b"no graph")
    for folder, file, words in (
        (tmp_path / "logits", image, "export it again with postprocess=true"),
        (tmp_path, image, "eomt.json"),
        (damaged, image, "error: "),
        (tmp_path / "logits", photos, "Is a directory"),
    ):
        command = [sys.executable, "examples/run_graph.py", folder, file, tmp_path / "picture.png"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert (done.returncode, "Traceback" in done.stderr, words in done.stderr) == (1, False, True), done.stderr
