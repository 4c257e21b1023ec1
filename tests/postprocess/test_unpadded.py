"""Inference without padding: only an image's own patches go through the network."""

import numpy as np
import pytest
import torch

from eomt.classes import Classes
from eomt.inference.segmenter import Segmenter
from eomt.loss.mask_classification import MaskClassificationLoss
from eomt.model.eomt import EoMT
from eomt.postprocess.geometry import Placement, fit_and_pad, run_unpadded
from eomt.tasks import task_of
from eomt.training.annealing import Annealing
from eomt.training.module import EoMTModule

CLASSES = Classes.from_categories([{"id": 1, "name": "cup"}, {"id": 2, "name": "sky", "isthing": 0}])
BACKBONES = {
    "learned": ("vit_small_patch14_reg4_dinov2", {"embed_dim": 32, "depth": 2, "num_heads": 2}),
    "with prefix": ("vit_small_patch16_224", {"embed_dim": 32, "depth": 2, "num_heads": 2}),
    "rotary": ("vit_small_patch16_dinov3_qkvb", {"embed_dim": 32, "depth": 2, "num_heads": 2}),
}


def network_of(name):
    torch.manual_seed(0)
    backbone, options = BACKBONES[name]
    network = EoMT(backbone, 64, len(CLASSES), 5, 1, 8, options).eval()
    with torch.no_grad():
        if network.backbone.vit.pos_embed is not None:
            network.backbone.vit.pos_embed.normal_()
        network.class_head.weight.mul_(40)
    return network


def random_image(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def inputs_of(*shapes):
    made = [fit_and_pad(random_image(*shape, seed), (64, 64)) for seed, shape in enumerate(shapes)]
    return torch.stack([image for image, _ in made]), [placement for _, placement in made]


@pytest.mark.parametrize("name", BACKBONES)
@torch.no_grad()
def test_each_image_goes_alone_with_those_of_its_size(name):
    network = network_of(name).double()
    network.backbone.crop_position = True
    inputs, placements = inputs_of((64, 64), (64, 30), (33, 64), (64, 27), (64, 32), (1, 300))
    taken, places = [], []

    def run(images, index):
        taken.append(tuple(images.shape))
        places.extend(index.tolist())
        return network(images)[-1].logits()

    masks, classes = run_unpadded(run, inputs, placements, 8, at_once=2)
    assert taken == [(1, 3, 64, 64), (2, 3, 64, 32), (1, 3, 64, 32), (1, 3, 40, 64), (1, 3, 8, 64)]
    assert places == [0, 1, 3, 4, 2, 5]
    side = masks.shape[-1]
    assert masks.shape == (6, 5, side, side)
    for k, (rows, columns) in enumerate([(64, 64), (64, 32), (40, 64), (64, 32), (64, 32), (8, 64)]):
        alone = network(inputs[k : k + 1, :, :rows, :columns])[-1].logits()
        below, beside = rows * side // 64, columns * side // 64
        assert torch.allclose(masks[k, :, :below, :beside], alone.mask_logits[0], atol=1e-9)
        assert torch.allclose(classes[k], alone.class_logits[0], atol=1e-9)
        # Beyond its end a mask continues: bilinear resizing sees no edge.
        assert torch.equal(
            masks[k, :, below:, :beside], masks[k, :, below - 1 : below, :beside].expand(-1, side - below, -1)
        )
        assert torch.equal(masks[k, :, :, beside:], masks[k, :, :, beside - 1 : beside].expand(-1, -1, side - beside))


@pytest.mark.parametrize("kind", ["semantic", "instance", "panoptic"])
def test_images_that_fill_the_input_have_the_same_results(kind):
    options = {"score_threshold": 0.0, "overlap_threshold": 0.0} if kind == "panoptic" else {}
    results = {}
    images = [random_image(64, 64), random_image(100, 100, 1)] + (
        [random_image(90, 40, 2)] if kind == "semantic" else []
    )
    for unpadded in (False, True):
        segmenter = Segmenter(network_of("learned"), task_of(kind, options), CLASSES, "cpu", unpadded=unpadded)
        results[unpadded] = segmenter(images)
    for one, other in zip(results[False], results[True], strict=True):
        assert len(one) > 0
        assert np.array_equal(one.map, other.map)
        assert np.array_equal(one.scores, other.scores)


def test_fewer_patches_go_through_the_network():
    network = network_of("learned")
    tokens = []
    network.backbone.vit.norm_pre.register_forward_hook(lambda module, args, output: tokens.append(output.shape[1]))
    task = task_of("panoptic", {"score_threshold": 0.0})
    for unpadded in (False, True):
        Segmenter(network, task, CLASSES, "cpu", unpadded=unpadded)(random_image(60, 120))
    prefix = network.backbone.num_prefix_tokens
    assert tokens == [prefix + 64, prefix + 32]


@pytest.mark.parametrize("masked", [False, True])
@torch.no_grad()
def test_validation_takes_the_same_option(masked):
    network = network_of("learned")
    annealing = Annealing([(0.0, 1.0)]) if masked else None
    task = task_of("panoptic")
    module = EoMTModule(
        network, task, CLASSES, MaskClassificationLoss(), annealing, validate_masked=masked, unpadded=True
    )
    assert network.backbone.crop_position
    inputs, placements = inputs_of((64, 64), (64, 30), (33, 64))
    drops = torch.zeros(1, 3, 5, dtype=torch.bool) if masked else None
    found = module.predict_inputs(inputs, placements, (1, 1, 1), [(0, k) for k in range(3)])
    for k, (rows, columns) in enumerate([(64, 64), (64, 32), (40, 64)]):
        own = None if drops is None else drops[:, k : k + 1]
        alone = network(inputs[k : k + 1, :, :rows, :columns], own)[-1].logits()
        assert torch.allclose(found.class_logits[k], alone.class_logits[0], atol=1e-5)


@torch.no_grad()
def test_windows_have_no_padding():
    network = network_of("learned")
    inputs = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    placement = Placement(64, 100, 64, 100)

    def run(images, index=None):
        return network(images)[-1].logits()

    output = run_unpadded(run, inputs, [placement] * 2, 8, 2)
    for one, other in zip(output, run(inputs), strict=True):
        assert torch.equal(one, other)
