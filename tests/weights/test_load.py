"""The one door: every form in which weights come, what is wrong with them, and the Hub."""

import json
import pickle
import struct
import zipfile
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub import constants, errors
from hydra import compose, initialize_config_dir
from PIL import Image
from safetensors.torch import save_file

import predict
from eomt.classes import Classes
from eomt.cli import main
from eomt.errors import InputError
from eomt.inference.segmenter import Segmenter
from eomt.known_classes import ADE20K, CITYSCAPES, COCO_INSTANCE, COCO_PANOPTIC, classes_by_names, kind_of
from eomt.model.eomt import EoMT
from eomt.weights.hub import is_hub_id
from eomt.weights.huggingface_export import to_huggingface
from eomt.weights.load import read_weights
from eomt.weights.original import from_original, to_original
from eomt.weights.validate import check_spec
from tests.golden_numbers import golden_json, golden_tensors
from tests.running import CONFIGS

SEVEN = Classes.from_categories({"id": 10 + k, "name": f"class {k}", "isthing": k < 4} for k in range(7))
BACKBONE = "network.encoder.backbone."
ONE_HEAD = {"backbone_options": {"num_heads": 1}}


def golden(version=2):
    """The original's recorded weights, and ours; and their network."""
    record = golden_json(f"dinov{version}_tiny")
    spec = {
        "backbone": record["backbone"],
        "image_size": record["img_size"],
        "num_classes": 7,
        "num_queries": 10,
        "num_masked_blocks": 3,
        "patch_size": 16,
        "backbone_options": record["backbone_kwargs"],
    }
    state = golden_tensors(f"dinov{version}_tiny_original_state")
    return state, from_original(state), spec


def small(num_classes=3, backbone="vit_small_patch14_reg4_dinov2", seed=0, **options):
    """A square network of ours, which every format can hold."""
    torch.manual_seed(seed)
    options = {"embed_dim": 64, "depth": 2, "num_heads": 1} | options
    return EoMT(backbone, 32, num_classes, 6, 1, 8, options)


def part_of(network, kind="panoptic", classes=SEVEN):
    return {"kind": kind, "classes": classes.to_list(), "network": network.spec}


def write_folder(folder, state, description=None, name="eomt.json"):
    folder.mkdir(parents=True, exist_ok=True)
    save_file({key: value.contiguous() for key, value in state.items()}, folder / "model.safetensors")
    if description is not None:
        (folder / name).write_text(json.dumps(description))
    return folder


