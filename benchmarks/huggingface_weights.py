"""The published sizes in transformers and here: do both give the same logits from the same weights?

    python benchmarks/huggingface_weights.py [SIZE ...]

Each size in a process of its own; giant takes about 14 GB of memory and 5 GB of temporary files. A transformers model
with every parameter random is read by us; ours is exported, and the folder read by transformers. Needs `eomt[hf]`.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForUniversalSegmentation

sys.path.insert(0, str(Path(__file__).parents[1]))

from eomt.model.eomt import EoMT
from eomt.weights.huggingface import from_huggingface
from eomt.weights.huggingface_export import to_huggingface

SIZES = {
    "dinov2-small": ("vit_small_patch14_reg4_dinov2", 3),
    "dinov2-base": ("vit_base_patch14_reg4_dinov2", 3),
    "dinov2-large": ("vit_large_patch14_reg4_dinov2", 4),
    "dinov3-small": ("vit_small_patch16_dinov3_qkvb", 3),
    "dinov3-base": ("vit_base_patch16_dinov3_qkvb", 3),
    "dinov3-large": ("vit_large_patch16_dinov3_qkvb", 4),
    "dinov2-giant": ("vit_giant_patch14_reg4_dinov2", 5),
}
PIXELS, QUERIES, NUM_CLASSES = 160, 200, 133


def measure(size: str) -> None:
    backbone, num_masked_blocks = SIZES[size]
    with torch.device("meta"):
        network = EoMT(backbone, PIXELS, NUM_CLASSES, QUERIES, num_masked_blocks)
        config = to_huggingface(network.state_dict(), network.spec, None, None)[1]
    torch.manual_seed(0)
    theirs = AutoModelForUniversalSegmentation.from_config(AutoConfig.for_model(**config)).eval()
    randomise(theirs)
    weights, spec = from_huggingface(theirs.state_dict(), theirs.config.to_dict())
    if spec != network.spec:
        raise SystemExit(f"{size}: read as {spec}")
    network = EoMT(**spec).eval()
    network.load_state_dict(weights, assign=True)
    del weights
    written, config, _ = to_huggingface(network.state_dict(), spec, None, None)
    state = theirs.state_dict()
    same = written.keys() == state.keys() and all(torch.equal(value, state[key]) for key, value in written.items())
    images = torch.rand(1, 3, PIXELS, PIXELS)
    with torch.no_grad():
        ours = network(images)[-1].logits()
        read = logits(theirs, network, images)
    del theirs, state
    with tempfile.TemporaryDirectory() as folder:
        save_file(written, Path(folder, "model.safetensors"), metadata={"format": "pt"})
        Path(folder, "config.json").write_text(json.dumps(config))
        del written
        theirs = AutoModelForUniversalSegmentation.from_pretrained(folder)
        with torch.no_grad():
            exported = logits(theirs, network, images)
    count = sum(parameter.numel() for parameter in network.parameters())
    print(
        f"| {size} | {count / 1e6:.0f} M | {difference(ours, read)} | {difference(ours, exported)} | "
        f"{ours.mask_logits.abs().max():.1f}, {ours.class_logits.abs().max():.1f} | {'yes' if same else 'NO'} |"
    )


def randomise(model: torch.nn.Module) -> None:
    """No parameter stays where it begins, and activations keep their size from block to block."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name and name.endswith("weight"):
                parameter.normal_(mean=1, std=0.2)
            elif parameter.ndim == 1:
                parameter.normal_(std=0.2)
            elif "token" in name or "position" in name or "query" in name:
                parameter.normal_()
            else:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
        model.attn_mask_probs.zero_()


def logits(model: torch.nn.Module, network: EoMT, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    output = model(pixel_values=(images - network.pixel_mean) / network.pixel_std)
    return output.masks_queries_logits, output.class_queries_logits


def difference(one: tuple, other: tuple) -> str:
    return ", ".join(f"{(a - b).abs().max():.1e}" for a, b in zip(one, other, strict=True))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("sizes", nargs="*", choices=[*SIZES, []], default=[])
    sizes = parser.parse_args().sizes
    if len(sizes) == 1:
        torch.set_num_threads(1)
        measure(sizes[0])
    else:
        print("| size | parameters | read: masks, classes | exported: masks, classes | largest logits | bit-equal |")
        print("|---|---|---|---|---|---|", flush=True)
        for size in sizes or SIZES:
            subprocess.run([sys.executable, __file__, size], check=True)
