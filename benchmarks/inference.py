"""Inference beside transformers with the same weights: from image files to panoptic segments, and its parts.

    python benchmarks/inference.py                                    # ViT-S at 640, batch 1 and 16, synthetic images
    python benchmarks/inference.py --images FOLDER --size large --device cuda --precision bf16 --compile
    python benchmarks/inference.py --postprocess panoptic             # from logits to the labels of every pixel
    python benchmarks/inference.py --postprocess semantic --shapes 3000x4000 --memory
    python benchmarks/inference.py --huggingface small dinov3_large   # the same logits from the same weights?

Ours from files: `Segmenter`, with and without padding. Theirs: PIL, the image processor, the model and its
post-processing. Random networks are unsure of every class: class logits are scaled, and the one of "no object" is
shifted, until `--kept` queries take part. `--postprocess` takes logits of ellipses with noise; `--memory` prints our
peak above the logits in a process of its own. Ratios are of medians of alternating rounds; the limit is the
arithmetic of the padded network at the rate of a large matrix product. `--huggingface` gives the largest absolute
difference of mask and class logits, for transformers' weights read by us and ours read by transformers. Needs
`eomt[hf]`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from common import (
    NUM_CLASSES,
    PRECISIONS,
    SIZES,
    autocast,
    child,
    describe,
    huggingface_network,
    interleaved,
    matmul_rate,
    network_flops,
    our_network,
    peak_of,
    shared_parser,
)
from PIL import Image
from torch import Tensor, nn
from transformers import EomtImageProcessor
from transformers.models.eomt.image_processing_eomt import get_size_with_aspect_ratio

from eomt.classes import Classes
from eomt.inference.find_images import find_images
from eomt.inference.segmenter import Segmenter
from eomt.model.eomt import EoMT
from eomt.postprocess.geometry import Placement, cover_size, fit_size, window_starts
from eomt.postprocess.instance import instance_segmentation
from eomt.postprocess.panoptic import panoptic_segmentation
from eomt.postprocess.semantic import semantic_segmentation
from eomt.tasks import task_of
from eomt.weights.huggingface import from_huggingface

CLASSES = Classes.from_categories([{"id": k, "name": str(k), "isthing": int(k < 80)} for k in range(NUM_CLASSES)])
STUFF = list(range(80, NUM_CLASSES))


def synthetic_images(folder: Path, count: int) -> list[Path]:
    """JPEG files of COCO's usual sizes, smooth with some noise."""
    random, paths = np.random.default_rng(0), [folder / f"{k:03d}.jpg" for k in range(count)]
    for k, path in enumerate(paths):
        width, height = ((640, 480), (640, 427), (480, 640), (500, 375))[k % 4]
        coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        pixels = np.array(coarse.resize((width, height), Image.Resampling.BICUBIC)) / 1.2
        Image.fromarray((pixels + random.integers(0, 30, (height, width, 1))).astype(np.uint8)).save(path, quality=90)
    return paths


@torch.no_grad()
def keep_queries(network: EoMT, path: Path, kept: int) -> None:
    """Scale the heads of a random network so that about `kept` queries score a class highly, and masks have edges."""
    geometry = task_of("panoptic").geometry
    output = network.eval()(geometry.prepare(Image.open(path), network.image_size)[0])[-1].logits()
    factor = 60 / output.class_logits.std()
    network.class_head.weight *= factor
    network.class_head.bias *= factor
    logits = output.class_logits[0] * factor
    margin = (logits[:, :-1].amax(1) - logits[:, -1]).sort().values
    kept = min(kept, len(margin) - 1)
    network.class_head.bias[-1] += margin[len(margin) - kept - 1 : len(margin) - kept + 1].mean()
    network.mask_head[-1].weight *= 5 / output.mask_logits.std()
    network.mask_head[-1].bias *= 5 / output.mask_logits.std()