def write_huggingface(folder, network, classes=None, kind=None, processor=True):
    state, config, preprocessor = to_huggingface(network.state_dict(), network.spec, classes, kind)
    write_folder(folder, state, config, "config.json")
    if processor:
        (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return folder


def assert_equal(state, expected):
    assert state.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(state[key], value), key


# What is recognised


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
    with pytest.raises(InputError, match=r"three\.bin does not name its 3 classes.*choose its task"):
        read_weights(path, kind="semantic", network=ONE_HEAD)
    assert read_weights(path, complete=False).classes is None


def test_the_number_of_heads_is_not_guessed(tmp_path):
    """It cannot be seen in the weights, and another one computes something else."""
    network = small(embed_dim=128, num_heads=4)
    path = tmp_path / "x.bin"
    torch.save(to_original(network.state_dict(), network.spec), path)
    said = {"kind": "panoptic", "classes": Classes(SEVEN.items[:3])}
    message = r"x\.bin: a backbone of width 128 with 2 blocks .* network\.backbone_options={num_heads: 4}"
    for silent in (None, {"backbone_options": {"embed_dim": 128, "depth": 2}}):
        with pytest.raises(InputError, match=message):
            read_weights(path, **said, network=silent)
    heads = {"backbone_options": {"num_heads": 4}}
    assert read_weights(path, **said, network=heads).network == network.spec
    save_file(network.state_dict(), tmp_path / "bare.safetensors")
    with pytest.raises(InputError, match="its number of heads cannot be seen"):
        read_weights(tmp_path / "bare.safetensors", **said)
    # Who takes the weights alone has a network of his own.
    assert_equal(read_weights(path, complete=False).state, network.state_dict())


def test_an_image_size_that_is_a_guess_is_said(tmp_path, caplog):
    network = EoMT("vit_small_patch16_dinov3_qkvb", 1280, 80, 4, 1, 16, {"embed_dim": 64, "depth": 1, "num_heads": 1})
    torch.save(to_original(network.state_dict(), network.spec), tmp_path / "dinov3.bin")
    assert read_weights(tmp_path / "dinov3.bin", network=ONE_HEAD).network["image_size"] == [640, 640]
    assert "does not say its image size: give network.image_size=" in caplog.text
    caplog.clear()
    chosen = ONE_HEAD | {"image_size": 1280}
    assert read_weights(tmp_path / "dinov3.bin", network=chosen).network["image_size"] == [1280, 1280]
    assert caplog.text == ""


@pytest.mark.parametrize("given", ["file", "folder", "hub"])
def test_delta_weights_are_added_to_the_pretrained_backbone(given, tmp_path, monkeypatch):
    state, ours, spec = golden(3)
    generator = torch.Generator().manual_seed(1)
    base = {
        key.removeprefix(BACKBONE).replace("patch_embed.", "embeddings.").replace("blocks.", "layer."): torch.randn(
            value.shape, generator=generator
        )
        for key, value in state.items()
        if key.startswith(BACKBONE)
    }
    names = {
        f"{BACKBONE}{key.replace('embeddings.', 'patch_embed.', 1).replace('layer.', 'blocks.')}": key for key in base
    }
    names |= {
        f"{BACKBONE}patch_embed.patch_embeddings.{k}": f"embeddings.patch_embeddings.{k}" for k in ("weight", "bias")
    }
    delta = {key: value - base[names[key]] if key in names else value for key, value in state.items()}
    delta |= {
        "network.encoder.pixel_mean": torch.zeros(1, 3, 1, 1),
        "network.encoder.pixel_std": torch.zeros(1, 3, 1, 1),
    }
    torch.save(delta, tmp_path / "delta.bin")
    folder = write_folder(tmp_path / "base", base)
    asked = []

    def snapshot(repo_id, allow_patterns):
        asked.append(repo_id)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    backbone = {"file": folder / "model.safetensors", "folder": folder, "hub": "some/backbone"}[given]
    weights = read_weights(tmp_path / "delta.bin", kind="semantic", classes=SEVEN, network=spec, backbone=backbone)
    assert weights.origin.startswith("original delta weights")
    assert weights.state.keys() == ours.keys()
    for key, value in ours.items():
        assert torch.allclose(weights.state[key], value, atol=1e-6), key
    assert asked == (["some/backbone"] if given == "hub" else [])
    with pytest.raises(InputError, match="delta_base=none: no such file"):
        read_weights(tmp_path / "delta.bin", kind="semantic", classes=SEVEN, network=spec, backbone="none")


def test_the_pretrained_backbone_comes_through_the_hub(tmp_path, monkeypatch):
    options = {"embed_dim": 384, "depth": 1, "num_heads": 6}
    network = EoMT("vit_small_patch16_dinov3_qkvb", 32, 133, 5, 1, 16, options)
    delta = to_original(network.state_dict(), network.spec) | {"network.encoder.pixel_std": torch.zeros(3, 1, 1)}
    torch.save(delta, tmp_path / "delta.bin")

    def snapshot(repo_id, allow_patterns):
        raise answered(errors.GatedRepoError)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    with pytest.raises(
        InputError, match=r"delta\.bin: facebook/dinov3-vits16-pretrain-lvd1689m is gated.*delta_base=FILE"
    ):
        read_weights(tmp_path / "delta.bin")
    state, _, spec = golden(3)
    torch.save(state | {"network.encoder.pixel_std": torch.zeros(3, 1, 1)}, tmp_path / "odd.bin")
    with pytest.raises(InputError, match=r"odd\.bin: delta weights of an unknown DINOv3.*delta_base=FILE"):
        read_weights(tmp_path / "odd.bin", network=spec)


def test_our_own_forms(tmp_path, caplog):
    network = small(7)
    state = network.state_dict()
    own = part_of(network) | {"config": {"postprocess": {"score_threshold": 0.25}}, "overrides": ["seed=1"]}
    saved = {f"network.{key}": value for key, value in state.items()} | {"mask_probabilities": torch.tensor([0.5])}
    whole = {"eomt": own, "state_dict": saved, "global_step": 12, "optimizer_states": [{"state": {}}]}
    torch.save(whole, tmp_path / "a=1, (b).ckpt")
    write_folder(tmp_path / "export", state, own | {"step": 12, "metrics": {"pq": 1.0}})
    save_file(state, tmp_path / "bare.safetensors")
    with caplog.at_level("INFO", "eomt"):
        checkpoint = read_weights(tmp_path / "a=1, (b).ckpt")
        exported = read_weights(tmp_path / "export")
        file = read_weights(tmp_path / "export" / "model.safetensors")
        bare = read_weights(tmp_path / "bare.safetensors", kind="panoptic", classes=SEVEN, network=network.spec)
    for weights in (checkpoint, exported, file, bare):
        assert_equal(weights.state, state)
        assert weights.network == network.spec
        assert (weights.kind, weights.classes) == ("panoptic", SEVEN)
    for weights in (checkpoint, exported, file):
        assert weights.config == {"postprocess": {"score_threshold": 0.25}}
        assert (weights.overrides, weights.step) == (("seed=1",), 12)
    assert [w.resumable for w in (checkpoint, exported, file, bare)] == [True, False, False, False]
    assert checkpoint.mask_probabilities.tolist() == [0.5]
    assert caplog.messages[0].endswith(
        "(b).ckpt: EoMT on vit_small_patch14_reg4_dinov2 of other sizes, panoptic, 7 classes, 32x32, step 12"
    )
    torch.save(whole | {"optimizer_states": []}, tmp_path / "weights.ckpt")
    assert not read_weights(tmp_path / "weights.ckpt").resumable


def test_hugging_face_folders(tmp_path, caplog):
    network = small(7)
    whole = write_huggingface(tmp_path / "whole", network, SEVEN, "instance")
    state = {key: value.clone() for key, value in huggingface_state(whole).items()}
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


def huggingface_state(folder):
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def test_classes_of_others_get_the_datasets_ids_and_kinds(tmp_path):
    def folder(count, names, kind):
        network = small(count)
        path = write_huggingface(tmp_path / f"{count}_{kind}_{names is not None}", network, None, kind)
        config = json.loads((path / "config.json").read_text())
        del config["eomt"]
        if names is not None:
            config["id2label"] = {str(k): name for k, name in enumerate(names)}
        (path / "config.json").write_text(json.dumps(config))
        return path

    # Names in circulation differ a little.
    names = ["Wall", *(f"{name} " for name in ADE20K.names[1:])]
    weights = read_weights(folder(150, names, "semantic"))
    assert (weights.kind, weights.classes) == ("semantic", ADE20K)
    assert read_weights(folder(150, names, "panoptic")).kind == "panoptic"
    weights = read_weights(folder(133, None, "panoptic"))
    assert (weights.kind, weights.classes) == ("panoptic", COCO_PANOPTIC)
    # Others stay what they are, and it must be said for what.
    path = folder(3, ["cat", "dog", "sky"], "panoptic")
    with pytest.raises(InputError, match="its 3 classes are of no published dataset: choose its task"):
        read_weights(path)
    assert read_weights(path, kind="instance").classes.names == ["cat", "dog", "sky"]
    mine = Classes.from_categories([{"id": 5, "name": "cat"}, {"id": 6, "name": "dog"}, {"id": 7, "name": "sky"}])
    assert read_weights(path, kind="panoptic", classes=mine).classes is mine
    with pytest.raises(InputError, match="trained on other classes"):
        read_weights(path, kind="panoptic", classes=Classes(SEVEN.items[:3]))
    # The dataset's own names stand for those in circulation, each in its place; ids and things are its own.
    path = folder(150, names, "semantic")
    stuff = Classes(tuple(replace(item, id=item.id - 1, is_thing=False) for item in ADE20K))
    assert read_weights(path, classes=stuff).classes is stuff
    swapped = Classes((*stuff.items[:148], stuff[149], stuff[148]))
    with pytest.raises(InputError, match="trained on other classes"):
        read_weights(path, classes=swapped)


def test_classes_that_are_taken_by_their_number_are_said_to_be(tmp_path, caplog):
    network = small(150)
    path = write_huggingface(tmp_path / "hf", network, None, "semantic")
    with caplog.at_level("INFO", "eomt"):
        assert read_weights(path).classes == ADE20K
        read_weights(path, classes=ADE20K)
    assert "150 classes, taken for ADE20K's by their number, 32x32" in caplog.messages[0]
    assert "150 classes, 32x32" in caplog.messages[1]


def test_a_list_of_classes_is_whole(tmp_path):
    network, two = small(), Classes(SEVEN.items[:2])
    ours = write_folder(tmp_path / "ours", network.state_dict(), part_of(network, classes=two))
    theirs = write_huggingface(tmp_path / "theirs", network, Classes(SEVEN.items[:3]), "panoptic")
    config = json.loads((theirs / "config.json").read_text())
    config["id2label"].popitem()
    (theirs / "config.json").write_text(json.dumps(config))
    for folder in (ours, theirs):
        for classes in (None, Classes(SEVEN.items[:3])):
            with pytest.raises(InputError, match="tells 3 classes apart, and its description names 2: mend its list"):
                read_weights(folder, kind="panoptic", classes=classes)


@pytest.mark.parametrize("kind", [["a"], 5, {"a": 1}])
def test_a_kind_is_text(kind, tmp_path):
    network = small(7)
    theirs = write_huggingface(tmp_path / "theirs", network, SEVEN, "panoptic")
    config = json.loads((theirs / "config.json").read_text())
    for part in (config["eomt"] | {"kind": kind}, {"kind": kind}):
        (theirs / "config.json").write_text(json.dumps(config | {"eomt": part}))
        with pytest.raises(
            InputError, match=r"theirs: config\.json: eomt\.kind is .*, where the name of a kind belongs"
        ):
            read_weights(theirs)
    ours = write_folder(tmp_path / "ours", network.state_dict(), part_of(network) | {"kind": kind})
    with pytest.raises(InputError, match="ours: its description lacks or garbles"):
        read_weights(ours)


def test_what_is_chosen_is_compared_with_what_is_said(tmp_path):
    network = small(7)
    folder = write_folder(tmp_path / "export", network.state_dict(), part_of(network))
    assert read_weights(folder, kind="panoptic", classes=SEVEN, network={"num_queries": 6, "image_size": 32}).kind
    for chosen, message in (
        ({"kind": "semantic"}, "is of a panoptic model, and semantic was chosen"),
        ({"classes": Classes(SEVEN.items[:3])}, "tells 7 classes apart, and 3 were chosen"),
        ({"classes": Classes(SEVEN.items[::-1])}, "trained on other classes"),
        ({"network": {"num_queries": 9}}, "num_queries is 6 there, and 9 was chosen"),
        ({"network": {"image_size": [32, 64]}}, r"image_size is \[32, 32\] there, and \[32, 64\] was chosen"),
    ):
        with pytest.raises(InputError, match=message):
            read_weights(folder, **chosen)
    network = EoMT("vit_small_patch14_reg4_dinov2", 32, 133, 5, 2, 16)
    torch.save(to_original(network.state_dict(), network.spec), tmp_path / "x.bin")
    with pytest.raises(InputError, match=r"backbone is vit_small_.* there, and vit_large_patch14_reg4_dinov2 was"):
        read_weights(tmp_path / "x.bin", network={"backbone": "vit_large_patch14_reg4_dinov2", "backbone_options": {}})


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


# What is wrong


class Evil:
    def __reduce__(self):
        return (open, (str(Path(__file__).with_suffix(".ran")), "w"))


def broken_files(folder):
    """Names, and what reading them must say."""
    network = small(7)
    state, own = network.state_dict(), part_of(network)
    saved = {f"network.{key}": value for key, value in state.items()}
    good = folder / "good.ckpt"
    torch.save({"eomt": own, "state_dict": saved, "global_step": 0}, good)
    safe = write_folder(folder / "safe", state, own) / "model.safetensors"

    def write(name, content):
        (folder / name).write_bytes(content)
        return folder / name

    def checkpoint(name, part=own, **weights):
        torch.save({"eomt": part, "state_dict": saved | {f"network.{k}": v for k, v in weights.items()}}, folder / name)
        return folder / name

    def export(name, description):
        path = write_folder(folder / name, state)
        (path / "eomt.json").write_text(description if isinstance(description, str) else json.dumps(description))
        return path

    def index(name, places):
        path = folder / name
        path.mkdir()
        (path / "model.safetensors.index.json").write_text(json.dumps(places))
        return path

    def network_part(**changes):
        return own | {"network": own["network"] | changes}

    data = good.read_bytes()
    yield write("empty.ckpt", b""), "it is empty"
    yield write("text.bin", b"<html>not found</html>"), "neither safetensors' nor PyTorch's"
    yield write("cut.ckpt", data[: len(data) // 2]), "truncated or damaged .* another checkpoint of its run"
    yield write("pickle.bin", pickle.dumps({"queries": 1})), "neither safetensors' nor PyTorch's"
    yield write("cut.safetensors", safe.read_bytes()[:-9]), "truncated or damaged"
    yield write("header.safetensors", struct.pack("<Q", 10**15) + safe.read_bytes()[8:]), "truncated or damaged"
    claim = json.dumps({"queries": {"dtype": "F32", "shape": [10**9], "data_offsets": [0, 4 * 10**9]}}).encode()
    yield write("claim.safetensors", struct.pack("<Q", len(claim)) + claim + b"\0" * 8), "truncated or damaged"
    with zipfile.ZipFile(good) as archive, zipfile.ZipFile(folder / "bomb.ckpt", "w", zipfile.ZIP_DEFLATED) as bomb:
        for entry in archive.namelist():
            bomb.writestr(entry, archive.read(entry))
        bomb.writestr("good/data/999", b"\0" * 10**7)
    yield folder / "bomb.ckpt", "compressed archive"
    torch.save({"eomt": own, "state_dict": saved, "more": Evil()}, folder / "evil.ckpt")
    yield folder / "evil.ckpt", "could run code"
    torch.save([1, 2], folder / "list.bin")
    yield folder / "list.bin", "no weights by name, but list"
    torch.save({"a": torch.zeros(1)}, folder / "other.bin")
    yield folder / "other.bin", "holds no EoMT: its weights are called a"
    yield checkpoint("repeated.ckpt", queries=torch.zeros(1).expand(10**9, 64)), "queries is no plain weight"
    yield checkpoint("sparse.ckpt", queries=torch.eye(64).to_sparse()), "queries is no plain weight"
    yield checkpoint("text.ckpt", queries="x"), "holds str under 'network.queries'"
    yield checkpoint("nan.ckpt", queries=torch.full((6, 64), float("nan"))), "queries holds values that are infinite"
    yield checkpoint("inf.ckpt", queries=torch.full((6, 64), float("inf"))), "queries holds values that are infinite"
    yield checkpoint("shape.ckpt", queries=torch.zeros(7, 64)), r"queries is \[7, 64\], and \[6, 64\]"
    yield checkpoint("int.ckpt", queries=torch.zeros(6, 64, dtype=torch.int64)), "queries is of torch.int64"
    yield checkpoint("more.ckpt", surprise=torch.zeros(1)), "has unknown surprise"
    fewer = {key: value for key, value in saved.items() if "class_head" not in key}
    torch.save({"eomt": own, "state_dict": fewer}, folder / "fewer.ckpt")
    yield folder / "fewer.ckpt", r"lacks class_head\.weight, class_head\.bias"
    torch.save({"eomt": own}, folder / "nothing.ckpt")
    yield folder / "nothing.ckpt", "holds dict under 'eomt', where a weight belongs"
    yield checkpoint("kind.ckpt", {k: v for k, v in own.items() if k != "kind"}), "its description lacks or garbles"
    yield checkpoint("rows.ckpt", own | {"classes": [1]}), "its description lacks or garbles"
    yield checkpoint("deep.ckpt", network_part(backbone_options={"embed_dim": 64, "depth": 10**9})), "1000000000 blocks"
    yield (
        checkpoint("wide.ckpt", network_part(num_queries=10**12)),
        "num_queries is '1000000000000', which is no number",
    )
    yield checkpoint("vit.ckpt", network_part(backbone="hf-hub:someone/model")), "no model that timm knows"
    # timm's factory would unpickle this file.
    yield checkpoint("hidden.ckpt", network_part(backbone_options={"checkpoint_path": "evil.bin"})), "checkpoint_path"
    yield export("brackets", "[" * 10**6), "is no JSON"
    yield export("number", "7"), "holds int, where a JSON object belongs"
    yield export("lacking", {"kind": "panoptic"}), "its description lacks or garbles"
    yield index("away", {"weight_map": {"queries": "../safe/model.safetensors"}}), "no file of this folder"
    yield index("gone", {"weight_map": {"queries": "model-1.safetensors"}}), "lacks model-1.safetensors"
    yield index("odd", {"weight_map": [1]}), "has no weight_map"
    (folder / "run" / "checkpoints").mkdir(parents=True)
    yield folder / "run", r"is a run's folder: give .*best\.ckpt"
    (folder / "bare").mkdir()
    yield folder / "bare", "holds no weights: a folder must have model.safetensors"
    yield folder / "none.ckpt", "no such file or folder"


def test_whatever_is_wrong_is_one_line_that_names_it(tmp_path):
    count = 0
    for path, message in broken_files(tmp_path):
        with pytest.raises(InputError, match=message) as caught:
            read_weights(path)
        text = main.explain(caught.value)
        assert path.name in text, text
        assert len(text) < 400, text
        count += 1
    assert count > 35
    assert not Path(__file__).with_suffix(".ran").exists()


def test_a_description_of_gigabytes_is_not_read(tmp_path):
    folder = write_folder(tmp_path / "export", small(7).state_dict())
    with (folder / "eomt.json").open("wb") as file:
        file.truncate(3 * 2**30)
    with pytest.raises(InputError, match="has 3072 MiB, where a description has kilobytes"):
        read_weights(folder)


def test_a_records_claims_are_not_believed(tmp_path):
    """A storage that is said to be larger than its record would show what lies behind it."""
    network = small(7)
    saved = {f"network.{key}": value for key, value in network.state_dict().items()}
    torch.save({"eomt": part_of(network), "state_dict": saved}, tmp_path / "good.ckpt")
    with zipfile.ZipFile(tmp_path / "good.ckpt") as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    victim = next(name for name in entries if name.endswith("data/0"))
    for name, content in (("short.ckpt", entries[victim][:4]), ("gone.ckpt", None)):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            for entry, data in entries.items():
                if entry != victim or content is not None:
                    archive.writestr(entry, data if entry != victim else content)
        with pytest.raises(InputError, match=name):
            read_weights(tmp_path / name)


def test_the_options_of_a_backbone_are_sizes():
    spec = small().spec
    assert check_spec(spec, "x") == spec
    for key in ("pretrained", "checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir", "file"):
        with pytest.raises(InputError, match=key):
            check_spec(spec | {"backbone_options": {key: "evil.bin"}}, "x")


# The Hub


def test_what_is_a_hub_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_hub_id("tue-mps/coco_panoptic_eomt_large_640")
    for text in ("model", "a/b/c", "../model", "/a/b", "runs/best.ckpt", "a/model.safetensors", "~/model", "a/b c"):
        assert not is_hub_id(text), text
    (tmp_path / "owner" / "name").mkdir(parents=True)
    assert not is_hub_id("owner/name")


def test_a_repository_is_read_like_its_folder(tmp_path, monkeypatch, caplog):
    network = small(7)
    whole = write_huggingface(tmp_path / "hf", network, SEVEN, "panoptic")
    original = tmp_path / "original"
    original.mkdir()
    torch.save(to_original(network.state_dict(), network.spec), original / "pytorch_model.bin")
    asked = []

    def snapshot(repo_id, allow_patterns):
        asked.append((repo_id, allow_patterns))
        return str(whole if repo_id == "a/hf" else original)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    with caplog.at_level("INFO", "eomt"):
        assert_equal(read_weights("a/hf").state, network.state_dict())
        read_weights("a/bin", kind="semantic", classes=SEVEN, network=ONE_HEAD)
    assert [repo for repo, _ in asked] == ["a/hf", "a/bin", "a/bin"], "PyTorch's files only where there are no others"
    assert "pytorch_model*.bin" not in asked[0][1]
    assert "pytorch_model*.bin" in asked[2][1]
    assert caplog.messages[0].startswith("weights: Hugging Face folder a/hf of the Hugging Face Hub: EoMT")


def answered(kind):
    """An error that carries the server's response, without one."""
    return kind.__new__(kind)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            lambda: answered(errors.GatedRepoError),
            r"gated: ask for access.*HF_TOKEN.*delta_base=FILE",
        ),
        (
            lambda: answered(errors.RepositoryNotFoundError),
            "no such file or folder, and no such repo",
        ),
        (
            lambda: errors.LocalEntryNotFoundError("no\nway"),
            r"cannot be reached \(no\): run once where.*give their folder",
        ),
        (lambda: errors.OfflineModeIsEnabled("off"), r"not in the cache"),
        (lambda: TimeoutError("took too long"), r"cannot be had.*\(took too long\): try again"),
        (lambda: OSError(28, "No space left on device"), "No space left on device"),
    ],
)
def test_what_goes_wrong_with_the_hub_is_one_line_with_a_way_out(error, message, monkeypatch):
    def snapshot(*args, **kwargs):
        raise error()

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    with pytest.raises(InputError, match=message) as caught:
        read_weights("owner/name")
    assert "owner/name" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_offline_mode_takes_what_is_in_the_cache(tmp_path, monkeypatch):
    """With the Hub's own client and a cache as it lays it out."""
    network = small(7)
    commit = "0123456789" * 4
    repo = tmp_path / "models--owner--name"
    write_huggingface(repo / "snapshots" / commit, network, SEVEN, "panoptic")
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert_equal(read_weights("owner/name").state, network.state_dict())
    with pytest.raises(InputError, match="HF_HUB_OFFLINE is set: run once with HF_HUB_OFFLINE=0"):
        read_weights("owner/other")


