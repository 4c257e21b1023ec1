"""transformers' EoMT against ours: the same numbers in both directions, nothing lost on the way; what it has not."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from eomt.classes import Classes
from eomt.errors import InputError
from eomt.model.eomt import EoMT
from eomt.postprocess.geometry import FIT_AND_PAD, WINDOWS
from eomt.weights.huggingface import classes_of, from_huggingface, to_huggingface
from eomt.weights.load import read_weights
from tests.random_networks import CLASSES, PUBLISHED, published, same_state, tiny
from tests.weights.sources import SEVEN, assert_equal, small, write_huggingface

SIZES = {
    "hidden_size": 48,
    "num_attention_heads": 3,
    "num_hidden_layers": 4,
    "num_blocks": 2,
    "image_size": 64,
    "num_queries": 6,
    "num_labels": 5,
}
DINOV3 = {"intermediate_size": 192, "layer_norm_eps": 1e-5}
# transformers' configuration and the backbone that it means.
MODELS = {
    "dinov2": ("Eomt", {}, "vit_small_patch14_reg4_dinov2"),
    "odd sizes": (
        "Eomt",
        {"patch_size": 8, "num_upscale_blocks": 1, "mlp_ratio": 2, "num_register_tokens": 2},
        "vit_small_patch14_reg4_dinov2",
    ),
    "giant": (
        "Eomt",
        {"use_swiglu_ffn": True, "hidden_size": 40, "num_attention_heads": 2},
        "vit_giant_patch14_reg4_dinov2",
    ),
    "dinov3": (
        "EomtDinov3",
        {**DINOV3, "rope_parameters": {"rope_type": "default", "rope_theta": 30.0}},
        "vit_small_patch16_dinov3_qkvb",
    ),
    "no biases": ("EomtDinov3", {**DINOV3, "query_bias": False, "value_bias": False}, "vit_small_patch16_dinov3"),
}
CLASSES_OF_4 = Classes.from_categories(
    {"id": 3 * k + 1, "name": f"class {k}", "isthing": k < 3, "color": [k, 2 * k, 0]} for k in range(4)
)


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers")


def build(transformers, name):
    """A transformers model whose every parameter is random, not only those that begin so."""
    kind, changes, _ = MODELS[name]
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**{**SIZES, **changes})
    model = getattr(transformers, f"{kind}ForUniversalSegmentation")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.25)
        model.attn_mask_probs.zero_()
    return model


def check_same_outputs(network, model):
    images = torch.rand(2, 3, *network.image_size)
    with torch.no_grad():
        ours = network.eval()(images)[-1]
        theirs = model(pixel_values=(images - network.pixel_mean) / network.pixel_std)
    assert ours.mask_logits.std() > 0.1, "else a fault would not show"
    torch.testing.assert_close(ours.mask_logits, theirs.masks_queries_logits, atol=1e-4, rtol=0)
    torch.testing.assert_close(ours.class_logits, theirs.class_queries_logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", MODELS)
def test_theirs_in_ours_gives_their_logits_and_goes_back_bit_by_bit(transformers, name):
    model = build(transformers, name)
    state, config = dict(model.state_dict()), json.loads(json.dumps(model.config.to_dict()))
    weights, spec = from_huggingface(state, config)
    assert spec["backbone"] == MODELS[name][2]
    network = EoMT(**spec)
    network.load_state_dict(weights)
    check_same_outputs(network, model)
    written, written_config, _ = to_huggingface(network.state_dict(), network.spec, None, None)
    assert same_state(written, state)
    assert from_huggingface(written, written_config)[1] == spec
    unlike = {key for key, value in written_config.items() if key != "eomt" and config[key] != value}
    assert unlike <= {"architectures", "dtype", "pos_embed_rescale"}


@pytest.mark.parametrize("name", ["dinov2", "giant", "dinov3"])
def test_ours_in_theirs_gives_our_logits_and_comes_back_bit_by_bit(transformers, name, tmp_path):
    network = tiny(MODELS[name][2])
    state, config, preprocessor = to_huggingface(network.state_dict(), network.spec, CLASSES_OF_4, "panoptic")
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    model, report = transformers.AutoModelForUniversalSegmentation.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), "nothing missing, nothing too much"
    check_same_outputs(network, model)
    weights, spec = from_huggingface(state, config)
    assert same_state(weights, network.state_dict())
    assert spec == network.spec
    assert model.config.id2label == dict(enumerate(CLASSES_OF_4.names))
    # Through transformers' own writing too.
    model.save_pretrained(tmp_path / "again")
    assert classes_of(json.loads((tmp_path / "again" / "config.json").read_text())) == ("panoptic", CLASSES_OF_4)


def test_gated_mlp_under_its_former_names():
    network = tiny("vit_giant_patch14_reg4_dinov2")
    state, config, _ = to_huggingface(network.state_dict(), network.spec, None, None)
    for key in [key for key in state if ".mlp.gate_proj." in key]:
        halves = state.pop(key), state.pop(key.replace("gate_proj", "up_proj"))
        state[key.replace("gate_proj", "weights_in")] = torch.cat(halves)
        down = state.pop(key.replace("gate_proj", "down_proj"))
        state[key.replace("gate_proj", "weights_out")] = down
    # Nor does every file have these.
    del state["attn_mask_probs"], state["criterion.empty_weight"]
    assert same_state(from_huggingface(state, config)[0], network.state_dict())


def test_classes_come_back_or_their_names():
    network = tiny("vit_small_patch14_reg4_dinov2")
    _, config, _ = to_huggingface(network.state_dict(), network.spec, CLASSES_OF_4, "semantic")
    config = json.loads(json.dumps(config))
    assert classes_of(config) == ("semantic", CLASSES_OF_4)
    # Somebody trained it on and gave it labels of their own: ours no longer hold.
    kind, classes = classes_of({**config, "id2label": {"2": "b", "0": "a", "10": "k"}})
    assert kind is None
    assert classes.names == ["a", "b", "k"]
    assert classes.is_thing == [True] * 3
    assert classes_of({"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}) == (None, None)
    assert classes_of({}) == (None, None)
    _, config, _ = to_huggingface(network.state_dict(), network.spec, None, "instance")
    assert classes_of(config) == ("instance", None)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "vit"}, "model_type=vit"),
        ({"hidden_act": "silu"}, "hidden_act=silu"),
        ({"layer_norm_eps": 1e-5}, "layer_norm_eps=1e-05"),
        ({"image_size": [32, 64]}, "image_size=.*squares only"),
        ({"image_size": 48}, "image_size=48, where the position embedding is of 32"),
    ],
)
def test_configurations_that_eomt_has_not_are_named(changes, words):
    network = tiny("vit_small_patch14_reg4_dinov2")
    state, config, _ = to_huggingface(network.state_dict(), network.spec, None, None)
    with pytest.raises(InputError, match=words):
        from_huggingface(state, {**config, **changes})


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("query.weight", "'queries'"),
        ("upscale_block.block.0.layernorm2d.weight", r"lacks upscale\.0\.norm\.weight"),
        ("embeddings.register_tokens", "3 patches, which is no square"),
        ("layers.1.attention.k_proj.bias", r"lacks layers\.1\.attention\.k_proj\.bias"),
    ],
)
def test_incomplete_weights_are_named(key, words, tmp_path):
    folder = write_huggingface(tmp_path / "theirs", tiny("vit_small_patch14_reg4_dinov2"), CLASSES_OF_4, "panoptic")
    state = load_file(folder / "model.safetensors")
    del state[key]
    save_file(state, folder / "model.safetensors")
    with pytest.raises(InputError, match=f"theirs.*{words}"):
        read_weights(folder)


def test_bias_of_dinov3_keys_is_zero_or_named():
    network = tiny("vit_small_patch16_dinov3_qkvb")
    state, config, _ = to_huggingface(network.state_dict(), network.spec, None, None)
    state["layers.1.attention.k_proj.bias"] = torch.zeros(48)
    assert same_state(from_huggingface(state, config)[0], network.state_dict())
    state["layers.1.attention.k_proj.bias"][3] = 1
    with pytest.raises(InputError, match=r"bias of keys \S+blocks\.1\S+ is not zero"):
        from_huggingface(state, config)


def test_hugging_face_folders(tmp_path, caplog):
    network = small(7)
    whole = write_huggingface(tmp_path / "whole", network, SEVEN, "instance")
    state = load_file(whole / "model.safetensors")
    with caplog.at_level("INFO", "eomt"):
        weights = read_weights(whole)
    assert_equal(weights.state, network.state_dict())
    assert (weights.kind, weights.classes, weights.network) == ("instance", SEVEN, network.spec)
    assert caplog.messages[0].startswith(f"weights: Hugging Face folder {whole}: EoMT")
    # In PyTorch's format, in several files, and by the file instead of the folder.
    for form in ("bin", "shards"):
        folder = tmp_path / form
        folder.mkdir()
        (folder / "config.json").write_text((whole / "config.json").read_text())
        if form == "bin":
            torch.save(state, folder / "pytorch_model.bin")
        else:
            half = len(state) // 2
            places = {key: f"model-0000{1 + (k >= half)}-of-00002.safetensors" for k, key in enumerate(state)}
            for file in set(places.values()):
                save_file({key: value for key, value in state.items() if places[key] == file}, folder / file)
            (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
        assert_equal(read_weights(folder).state, network.state_dict())
    assert read_weights(whole / "model.safetensors").classes == SEVEN
    save_file(state, tmp_path / "alone.safetensors")
    with pytest.raises(InputError, match=r"holds no EoMT.*need their config\.json: give their folder"):
        read_weights(tmp_path / "alone.safetensors")


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
