"""Exported folders appear whole or not at all."""

import resource

import pytest

from eomt.errors import InputError
from eomt.export.export import FORMATS, export
from eomt.weights.spec import Weights
from tests.random_networks import CLASSES, random_network


@pytest.mark.parametrize("format", FORMATS)
def test_a_full_disk_ends_in_one_line_and_leaves_nothing(format, tmp_path):
    if format == "tensorrt":
        pytest.skip("needs a GPU")
    if format in ("onnx", "openvino"):
        pytest.importorskip("onnxscript")
        pytest.importorskip(format)
    network = random_network().eval()
    weights = Weights("a test's", network.state_dict(), network.spec, "panoptic", CLASSES)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Files that grow beyond it fail in the same way as on a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(InputError, match=r"out=.*out cannot be written \(.*free some space") as caught:
            export(weights, format, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    network = random_network()
    weights = Weights("a test's", network.state_dict(), network.spec, "panoptic", CLASSES)
    with pytest.raises(InputError, match=r"file/out cannot be written \(Not a directory\)"):
        export(weights, "eomt", tmp_path / "file" / "out")