# Who takes them


def test_a_segmenter_of_any_source_gives_the_same_result(tmp_path):
    network = small(7, init_values=1.0)
    with torch.no_grad():
        network.class_head.weight.mul_(40)
        network.mask_head[-1].weight.mul_(10)
    state, spec = network.state_dict(), network.spec
    torch.save(to_original(state, spec), tmp_path / "original.bin")
    sources = [
        (write_folder(tmp_path / "export", state, part_of(network)), {}),
        (write_huggingface(tmp_path / "hf", network, SEVEN, "panoptic"), {}),
        (tmp_path / "original.bin", {"kind": "panoptic", "classes": SEVEN, "network": spec}),
    ]
    image = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    results = []
    for source, said in sources:
        segmenter = Segmenter.load(source, "cpu", **said, score_threshold=0.0, overlap_threshold=0.0)
        assert segmenter.classes == SEVEN
        results.append(segmenter(image))
    assert len(results[0]) > 0
    for result in results[1:]:
        assert np.array_equal(result.map, results[0].map)
        assert np.array_equal(result.labels, results[0].labels)


def test_predict_takes_what_a_file_does_not_say(tmp_path, monkeypatch):
    network = small(150, embed_dim=96, num_heads=3)
    torch.save(to_original(network.state_dict(), network.spec), tmp_path / "x.bin")
    Image.new("RGB", (30, 40)).save(tmp_path / "x.png")
    heads = "network.backbone_options={embed_dim: 96, depth: 2, num_heads: 3}"
    typed = [f"ckpt={tmp_path}/x.bin", f"images={tmp_path}/x.png", f"out={tmp_path}/out", "kind=semantic", heads]
    given = []
    load = Segmenter.load
    monkeypatch.setattr(Segmenter, "load", lambda *args, **more: given.append(load(*args, **more)) or given[-1])
    with initialize_config_dir(CONFIGS, version_base="1.3"):
        cfg = compose("predict", overrides=[*main.quote_paths(typed), "device=cpu", "num_workers=0"])
    predict.main(cfg)
    assert given[0].network.spec == network.spec
    assert (given[0].task.kind, given[0].classes) == ("semantic", ADE20K)
    assert (tmp_path / "out" / "pictures" / "x.jpg").is_file()


