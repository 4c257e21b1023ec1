"""Damaged and hostile files: each is one line that names the file, and nothing in it runs."""

import codecs
import json
import os
import struct
import zipfile
from pathlib import Path

import pytest
import torch

from eomt.cli.endings import explain
from eomt.errors import InputError
from eomt.weights.checkpoint import read_checkpoint
from eomt.weights.load import read_incomplete, read_weights
from tests.weights.sources import part_of, small, write_folder

RAN = Path(__file__).with_suffix(".ran")


class Call:
    """An object whose pickle calls a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


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
    yield write("empty.ckpt", b""), "it is empty.*another checkpoint of its run"
    yield write("text.bin", b"<html>not found</html>"), "neither safetensors' nor PyTorch's"
    yield write("cut.ckpt", data[: len(data) // 2]), "truncated, damaged"
    row = torch.zeros(10_000)
    yield checkpoint("together.ckpt", **{f"x{k}": row[k:] for k in range(99)}), "its tensors repeat .* bytes"
    yield write("long.safetensors", struct.pack("<Q", 2**23) + b"{" + b" " * 2**23), "header is larger than"
    yield write("cut.safetensors", safe.read_bytes()[:-9]), "truncated, damaged"
    yield write("header.safetensors", struct.pack("<Q", 10**15) + safe.read_bytes()[8:]), "truncated, damaged"
    claim = json.dumps({"queries": {"dtype": "F32", "shape": [10**9], "data_offsets": [0, 4 * 10**9]}}).encode()
    yield write("claim.safetensors", struct.pack("<Q", len(claim)) + claim + b"\0" * 8), "truncated, damaged"
    with zipfile.ZipFile(good) as archive, zipfile.ZipFile(folder / "bomb.ckpt", "w", zipfile.ZIP_DEFLATED) as bomb:
        for entry in archive.namelist():
            bomb.writestr(entry, archive.read(entry))
        bomb.writestr("good/data/999", b"\0" * 10**7)
    yield folder / "bomb.ckpt", "compressed archive"
    torch.save({"eomt": own, "state_dict": saved, "more": Call(open, str(RAN), "w")}, folder / "evil.ckpt")
    yield folder / "evil.ckpt", "could run code"
    torch.save([1, 2], folder / "list.bin")
    yield folder / "list.bin", "no weights by name, but list"
    torch.save({"a": torch.zeros(1)}, folder / "other.bin")
    yield folder / "other.bin", "holds no EoMT: its weights are called a"
    yield (
        checkpoint("repeated.ckpt", queries=torch.zeros(1).expand(10**9, 64)),
        r"a tensor of \[1000000000, 64\] repeats 4 bytes",
    )
    yield checkpoint("sparse.ckpt", queries=torch.eye(64).to_sparse()), "holds Python objects .*_rebuild_sparse_tensor"
    yield checkpoint("text.ckpt", queries="x"), "holds str under 'network.queries'"
    yield checkpoint("nan.ckpt", queries=torch.full((6, 64), float("nan"))), "queries holds values that are infinite"
    yield checkpoint("shape.ckpt", queries=torch.zeros(7, 64)), r"queries of \[7, 64\], not \[6, 64\]"
    yield checkpoint("int.ckpt", queries=torch.zeros(6, 64, dtype=torch.int64)), "queries is of torch.int64"
    yield checkpoint("more.ckpt", **{"x" * 100_000: torch.zeros(1)}), "has unknown x"
    fewer = {key: value for key, value in saved.items() if "class_head" not in key}
    torch.save({"eomt": own, "state_dict": fewer}, folder / "fewer.ckpt")
    yield folder / "fewer.ckpt", r"lacks class_head\.weight, lacks class_head\.bias"
    torch.save({"eomt": own}, folder / "nothing.ckpt")
    yield folder / "nothing.ckpt", "holds dict under 'eomt', where a weight belongs"
    yield checkpoint("kind.ckpt", {k: v for k, v in own.items() if k != "kind"}), "its description lacks or garbles"
    yield checkpoint("rows.ckpt", own | {"classes": [1]}), "its description lacks or garbles"
    yield (
        checkpoint("deep.ckpt", network_part(backbone_options={"embed_dim": 64, "depth": 10**9})),
        "network has 1000000000 blocks",
    )
    far = {"backbone.vit.blocks.999999999.norm1.weight": torch.zeros(64)}
    yield (
        checkpoint("far.ckpt", network_part(backbone_options={"embed_dim": 64, "depth": 10**9}), **far),
        "network has 1000000000 blocks, its weights 3",
    )
    yield (
        checkpoint("wide.ckpt", network_part(num_queries=10**12)),
        "no network has num_queries=1000000000000",
    )
    yield checkpoint("vit.ckpt", network_part(backbone="hf-hub:someone/model")), "no model that timm knows"
    on_host = {"embed_dim": 2**15, "num_heads": 2**9, "device": "cpu"}
    yield checkpoint("host.ckpt", network_part(backbone_options=on_host)), "no network has backbone_options"
    yield checkpoint("tall.ckpt", network_part(image_size=[2**16, 2**14])), r"image_size=\[65536, 16384\] and patch"
    # timm's factory would unpickle this file.
    yield checkpoint("hidden.ckpt", network_part(backbone_options={"checkpoint_path": "evil.bin"})), "checkpoint_path"
    yield export("brackets", "[" * 10**6), "is no JSON object"
    yield export("number", "7"), "is no JSON object .it holds int"
    yield export("lacking", {"kind": "panoptic"}), "its description lacks or garbles"
    yield index("away", {"weight_map": {"queries": "../safe/model.safetensors"}}), "no file of its folder"
    yield index("gone", {"weight_map": {"queries": "model-1.safetensors"}}), "'model-1.safetensors', which is no file"
    yield index("odd", {"weight_map": [1]}), "has no weight_map"
    (folder / "run" / "checkpoints").mkdir(parents=True)
    yield folder / "run", "has not saved a checkpoint yet"
    (folder / "killed").mkdir()
    (folder / "killed" / "config.yaml").write_text("seed: 0\n")
    yield folder / "killed", "has not saved a checkpoint yet: start it anew"
    for day, age in (("z/yesterday", 99), ("today", 0)):
        (folder / "runs" / day / "checkpoints").mkdir(parents=True)
        os.utime(folder / "runs" / day / "checkpoints", (1e9 - age, 1e9 - age))
    yield folder / "runs", "holds 2 runs: give one, the newest is .*/runs/today"
    (folder / "graph").mkdir()
    (folder / "graph" / "model.onnx").write_bytes(b"")
    yield folder / "graph", r"is an exported graph, model.onnx, which runs without weights"
    yield folder / "graph" / "model.onnx", r"model.onnx is an exported graph, which runs without weights"
    (folder / "bare").mkdir()
    yield folder / "bare", "holds no weights: a folder must have model.safetensors"
    yield folder / "none.ckpt", "no such file or folder"


def test_whatever_is_wrong_is_one_line_that_names_it(tmp_path):
    count = 0
    for path, message in broken_files(tmp_path):
        with pytest.raises(InputError, match=message) as caught:
            read_weights(path)
        text = explain(caught.value)
        assert path.name in text, text
        assert len(text) <= 1000, text
        count += 1
    assert count > 30
    assert not RAN.exists()


def test_a_description_of_gigabytes_is_not_read(tmp_path):
    folder = write_folder(tmp_path / "export", small(7).state_dict())
    with (folder / "eomt.json").open("wb") as file:
        file.truncate(3 * 2**30)
    with pytest.raises(InputError, match="3072 MiB, where a description has kilobytes"):
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


def test_a_flipped_bit_is_noticed_wherever_it_is(tmp_path):
    """Also in a file that was whole when it was read before."""
    network, path = small(7), tmp_path / "mine.bin"
    saved = {f"network.{key}": value for key, value in network.state_dict().items()}
    torch.save(
        {"eomt": part_of(network), "state_dict": saved, "optimizer_states": [{"moment": torch.ones(1000)}]}, path
    )
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        contents = {entry: archive.read(entry) for entry in archive.infolist() if entry.file_size}
    assert read_checkpoint(path)
    for number, (entry, content) in enumerate(contents.items()):
        # The data stand before the next entry's header; any byte near the middle of an entry is one of them.
        at = whole.index(content[:64], entry.header_offset + 30)
        damaged = bytearray(whole)
        damaged[at + entry.file_size // 2] ^= 1
        path.write_bytes(damaged)
        os.utime(path, ns=(number, number))
        for read in (read_weights, read_checkpoint):
            with pytest.raises(InputError, match="truncated, damaged"):
                read(path)


def test_files_without_checksums_are_read(tmp_path):
    """PyTorch can be told to leave them out."""
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(small(7).state_dict(), tmp_path / "x.bin")
    finally:
        torch.serialization.set_crc32_options(True)
    assert read_incomplete(tmp_path / "x.bin").state


def deep(levels):
    """Two of the level below in each: a few bytes that are 2**levels entries."""
    value = [0]
    for _ in range(levels):
        value = [value, value]
    return value


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"config": {"a": deep(60)}}, "more entries than any"),
        ({"config": {"a": deep(30)}}, "more entries than any"),
        ({"network": {"num_classes": 10**500}}, "holds int, where plain text and numbers belong"),
        ({"step": 10**500}, "holds int, where plain"),
        ({"config": {"a": torch.zeros(1)}}, "holds Tensor, where plain"),
        ({"classes": [{"id": "9" * 5000, "name": "x", "color": [0, 0, 0], "isthing": 1}]}, "garbles a part"),
        ({"classes": [{"id": 1, "name": "x", "color": [0, 0], "isthing": 1}]}, "garbles a part"),
        ({"classes": [{"id": 1, "name": "x", "color": [0, -5, 999], "isthing": 1}]}, "garbles a part"),
        ({"learns": 5}, "damaged"),
        ({"environment": 5}, "garbles a part"),
        ({"kind": "semantic\n" * 5000}, "was chosen"),
    ],
)
def test_descriptions_hold_plain_values_of_bounded_size(changes, words, tmp_path):
    network = small(7)
    saved = {f"network.{key}": value for key, value in network.state_dict().items()}
    torch.save({"eomt": part_of(network) | changes, "state_dict": saved}, tmp_path / "x.ckpt")
    with pytest.raises(InputError, match=words) as caught:
        read_weights(tmp_path / "x.ckpt", kind="panoptic")
    assert len(explain(caught.value)) <= 1000


@pytest.mark.parametrize(
    "call",
    # A codec doubles a text, and another doubles that.
    [
        Call(bytearray, 10**10),
        Call(torch.Tensor, 10**10),
        Call(torch.FloatTensor, 10**10),
        Call(codecs.encode, "a", "hex"),
    ],
    ids=["bytearray", "Tensor", "FloatTensor", "encode"],
)
@pytest.mark.parametrize("sums", [True, False])
def test_no_file_of_a_few_bytes_fills_the_memory(call, sums, tmp_path):
    """PyTorch's unpickler calls these with any size."""
    torch.serialization.set_crc32_options(sums)
    try:
        torch.save({"queries": call}, tmp_path / "x.bin")
    finally:
        torch.serialization.set_crc32_options(True)
    with pytest.raises(InputError, match=r"x\.bin holds Python objects \(\S+ (bytearray|Tensor|FloatTensor|encode)\)"):
        read_weights(tmp_path / "x.bin")


def test_a_pickle_is_checked_under_any_name_that_pytorch_takes(tmp_path):
    torch.save({"queries": Call(bytearray, 10**10)}, tmp_path / "small.bin")
    with zipfile.ZipFile(tmp_path / "small.bin") as archive, zipfile.ZipFile(tmp_path / "LARGE.bin", "w") as other:
        for name in archive.namelist():
            other.writestr(name.replace("data.pkl", "DATA.PKL"), archive.read(name))
    with pytest.raises(InputError, match=r"LARGE\.bin holds Python objects"):
        read_weights(tmp_path / "LARGE.bin")
