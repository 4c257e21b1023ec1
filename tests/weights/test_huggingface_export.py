"""Our weights in transformers' form, and the networks that transformers does not have."""

import json

import numpy as np
import pytest
import torch

from eomt.errors import InputError
from eomt.model.eomt import EoMT
from eomt.postprocess.geometry import FIT_AND_PAD, WINDOWS
from eomt.weights.huggingface import from_huggingface
from eomt.weights.huggingface_export import to_huggingface
from tests.random_networks import CLASSES, PUBLISHED, published, tiny


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers")


@pytest.mark.slow
@pytest.mark.parametrize(("backbone", "num_masked_blocks"), PUBLISHED)
def test_published_sizes_are_those_of_transformers(transformers, backbone, num_masked_blocks):
    network = published(backbone, num_masked_blocks)
    state, config, _ = to_huggingface(network.state_dict(), network.spec, None, None)
    with torch.device("meta"):
        settings = transformers.AutoConfig.for_model(**config)
        model = transformers.AutoModelForUniversalSegmentation.from_config(settings)
    assert {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in model.state_dict().items()}
    assert from_huggingface(state, config)[1] == network.spec


@pytest.mark.parametrize(
    ("kind", "geometry"), [("panoptic", FIT_AND_PAD), ("instance", FIT_AND_PAD), ("semantic", WINDOWS)]
)
def test_preprocessor_prepares_images_as_we_do(transformers, tmp_path, kind, geometry):
    network = tiny("vit_small_patch14_reg4_dinov2")
    _, config, preprocessor = to_huggingface(network.state_dict(), network.spec, None, kind)
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    image = np.random.default_rng(0).integers(0, 256, (40, 75, 3), dtype=np.uint8)
    inputs, _ = geometry.prepare(image, network.image_size)
    pixels = processor(images=image, return_tensors="pt")["pixel_values"]
    # Theirs are resized by another library, to the nearest grey value.
    shown = (pixels * network.pixel_std + network.pixel_mean) * 255
    torch.testing.assert_close(shown, inputs.float(), atol=1.01, rtol=0)


@pytest.mark.parametrize(
    ("backbone", "changes"),
    [
        ("vit_small_patch14_dinov2", {}),
        ("vit_small_patch16_224", {}),
        ("vit_small_plus_patch16_dinov3_qkvb", {}),
        ("vit_small_patch14_reg4_dinov2", {"mlp_ratio": 3.5}),
        ("vit_small_patch14_reg4_dinov2", {"qk_norm": True}),
    ],
)
def test_backbones_that_transformers_has_not_are_named(backbone, changes):
    network = tiny(backbone, **changes)
    with pytest.raises(InputError, match=r"transformers' EoMT .*instead"):
        to_huggingface(network.state_dict(), network.spec, None, None)


def test_dropped_paths_are_of_training_alone():
    network = tiny("vit_small_patch14_reg4_dinov2", drop_path_rate=0.1)
    assert to_huggingface(network.state_dict(), network.spec, None, None)[1]["mlp_ratio"] == 4


def test_images_that_are_no_squares_are_refused():
    network = EoMT(
        "vit_small_patch14_reg4_dinov2", (32, 48), 4, 5, 2, 16, {"embed_dim": 48, "depth": 3, "num_heads": 3}
    )
    with pytest.raises(InputError, match=r"squares only.*instead"):
        to_huggingface(network.state_dict(), network.spec, None, None)
    square = tiny("vit_small_patch14_reg4_dinov2")
    with pytest.raises(InputError, match="4 classes, the list of classes 3"):
        to_huggingface(square.state_dict(), square.spec, CLASSES, None)