def test_predict_takes_classes_that_a_file_does_not_say(tmp_path):
    network = small()
    torch.save(to_original(network.state_dict(), network.spec), tmp_path / "x.bin")
    Image.new("RGB", (30, 40)).save(tmp_path / "x.png")
    (tmp_path / "names.txt").write_text("cat\ndog\nsky\n")
    typed = [f"ckpt={tmp_path}/x.bin", f"images={tmp_path}/x.png", "kind=semantic", "device=cpu", "num_workers=0"]
    typed.append("network.backbone_options={num_heads: 1}")
    for name, classes in (("a", f"{tmp_path}/names.txt"), ("b", "[cat,dog,sky]")):
        with initialize_config_dir(CONFIGS, version_base="1.3"):
            cfg = compose("predict", overrides=[*typed, f"classes={classes}", f"out={tmp_path / name}"])
        predict.main(cfg)
        index = json.loads((tmp_path / name / "images.json").read_text())
        assert [row["name"] for row in index["categories"]] == ["cat", "dog", "sky"]
    with initialize_config_dir(CONFIGS, version_base="1.3"):
        cfg = compose("predict", overrides=[*typed, "classes=none.txt", f"out={tmp_path / 'c'}"])
    with pytest.raises(InputError, match=r"^classes: cannot read .*none\.txt: .* counts from the current folder"):
        predict.main(cfg)


