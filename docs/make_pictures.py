"""Make the pictures of the documentation, with a network that is trained here on the built-in shapes.

python docs/make_pictures.py                       trains 600 steps, three minutes on one core; writes docs/pictures/
python docs/make_pictures.py RUN/checkpoints/best.ckpt    takes a network of `python train.py`
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

sys.path.insert(0, str(Path(__file__).parents[1]))

from datasets.readers.coco import CocoPanoptic
from datasets.shapes.dataset import ensure_shapes
from eomt import Segmenter
from eomt.model.outputs import QueryOutput
from eomt.postprocess.draw import contact_sheet, draw_segments, side_by_side
from eomt.training.annealing import complete_windows, mask_probability, resolve_windows
from eomt.training.seeding import draw_dropped_masks

ROOT = Path(__file__).parents[1]
OUT = ROOT / "docs" / "pictures"
STEPS = 600
SHOWN = (3, 18)  # images of the validation set
EXPLAINED = 3  # the image whose attention masks are drawn
COLORS = ("#1b6ca8", "#d1495b", "#66a182", "#edae49")


def train(folder: Path) -> Path:
    """Train the built-in panoptic task; the checkpoint of its end."""
    settings = {"hydra.run.dir": folder, "trainer.max_steps": STEPS, "trainer.max_epochs": "null"}
    settings |= {"trainer.check_val_every_n_epoch": "null", "trainer.val_check_interval": STEPS}
    command = [sys.executable, str(ROOT / "train.py"), *(f"{key}={value}" for key, value in settings.items())]
    # One order of sums, whatever the machine.
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return folder / "checkpoints" / "last.ckpt"


def predictions(segmenter: Segmenter, reader: CocoPanoptic) -> np.ndarray:
    """Images beside ground truth and prediction."""
    rows = []
    for index in SHOWN:
        image, targets = reader.read(index)
        truth = draw_segments(image, targets.ids[0], targets.labels, reader.classes)
        found = np.array(segmenter(image).picture())
        rows.append(side_by_side(image, [("ground truth", truth), (f"EoMT after {STEPS} steps", found)]))
    return contact_sheet(rows)


def attention(segmenter: Segmenter, image: np.ndarray, things: int = 3, stuff: int = 1) -> np.ndarray:
    """The attention masks of the surest queries in each masked block, and the masks that they predict."""
    inputs, outputs, grid = all_outputs(segmenter, image)
    shown = inputs[0].permute(1, 2, 0).numpy().repeat(2, axis=0).repeat(2, axis=1)
    score, label = outputs[-1].class_logits[0].softmax(-1)[:, :-1].max(1)
    is_thing = torch.tensor(segmenter.classes.is_thing)[label]
    surest = score.argsort(descending=True)
    chosen = [*surest[is_thing[surest]][:things].tolist(), *surest[~is_thing[surest]][:stuff].tolist()]
    first = len(segmenter.network.backbone.blocks) - segmenter.network.num_masked_blocks
    rows = []
    for query in chosen:
        masks = {f"block {first + k + 1} may look here": part.masks_on(grid) for k, part in enumerate(outputs[:-1])}
        masks["predicted mask"] = outputs[-1].masks_on(inputs.shape[-2:])
        tiles = [(title, dimmed(shown, mask[0, query] > 0)) for title, mask in masks.items()]
        rows.append(side_by_side(shown, tiles, f"query {query}: {segmenter.classes[label[query]].name}"))
    return contact_sheet(rows)


def dropping(segmenter: Segmenter, image: np.ndarray) -> np.ndarray:
    """All queries' attention masks in the first masked block as their probability falls, a row each."""
    _, outputs, grid = all_outputs(segmenter, image)
    masks = outputs[0].masks_on(grid)[0] > 0
    rows = []
    for probability in (1.0, 0.75, 0.5, 0.25, 0.0):
        dropped = draw_dropped_masks(0, [(0, 0)], [probability], len(masks))[0, 0]
        tiles = np.where(masks | dropped[:, None, None], 255, 60).astype(np.uint8)
        tiles = np.pad(tiles.repeat(3, axis=1).repeat(3, axis=2), ((0, 0), (2, 2), (2, 2)), constant_values=150)
        label = Image.new("L", (60, tiles.shape[1]), "white")
        font = ImageFont.load_default(14)
        ImageDraw.Draw(label).text((52, tiles.shape[1] / 2), f"{probability:.0%}", font=font, fill=0, anchor="rm")
        rows.append(np.pad(np.concatenate([np.array(label), *tiles], axis=1), ((0, 6), (0, 0)), constant_values=255))
    return np.repeat(np.concatenate(rows)[..., None], 3, axis=2)


def probabilities() -> np.ndarray:
    """The probability of each block's attention mask over a run of EoMT-L, DINOv2 and DINOv3."""
    steps = 12 * 7391  # 12 epochs of COCO panoptic
    figure = Figure(figsize=(8, 2.6), dpi=110, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    for position, (title, given) in enumerate({"DINOv2": "auto", "DINOv3": [[0, 3000], "auto"]}.items(), start=1):
        axes = figure.add_subplot(1, 2, position)
        windows = resolve_windows(complete_windows(given, 4), steps)
        at = np.linspace(0, steps, 400)
        for block, (window, color) in enumerate(zip(windows, COLORS, strict=True), start=21):
            axes.plot(at, [mask_probability(step, *window) for step in at], color=color, label=f"block {block} of 24")
        axes.set_title(f"EoMT-L, {title}", fontsize=10)
        axes.set_xlabel("optimizer step", fontsize=9)
        axes.set_ylabel("probability of the mask", fontsize=9)
        axes.tick_params(labelsize=8)
        axes.legend(fontsize=7)
        axes.grid(alpha=0.3)
    canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3]


@torch.inference_mode()
def all_outputs(segmenter: Segmenter, image: np.ndarray) -> tuple[torch.Tensor, list[QueryOutput], tuple[int, int]]:
    """The network's input, its predictions before each masked block and after the last, and the grid of its patches.

    All masks are dropped, as at the end of the training: the predictions are what would mask the blocks.
    """
    network = segmenter.network
    height, width = network.image_size
    inputs, _ = segmenter.task.geometry.prepare(image, network.image_size)
    dropped = torch.ones(network.num_masked_blocks, 1, network.num_queries, dtype=torch.bool)
    patch = network.backbone.patch_size
    return inputs, network(inputs, dropped), (height // patch, width // patch)


def dimmed(image: np.ndarray, mask: torch.Tensor) -> np.ndarray:
    """The image, dark where a mask of any grid is False."""
    size = image.shape[1], image.shape[0]
    inside = np.array(Image.fromarray(mask.numpy()).resize(size, Image.Resampling.NEAREST))
    return np.where(inside[..., None], image, image // 5)


def save(picture: np.ndarray, name: str) -> None:
    """Save with 128 colours: a third of the bytes."""
    Image.fromarray(picture).quantize(128, dither=Image.Dither.NONE).save(OUT / name, optimize=True)


def main(checkpoint: Path) -> None:
    torch.set_num_threads(1)
    segmenter = Segmenter.load(checkpoint, device="cpu")
    reader = CocoPanoptic(ensure_shapes(), "val")
    image, _ = reader.read(EXPLAINED)
    OUT.mkdir(exist_ok=True)
    save(predictions(segmenter, reader), "predictions.png")
    save(attention(segmenter, image), "attention.png")
    save(dropping(segmenter, image), "dropping.png")
    save(probabilities(), "annealing.png")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(Path(sys.argv[1]) if len(sys.argv) > 1 else train(Path(folder)))
