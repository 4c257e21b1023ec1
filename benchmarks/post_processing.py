"""Post-processing, ours beside transformers', on the same logits: 200 queries to labels of every pixel.

    python benchmarks/post_processing.py                              # panoptic, 640x480 and 500x375
    python benchmarks/post_processing.py --device cuda --rounds 20
    python benchmarks/post_processing.py --task semantic --queries 100 --pixels 512 --classes 150

Masks are ellipses with some noise, as a trained network gives them, or (--masks noise) independent logits, the worst
case: every query has pixels everywhere. Of the queries, `--kept` are sure of a class; the others see no object. Ratios
are of medians of interleaved rounds. The limit is what memory allows: the bytes of the kept masks at stride 4, read
once, and of the labels, written once, at the rate of a large copy on the same machine. Neither side is compiled:
shapes depend on values. Needs `eomt[hf]`.
"""

import argparse
from types import SimpleNamespace

import torch
from common import interleaved
from transformers import EomtImageProcessor
from transformers.models.eomt.image_processing_eomt import get_size_with_aspect_ratio

from eomt.postprocess.geometry import Placement, cover_size, fit_size, window_starts
from eomt.postprocess.instance import instance_segmentation
from eomt.postprocess.panoptic import panoptic_segmentation
from eomt.postprocess.semantic import semantic_segmentation


def random_logits(options, kept: int, windows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Mask logits [N, Q, p/4, p/4] and class logits [N, Q, C + 1] of one image."""
    generator = torch.Generator().manual_seed(0)
    side, queries = options.pixels // 4, options.queries
    noise = torch.randn(windows, queries, side, side, generator=generator)
    if options.masks == "noise":
        masks = noise * 4 - 2
    else:
        axis = torch.arange(side) + 0.5
        y, x, a, b = (torch.rand(windows, queries, 1, 1, generator=generator) for _ in range(4))
        radius = side * (0.02 + 0.3 * a**2)
        distance = ((axis[:, None] - y * side * 0.75) / radius) ** 2 + ((axis - x * side) / radius / (b + 0.5)) ** 2
        masks = ((1 - distance.sqrt()) * radius).clamp(-12, 8) + noise / 2
    classes = torch.randn(windows, queries, options.classes + 1, generator=generator)
    sure = torch.arange(kept)
    classes[:, sure, sure % options.classes] = 9 + 3 * torch.rand(windows, kept, generator=generator)
    classes[:, kept:, -1] = 12
    return masks, classes


def sides(options, kept: int, height: int, width: int):
    """The device, functions that return our answer and theirs, and the bytes that must be read and written."""
    device, size = torch.device(options.device), (options.pixels, options.pixels)
    semantic = options.task == "semantic"
    placement = Placement(height, width, *(cover_size if semantic else fit_size)(height, width, size))
    starts = window_starts(max(placement[2:]), options.pixels) if semantic else [0]
    # Their scaled size may be a pixel less than ours: windows of the same number, a pixel further to the left.
    long = max(map(int, get_size_with_aspect_ratio((height, width), options.pixels, None))) if semantic else 0
    masks, classes = (part.to(device) for part in random_logits(options, kept, len(starts)))
    is_thing = torch.arange(options.classes) < options.classes * 0.6
    stuff = (~is_thing).nonzero()[:, 0].tolist()
    edges = {"shortest_edge": options.pixels, "longest_edge": None if semantic else options.pixels}
    processor = EomtImageProcessor(size=edges, do_pad=not semantic, do_split_image=semantic)
    begins = window_starts(long, options.pixels) if semantic else [0]
    offsets = [(0, start, start + options.pixels) for start in begins]
    outputs = SimpleNamespace(masks_queries_logits=masks, class_queries_logits=classes, patch_offsets=offsets)
    target = [(height, width)]

    def ours():
        if semantic:
            return semantic_segmentation(masks, classes, placement, size)
        if options.task == "instance":
            return instance_segmentation(masks[0], classes[0], placement, size)
        return panoptic_segmentation(masks[0], classes[0], placement, size, is_thing)

    def theirs():
        if semantic:
            return processor.post_process_semantic_segmentation(outputs, target)[0]
        if options.task == "instance":
            return processor.post_process_instance_segmentation(outputs, target)[0]
        return processor.post_process_panoptic_segmentation(outputs, target, stuff_classes=stuff)[0]

    read = masks.numel() if semantic else masks[0, 0].numel() * kept
    return device, ours, theirs, 4 * (read + height * width)


def label_maps(ours, theirs) -> tuple[torch.Tensor, torch.Tensor]:
    """The class of each pixel, -1 where there is none."""
    own = torch.cat([ours.labels.new_full((1,), -1), ours.labels])[ours.ids.long()]
    if isinstance(theirs, torch.Tensor):
        return own, theirs
    table = torch.full((len(theirs["segments_info"]) + 1,), -1, device=own.device)
    for segment in theirs["segments_info"]:
        table[segment["id"]] = segment["label_id"]
    # Theirs has -1 for no segment: the table's last entry.
    return own, table[theirs["segmentation"].to(own.device).long()]


def bandwidth(device: torch.device) -> float:
    """Bytes per second, read and written, of a large copy."""
    source = torch.ones(2**26, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / interleaved({"": lambda: target.copy_(source)}, device, 5)[""]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--task", choices=("panoptic", "semantic", "instance"), default="panoptic")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--classes", type=int, default=133)
    parser.add_argument("--kept", type=int, nargs="+", default=[0, 20, 60, 200])
    parser.add_argument("--shapes", nargs="+", default=["480x640", "375x500"], help="of images, height x width")
    parser.add_argument("--pixels", type=int, default=640, help="side of the network's input")
    parser.add_argument("--masks", choices=("objects", "noise"), default="objects")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_grad_enabled(False)
    print(f"{options.task}, {options.queries} queries, {options.masks}, {options.device}, {options.threads} threads\n")
    print("| image | kept | ours, ms | transformers, ms | ratio | limit, ms | pixels that differ |")
    print("|---|---|---|---|---|---|---|")
    rate = bandwidth(torch.device(options.device))
    for shape in options.shapes:
        height, width = map(int, shape.split("x"))
        for kept in sorted({min(kept, options.queries) for kept in options.kept}):
            device, ours, theirs, limit = sides(options, kept, height, width)
            differ = "-"
            if options.task != "instance":  # theirs paints instances into one map
                one, other = label_maps(ours(), theirs())
                differ = f"{int((one != other).sum())}"
            took = interleaved({"ours": ours, "theirs": theirs}, device, options.rounds)
            a, b = took["ours"], took["theirs"]
            row = (shape, kept, f"{1e3 * a:.2f}", f"{1e3 * b:.1f}", f"{b / a:.1f}", f"{1e3 * limit / rate:.2f}", differ)
            print("|", " | ".join(map(str, row)), "|", flush=True)


if __name__ == "__main__":
    main()