def from_files(options: argparse.Namespace, paths: list[Path], batch: int) -> None:
    """Print a batch size's rows: files to segments with and without padding, and the networks alone."""
    device, dtype = torch.device(options.device), PRECISIONS[options.precision]
    network, twin = (our_network(options.size, options.pixels, options.queries) for _ in range(2))
    keep_queries(network, paths[0], options.kept)
    twin.load_state_dict(network.state_dict())
    model = huggingface_network(network).to(device).eval()
    model.attn_mask_probs.zero_()
    precision = {"fp32": "32", "fp16": "16"}.get(options.precision, options.precision)
    padded, unpadded = (
        Segmenter(one, task_of("panoptic"), CLASSES, device, precision, unpadded=flag, compile=options.compile or None)
        for one, flag in ((network, False), (twin, True))
    )
    processor = EomtImageProcessor(size={"shortest_edge": options.pixels, "longest_edge": options.pixels}, do_pad=True)
    if options.compile:
        model.compile(dynamic=False)
    paths = (paths * -(-batch // len(paths)))[:batch]

    @torch.inference_mode()
    def theirs() -> list[Tensor]:
        images = [Image.open(path).convert("RGB") for path in paths]
        inputs = processor(images=images, return_tensors="pt")
        with autocast(device, dtype):
            outputs = model(pixel_values=inputs["pixel_values"].to(device))
        sizes = [image.size[::-1] for image in images]
        outputs.masks_queries_logits = outputs.masks_queries_logits.float()
        outputs.class_queries_logits = outputs.class_queries_logits.float()
        found = processor.post_process_panoptic_segmentation(outputs, sizes, stuff_classes=STUFF)
        return [one["segmentation"].cpu() for one in found]

    square = torch.zeros(batch, 3, options.pixels, options.pixels, dtype=torch.uint8, device=device)

    @torch.inference_mode()
    def alone(run: Callable) -> None:
        with autocast(device, dtype):
            run()

    sides = {
        "ours": lambda: padded(paths, batch, options.workers),
        "unpadded": lambda: unpadded(paths, batch, options.workers),
        "theirs": theirs,
        "our network": lambda: alone(lambda: padded.network(square)[-1].logits()),
        "their network": lambda: alone(lambda: model(pixel_values=square.float())),
    }
    took = interleaved(sides, device, options.rounds, 3 if options.compile else 1)
    limit = 1e3 * network_flops(network, options.pixels) / matmul_rate(device, dtype)
    for name, own, peer in (
        ("file to segments", "ours", "theirs"),
        ("the same, unpadded", "unpadded", "theirs"),
        ("network alone", "our network", "their network"),
    ):
        a, b = (1e3 * took[side] / batch for side in (own, peer))
        print(f"| {name} | {batch} | {a:.1f} | {b:.1f} | {b / a:.2f} | {limit:.1f} |", flush=True)


def random_logits(options: argparse.Namespace, kept: int, windows: int) -> tuple[Tensor, Tensor]:
    """Mask logits [N, Q, p/4, p/4] of noisy ellipses; class logits [N, Q, C + 1], high for `kept` queries."""
    generator = torch.Generator().manual_seed(0)
    side, queries = options.pixels // 4, options.queries
    axis, masks = torch.arange(side) + 0.5, torch.empty(windows, queries, side, side)
    for mask in masks.flatten(0, 1):  # one at a time: temporaries must not raise the peak that --memory measures
        y, x, a, b = torch.rand(4, generator=generator).tolist()
        radius = side * (0.02 + 0.3 * a**2)
        distance = ((axis[:, None] - y * side * 0.75) / radius) ** 2 + ((axis - x * side) / radius / (b + 0.5)) ** 2
        mask.normal_(0, 0.5, generator=generator).add_(((1 - distance.sqrt()) * radius).clamp(-12, 8))
    classes = torch.randn(windows, queries, options.classes + 1, generator=generator)
    sure = torch.arange(kept)
    classes[:, sure, sure % options.classes] = 9 + 3 * torch.rand(windows, kept, generator=generator)
    classes[:, kept:, -1] = 12
    return masks, classes


def post_processing(options: argparse.Namespace, kept: int, height: int, width: int) -> dict[str, Callable]:
    """Both sides' post-processing of the same logits to an image's own size."""
    size, kind = (options.pixels, options.pixels), options.postprocess
    semantic = kind == "semantic"
    placement = Placement(height, width, *(cover_size if semantic else fit_size)(height, width, size))
    starts = window_starts(max(placement[2:]), options.pixels) if semantic else [0]
    masks, classes = (part.to(options.device) for part in random_logits(options, kept, len(starts)))
    is_thing = torch.arange(options.classes) < options.classes * 0.6
    stuff = (~is_thing).nonzero()[:, 0].tolist()
    edges = {"shortest_edge": options.pixels, "longest_edge": None if semantic else options.pixels}
    processor = EomtImageProcessor(size=edges, do_pad=not semantic, do_split_image=semantic)
    # transformers' scaled size may be a pixel less than ours, which moves its windows.
    long = max(map(int, get_size_with_aspect_ratio((height, width), options.pixels, None))) if semantic else 0
    offsets = [(0, s, s + options.pixels) for s in (window_starts(long, options.pixels) if semantic else [0])]
    outputs = SimpleNamespace(masks_queries_logits=masks, class_queries_logits=classes, patch_offsets=offsets)
    theirs = getattr(processor, f"post_process_{kind}_segmentation")
    return {
        "ours": {
            "semantic": lambda: semantic_segmentation(masks, classes, placement, size),
            "instance": lambda: instance_segmentation(masks[0], classes[0], placement, size),
            "panoptic": lambda: panoptic_segmentation(masks[0], classes[0], placement, size, is_thing),
        }[kind],
        "transformers": lambda: theirs(
            outputs, [(height, width)], **({"stuff_classes": stuff} if kind == "panoptic" else {})
        )[0],
    }


def differing_pixels(kind: str, ours: object, theirs: object) -> str:
    """The number of pixels with another class; "-" for instances, which transformers paints into one map."""
    if kind == "instance":
        return "-"
    own = torch.cat([ours.labels.new_full((1,), -1), ours.labels])[ours.ids.long()]
    if kind == "panoptic":
        table = torch.full((len(theirs["segments_info"]) + 1,), -1, device=own.device)
        for segment in theirs["segments_info"]:
            table[segment["id"]] = segment["label_id"]
        # No segment is -1 there: the table's last entry.
        theirs = table[theirs["segmentation"].to(own.device).long()]
    return str(int((own != theirs).sum()))


def compare_post_processing(options: argparse.Namespace) -> None:
    """Print a row per image size and number of kept queries."""
    device, kind = torch.device(options.device), options.postprocess
    print(f"{kind}, {options.queries} queries, {options.device}, {options.threads} threads\n")
    print("| image | kept | ours, ms | transformers, ms | ratio | pixels that differ |\n|---|---|---|---|---|---|")
    for shape in options.shapes:
        for kept in sorted({min(kept, options.queries) for kept in (0, 20, 60, 200)}):
            sides = post_processing(options, kept, *map(int, shape.split("x")))
            differ = differing_pixels(kind, *(run() for run in sides.values()))
            a, b = (1e3 * took for took in interleaved(sides, device, options.rounds).values())
            print(f"| {shape} | {kept} | {a:.2f} | {b:.1f} | {b / a:.1f} | {differ} |", flush=True)


def compare_weights(size: str, pixels: int = 160) -> None:
    """Print the differences of logits for a published size with all parameters random; giant takes 14 GB."""
    network = our_network(size, pixels, 200).eval()
    theirs = huggingface_network(network).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "norm" in name and name.endswith("weight"):
                parameter.normal_(mean=1, std=0.2)
            elif parameter.ndim == 1 or any(word in name for word in ("token", "position", "query")):
                parameter.normal_(std=0.2)
            else:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
        theirs.attn_mask_probs.zero_()
    weights, spec = from_huggingface(theirs.state_dict(), theirs.config.to_dict())
    assert spec == network.spec, f"{size}: read as {spec}"
    network.load_state_dict(weights)
    images = torch.rand(1, 3, pixels, pixels)
    cells = []
    for model in (theirs, huggingface_network(network).eval()):
        model.attn_mask_probs.zero_()
        with torch.no_grad():
            ours, output = network(images)[-1].logits(), run_model(model, network, images)
        cells += [f"{(a - b).abs().max():.1e}" for a, b in zip(ours, output, strict=True)]
    print(f"| {size} | {' | '.join(cells)} | {ours[0].abs().max():.1f}, {ours[1].abs().max():.1f} |", flush=True)


def run_model(model: nn.Module, network: EoMT, images: Tensor) -> tuple[Tensor, Tensor]:
    """Mask and class logits by transformers, from images in 0..1."""
    output = model(pixel_values=(images - network.pixel_mean) / network.pixel_std)
    return output.masks_queries_logits, output.class_queries_logits


def main() -> None:
    """Run the chosen measurement."""
    parser = shared_parser(__doc__, rounds=3)
    parser.add_argument("--images", help="a folder; default synthetic files of COCO's usual sizes")
    parser.add_argument("--kept", type=int, default=40, help="queries that score a class highly")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--workers", type=int, default=2, help="threads that read images ahead, ours")
    parser.add_argument("--postprocess", choices=("panoptic", "semantic", "instance"))
    parser.add_argument("--classes", type=int, default=NUM_CLASSES, help="for --postprocess")
    parser.add_argument("--shapes", nargs="+", default=["480x640", "375x500"], help="height x width of its images")
    parser.add_argument("--memory", action="store_true", help="its peak memory, in place of times")
    parser.add_argument("--huggingface", nargs="*", choices=SIZES, metavar="SIZE", help="compare logits; default all")
    parser.add_argument("--side", action="store_true", help="measure the memory and print JSON")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.huggingface is not None:
        print(
            "| size | read: masks | classes | exported: masks | classes | largest logits |\n|---|---|---|---|---|---|"
        )
        for size in options.huggingface or [name for name in SIZES if name != "tiny"]:
            compare_weights(size)
    elif options.side:
        run = post_processing(options, min(options.kept, options.queries), *map(int, options.shapes[-1].split("x")))[
            "ours"
        ]
        print(json.dumps({"mib": peak_of(run, torch.device(options.device))}))
    elif options.memory:
        for shape in options.shapes:
            print(f"{options.postprocess} {shape}: {child('--side', '--shapes', shape)['mib']:.0f} MiB", flush=True)
    elif options.postprocess:
        torch.set_grad_enabled(False)
        compare_post_processing(options)
    else:
        with tempfile.TemporaryDirectory() as folder:
            count = max(options.batch)
            paths = (
                find_images(options.images, folder)[1][:count]
                if options.images
                else synthetic_images(Path(folder), count)
            )
            print(
                f"{describe(options)}, {options.kept} kept\n\n| | batch | ours, ms per image | transformers |", end=""
            )
            print(" ratio | limit of the arithmetic, ms |\n|---|---|---|---|---|---|", flush=True)
            for batch in options.batch:
                from_files(options, paths, batch)


if __name__ == "__main__":
    main()
