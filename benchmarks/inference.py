"""From image files to panoptic segments, ours beside transformers', with the same random weights.

    python benchmarks/inference.py                                     # ViT-S at 640, batch 1 and 16, made-up images
    python benchmarks/inference.py --images FOLDER --size large --device cuda --precision bf16 --compile --rounds 10

Ours: `Segmenter` from paths to answers on the host, with and without padding. Theirs: PIL, the image processor, the
model, `post_process_panoptic_segmentation`, labels on the host. The network alone is a row of its own. Random networks
are sure of nothing: class logits are scaled, and that of no object shifted, until `--kept` queries take part. Ratios
are of medians of interleaved rounds. FLOPs are those of matrix products, convolutions and attention (2 per
multiplication and addition) in the padded network, by formula; the limit is what they take at the rate of a large
matrix product on the same machine. Needs `eomt[hf]`.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from common import (
    NUM_CLASSES,
    PRECISIONS,
    SIZES,
    autocast,
    huggingface_network,
    interleaved,
    matmul_rate,
    network_flops,
    our_network,
)
from PIL import Image
from transformers import EomtImageProcessor

from eomt.classes import Classes
from eomt.inference.predict_files import find_images
from eomt.inference.segmenter import Segmenter
from eomt.tasks import task_of

CLASSES = Classes.from_categories([{"id": k, "name": str(k), "isthing": int(k < 80)} for k in range(NUM_CLASSES)])
STUFF = list(range(80, NUM_CLASSES))


def made_up_images(folder: Path, count: int) -> list[Path]:
    """JPEG files of COCO's usual sizes, smooth with some noise."""
    random, paths = np.random.default_rng(0), []
    for k in range(count):
        width, height = ((640, 480), (640, 427), (480, 640), (500, 375))[k % 4]
        coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        pixels = np.array(coarse.resize((width, height), Image.Resampling.BICUBIC)) / 1.2
        paths.append(folder / f"{k:03d}.jpg")
        Image.fromarray((pixels + random.integers(0, 30, (height, width, 1))).astype(np.uint8)).save(
            paths[-1], quality=90
        )
    return paths


@torch.no_grad()
def make_sure(network, path: Path, kept: int) -> None:
    """Scale the heads of a random network so that about `kept` queries are sure of a class, and masks have edges."""
    segmenter = Segmenter(network, task_of("panoptic"), CLASSES, "cpu")
    inputs, _ = segmenter.task.geometry.prepare(Image.open(path), network.image_size)
    output = network(inputs)[-1].logits()
    factor = 60 / output.class_logits.std()
    network.class_head.weight *= factor
    network.class_head.bias *= factor
    logits = output.class_logits[0] * factor
    margin = (logits[:, :-1].amax(1) - logits[:, -1]).sort().values
    if kept < len(margin):
        network.class_head.bias[-1] += margin[len(margin) - kept - 1 : len(margin) - kept + 1].mean()
    else:
        network.class_head.bias[-1] -= 1000
    network.mask_head[-1].weight *= 5 / output.mask_logits.std()
    network.mask_head[-1].bias *= 5 / output.mask_logits.std()


def measure(options, paths: list[Path], batch: int) -> None:
    device, dtype = torch.device(options.device), PRECISIONS[options.precision]
    network = our_network(options.size, options.pixels, options.queries).eval()
    make_sure(network, paths[0], options.kept)
    flops = network_flops(network, options.pixels)
    model = huggingface_network(network).to(device).eval()
    model.attn_mask_probs.zero_()
    twin = our_network(options.size, options.pixels, options.queries)
    twin.load_state_dict(network.state_dict())
    precision = {"fp32": "32", "fp16": "16"}.get(options.precision, options.precision)
    ours, unpadded = (
        Segmenter(one, task_of("panoptic"), CLASSES, device, precision, unpadded=flag)
        for one, flag in ((network, False), (twin, True))
    )
    processor = EomtImageProcessor(size={"shortest_edge": options.pixels, "longest_edge": options.pixels}, do_pad=True)
    if options.compile:
        for one in (network, twin, model):
            one.compile()
    paths = (paths * -(-batch // len(paths)))[:batch]

    @torch.inference_mode()
    def theirs():
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
    pixels = torch.zeros(batch, 3, options.pixels, options.pixels, device=device)

    @torch.inference_mode()
    def our_network_alone():
        with autocast(device, dtype):
            return network(square)[-1].logits()

    @torch.inference_mode()
    def their_network_alone():
        with autocast(device, dtype):
            return model(pixel_values=pixels)

    took = interleaved(
        {
            "ours": lambda: ours(paths, batch, options.workers),
            "unpadded": lambda: unpadded(paths, batch, options.workers),
            "theirs": theirs,
            "our network": our_network_alone,
            "their network": their_network_alone,
        },
        device,
        options.rounds,
        3 if options.compile else 1,
    )
    limit = flops / matmul_rate(device, dtype)
    for name, own, peer in (
        ("file to segments", "ours", "theirs"),
        ("the same, unpadded", "unpadded", "theirs"),
        ("network alone", "our network", "their network"),
    ):
        a, b = (1e3 * took[side] / batch for side in (own, peer))
        print(f"| {name} | {batch} | {a:.1f} | {b:.1f} | {b / a:.2f} | {1e3 * limit:.1f} |", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", help="a folder; default made-up files of COCO's usual sizes")
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--pixels", type=int, default=640)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--kept", type=int, default=40, help="queries that are sure of a class")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32")
    parser.add_argument("--compile", action="store_true", help="both networks")
    parser.add_argument("--workers", type=int, default=2, help="threads that read images ahead, ours")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        count = max(options.batch)
        paths = (
            find_images(options.images, folder)[1][:count] if options.images else made_up_images(Path(folder), count)
        )
        print(
            f"ViT {options.size}, {options.pixels} pixels, {options.queries} queries, {options.kept} kept, "
            f"{options.device}, {options.precision}, {options.threads} threads{', compiled' * options.compile}\n"
        )
        print("| | batch | ours, ms per image | transformers, ms per image | ratio | limit of the arithmetic, ms |")
        print("|---|---|---|---|---|---|")
        for batch in options.batch:
            measure(options, paths, batch)


if __name__ == "__main__":
    main()