def test_hub_ids_are_no_paths_on_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for key in ("ckpt", "weights", "delta_base"):
        assert main.quote_paths([f"{key}=tue-mps/coco_x"]) == [f"{key}='tue-mps/coco_x'"]
        assert main.quote_paths([f"{key}=runs/a=1.ckpt"]) == [f"{key}='{tmp_path}/runs/a=1.ckpt'"]
    (tmp_path / "tue-mps" / "coco_x").mkdir(parents=True)
    assert main.quote_paths(["ckpt=tue-mps/coco_x"]) == [f"ckpt='{tmp_path}/tue-mps/coco_x'"]
    assert main.quote_paths(["data.root=a/b"]) == [f"data.root='{tmp_path}/a/b'"]


# The datasets


def test_classes_of_the_published_datasets(shared_data):
    with zipfile.ZipFile(shared_data / "coco" / "panoptic_annotations_trainval2017.zip") as archive:
        panoptic = json.loads(archive.read("annotations/panoptic_val2017.json"))["categories"]
    with zipfile.ZipFile(shared_data / "coco" / "annotations_trainval2017.zip") as archive:
        instance = json.loads(archive.read("annotations/instances_val2017.json"))["categories"]
    assert Classes.from_categories(panoptic) == COCO_PANOPTIC
    assert Classes.from_categories(instance) == COCO_INSTANCE


def test_known_classes():
    assert [sum(c.is_thing) for c in (COCO_PANOPTIC, COCO_INSTANCE, ADE20K, CITYSCAPES)] == [80, 80, 100, 8]
    assert COCO_PANOPTIC.items[:80] == COCO_INSTANCE.items
    assert (COCO_PANOPTIC[80].id, COCO_PANOPTIC[80].name) == (92, "banner")
    assert classes_by_names(COCO_PANOPTIC.names) is COCO_PANOPTIC
    assert classes_by_names([f"x{name}" for name in COCO_PANOPTIC.names]) is None
    assert classes_by_names(["a"]) is None
    assert kind_of(CITYSCAPES) == "semantic"
