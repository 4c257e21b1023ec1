"""Where the time of one training step and of one prediction goes.

    python benchmarks/profile_step.py --out profile                         # ViT-S at 640 on this machine
    python benchmarks/profile_step.py --device cuda --size large --batch 8 --precision bf16 --compile --out profile

Prints a table of the operations that take the most time, and writes traces for chrome://tracing or Perfetto into the
folder: `training_step.json.gz` and `prediction.json.gz`. A prediction is the mask-free network and the panoptic
post-processing of one image.
"""

import argparse
from pathlib import Path

import torch
from common import PRECISIONS, SIZES, autocast, our_network, our_step, random_batch, synchronise
from torch.profiler import ProfilerActivity, profile

from eomt.loss.mask_classification import MaskClassificationLoss
from eomt.postprocess.geometry import Placement
from eomt.postprocess.panoptic import panoptic_segmentation


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--pixels", type=int, default=640)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--targets", type=int, default=20)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    parser.add_argument("--out", default="profile")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_float32_matmul_precision("medium")
    device, dtype = torch.device(options.device), PRECISIONS[options.precision]
    network = our_network(options.size, options.pixels, options.queries).to(device)
    loss, batch = MaskClassificationLoss(), random_batch(options.batch, options.pixels, options.targets, device)
    if options.compile:
        network.compile()
    things = torch.arange(network.num_classes, device=device) < 80
    side = options.pixels
    placement = Placement(side * 3 // 4, side, side * 3 // 4, side)

    def train() -> None:
        our_step(network.train(), loss, batch, dtype)

    @torch.inference_mode()
    def predict() -> None:
        with autocast(device, dtype):
            output = network.eval()(batch.images[:1])[-1].logits()
        panoptic_segmentation(
            output.mask_logits[0].float(), output.class_logits[0].float(), placement, (side, side), things
        )

    Path(options.out).mkdir(parents=True, exist_ok=True)
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    for name, run in (("training_step", train), ("prediction", predict)):
        for _ in range(3 if device.type == "cuda" else 1):
            run()
        synchronise(device)
        with profile(activities=kinds, record_shapes=True) as profiler:
            run()
            synchronise(device)
        order = f"self_{'cuda' if device.type == 'cuda' else 'cpu'}_time_total"
        events = profiler.key_averages()
        times = {e.key: getattr(e, order.replace("cuda", "device")) for e in events}
        total = sum(times.values())
        print(f"\n{name}: {total / 1e3:.0f} ms of {device.type} time\n")
        print("| operation | ms | share | calls |\n|---|---|---|---|")
        for event in sorted(events, key=lambda e: -times[e.key])[:15]:
            taken = times[event.key]
            print(f"| {event.key} | {taken / 1e3:.1f} | {taken / total:.0%} | {event.count} |")
        profiler.export_chrome_trace(str(Path(options.out) / f"{name}.json.gz"))


if __name__ == "__main__":
    main()
