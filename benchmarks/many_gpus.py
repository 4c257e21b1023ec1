"""On paper: how training would scale over many GPUs, and where it stops.

    python benchmarks/many_gpus.py                          # EoMT-L at 640, assumed rates
    python benchmarks/many_gpus.py --step-ms 180 --batch 2  # with a step that training_step.py measured

A model, not a measurement. A step computes forward and backward, and all-reduces the gradients in buckets while the
backward pass goes on: within a node over NVLink, between nodes each GPU over its own network card with an eighth of
the bytes (what NCCL does by rings or trees). What does not hide behind the backward pass, two thirds of the
computation, adds to the step; so does the last bucket, which nothing hides.

    all-reduce = 2 (g - 1) / g * bytes / NVLink + 2 (n - 1) / n * bytes / g / network + latency of each bucket's hops

for g GPUs in each of n nodes. The number of masks is averaged before the backward pass: one small all-reduce more. The
last column is how many cores per GPU decode and augment at the rate that benchmarks/data.py measures.
"""

import argparse
import math

from common import SIZES, our_network, step_flops

from eomt.errors import InputError


def all_reduce(num_bytes: float, gpus: int, options) -> tuple[float, float]:
    """Seconds of all gradients, and of the last bucket, over `gpus` GPUs."""
    inside, nodes = min(gpus, options.gpus_per_node), math.ceil(gpus / options.gpus_per_node)

    def seconds(size: float) -> float:
        nvlink = 2 * (inside - 1) / inside * size / (options.nvlink * 1e9)
        network = 2 * (nodes - 1) / nodes * size / inside / (options.network * 1e9)
        hops = 2 * math.log2(inside) * options.nvlink_us + 2 * math.log2(nodes) * options.network_us
        return nvlink + network + hops * 1e-6

    bucket = options.bucket_mib * 2**20
    buckets = math.ceil(num_bytes / bucket)
    return buckets * seconds(num_bytes / buckets), seconds(min(bucket, num_bytes))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", choices=SIZES, default="large")
    parser.add_argument("--pixels", type=int, default=640)
    parser.add_argument("--batch", type=int, default=2, help="images per GPU")
    parser.add_argument("--step-ms", type=float, help="measured on one GPU; default: FLOPs at --tflops")
    parser.add_argument(
        "--tflops", type=float, default=260, help="reached; 40 %% of what an H100's bf16 products reach"
    )
    parser.add_argument("--gpus-per-node", type=int, default=8)
    parser.add_argument("--nvlink", type=float, default=300, help="GB/s of a ring within a node")
    parser.add_argument("--network", type=float, default=45, help="GB/s of a GPU's network card, of 50 nominal")
    parser.add_argument("--nvlink-us", type=float, default=3, help="latency of a hop")
    parser.add_argument("--network-us", type=float, default=10, help="latency of a hop")
    parser.add_argument("--bucket-mib", type=float, default=25, help="DDP's")
    parser.add_argument("--images-per-core", type=float, default=130, help="a second, read and transformed")
    options = parser.parse_args()
    if options.batch < 1:
        raise InputError(f"--batch={options.batch} must be at least 1")
    network = our_network(options.size, options.pixels, 200)
    gradients = 4 * sum(p.numel() for p in network.parameters())
    flops = step_flops(network, options.batch, options.pixels, 12544, 10 * options.batch)
    compute = options.step_ms / 1e3 if options.step_ms else flops / options.tflops / 1e12
    source = "measured" if options.step_ms else f"{flops / 1e12:.1f} TFLOP at {options.tflops:.0f} TFLOP/s"
    print(
        f"EoMT {options.size} at {options.pixels}, {options.batch} images per GPU: {compute * 1e3:.1f} ms to compute "
        f"({source}), {gradients / 1e9:.2f} GB of float32 gradients\n"
    )
    print("| GPUs | global batch | all-reduce, ms | of it not hidden, ms | step, ms | efficiency | cores per GPU |")
    print("|---|---|---|---|---|---|---|")
    for gpus in (1, 8, 16, 64, 512):
        whole, last = all_reduce(gradients, gpus, options) if gpus > 1 else (0.0, 0.0)
        exposed = max(last, whole - compute * 2 / 3)
        step = compute + exposed
        print(
            f"| {gpus} | {gpus * options.batch} | {whole * 1e3:.1f} | {exposed * 1e3:.1f} | {step * 1e3:.1f} | "
            f"{compute / step:.0%} | {options.batch / step / options.images_per_core:.2f} |"
        )


if __name__ == "__main__":
    main()
