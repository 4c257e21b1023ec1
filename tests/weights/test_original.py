"""The original's weights: there and back."""

import pytest
import torch
from safetensors.torch import save_file

from eomt.errors import InputError
from eomt.known_classes import ADE20K, CITYSCAPES, COCO_INSTANCE, COCO_PANOPTIC
from eomt.model.eomt import EoMT
from eomt.weights.load import read_weights
from eomt.weights.original import BACKBONE, from_original, is_original, to_original
from tests.golden_numbers import golden_network, golden_tensors
from tests.random_networks import same_state, tiny
from tests.weights.sources import ONE_HEAD, SEVEN, assert_equal, golden, small

PIXELS = {"network.encoder.pixel_mean", "network.encoder.pixel_std"}


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("form", ["bin", "ckpt", "compiled", "safetensors", "folder"])
def test_original_files(version, form, tmp_path, caplog):
    state, ours, spec = golden(version)
    extra = {"criterion.empty_weight": torch.ones(8), "network.attn_mask_probs": torch.tensor([0.0, 0.5, 1.0])}
    path = tmp_path / f"original.{form}"
    if form == "bin":
        torch.save(state | extra, path)
    elif form == "ckpt":
        more = {"metrics.0.confmat": torch.zeros(7, dtype=torch.int64), "metrics.1.empty": torch.zeros(0)}
        torch.save({"state_dict": state | extra | more, "global_step": 5, "hyper_parameters": {"lr": 1e-4}}, path)
    elif form == "compiled":
        torch.save({f"_orig_mod.{key}": value for key, value in (state | extra).items()}, path)
    elif form == "safetensors":
        save_file(state | extra, path)
    else:
        path.mkdir()
        torch.save(state | extra, path / "pytorch_model.bin")
    with caplog.at_level("INFO", "eomt"):
        weights = read_weights(path, kind="panoptic", classes=SEVEN, network=spec)
    assert_equal(weights.state, ours)
    assert weights.network == spec
    assert (weights.kind, weights.classes, weights.step, weights.resumable) == ("panoptic", SEVEN, 0, False)
    assert weights.mask_probabilities.tolist() == [0, 0.5, 1]
    assert weights.origin == f"original weights {path}"
    (record,) = caplog.records
    assert record.getMessage() == (
        f"weights: original weights {path}: EoMT on {spec['backbone']} of other sizes, panoptic, 7 classes, 64x96"
    )


def test_what_an_original_file_does_not_say_is_found_out_or_asked_for(tmp_path, caplog):
    network = EoMT("vit_small_patch14_reg4_dinov2", 32, 133, 5, 2, 16)
    torch.save(to_original(network.state_dict(), network.spec), tmp_path / "coco.bin")
    with caplog.at_level("INFO", "eomt"):
        weights = read_weights(tmp_path / "coco.bin")
    assert caplog.messages == [
        f"weights: original weights {tmp_path / 'coco.bin'}: EoMT-S DINOv2, panoptic, 133 classes, taken "
        "for COCO panoptic's by their number, 32x32"
    ]
    assert (weights.kind, weights.classes, weights.network) == ("panoptic", COCO_PANOPTIC, network.spec)
    for count, kind, classes in ((80, "instance", COCO_INSTANCE), (19, "semantic", CITYSCAPES), (150, None, ADE20K)):
        network = small(count)
        path = tmp_path / f"{count}.bin"
        torch.save(to_original(network.state_dict(), network.spec), path)
        if kind is None:
            with pytest.raises(InputError, match="semantic and panoptic models: choose its task"):
                read_weights(path, network=ONE_HEAD)
            assert read_weights(path, kind="semantic", network=ONE_HEAD).classes == ADE20K
            assert read_weights(path, complete=False).kind is None
        else:
            weights = read_weights(path, network=ONE_HEAD)
            assert (weights.kind, weights.classes) == (kind, classes)
    path = tmp_path / "three.bin"
    torch.save(to_original(small().state_dict(), small().spec), path)
    with pytest.raises(InputError, match=r"three\.bin: it does not name its 3 classes.*choose its task"):
        read_weights(path, kind="semantic", network=ONE_HEAD)
    assert read_weights(path, complete=False).classes is None


def test_pixel_statistics_are_never_read(tmp_path):
    state, ours, spec = golden()
    odd = {
        "network.encoder.pixel_mean": torch.full((1, 3, 1, 1), 9.0),
        "network.encoder.pixel_std": torch.ones(1, 3, 1, 1),
    }
    torch.save(state | odd, tmp_path / "x.bin")
    weights = read_weights(tmp_path / "x.bin", kind="semantic", classes=SEVEN, network=spec)
    assert_equal(weights.state, ours)
    assert not any("pixel" in key for key in weights.state)


@pytest.mark.parametrize("name", ["dinov2_tiny", "dinov3_tiny"])
def test_recorded_weights_there_and_back(name):
    recorded, network = golden_tensors(f"{name}_original_state"), golden_network(name)
    written = to_original(network.state_dict(), network.spec)
    assert not written.pop("network.attn_mask_probs").any(), "mask-free"
    assert same_state(written, {k: v for k, v in recorded.items() if k in written})
    assert recorded.keys() - written.keys() == PIXELS | {"network.attn_mask_probs"}


@pytest.mark.parametrize(
    "backbone",
    [
        "vit_small_patch14_reg4_dinov2",
        "vit_small_patch14_dinov2",
        "vit_giant_patch14_reg4_dinov2",
        "vit_small_plus_patch16_dinov3_qkvb",
    ],
)
def test_our_weights_there_and_back(backbone):
    network = tiny(backbone)
    state = network.state_dict()
    written = to_original(state, network.spec)
    assert [is_original(form) for form in (written, state)] == [True, False]
    assert same_state(from_original(written), state)


def test_dinov3_without_biases_of_queries_gets_zeros_which_the_original_wants():
    network = tiny("vit_small_patch16_dinov3")
    written = to_original(network.state_dict(), network.spec)
    assert not written[f"{BACKBONE}blocks.0.attention.q_proj.bias"].any()
    other = EoMT(**network.spec | {"backbone": "vit_small_patch16_dinov3_qkvb"}).eval()
    other.load_state_dict(from_original(written))
    images = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(network(images)[-1], other(images)[-1], atol=1e-5, rtol=0)


def test_an_incomplete_block_is_named():
    state = golden_tensors("dinov3_tiny_original_state")
    del state[f"{BACKBONE}blocks.2.attention.k_proj.weight"]
    with pytest.raises(InputError, match=r"lacks attention\.k_proj\.weight"):
        from_original(state)
