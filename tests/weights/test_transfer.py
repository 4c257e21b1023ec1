"""Weights of one network in another: what is taken, resized, new, and what is refused."""

import copy

import pytest
import torch

from eomt.classes import Classes
from eomt.errors import InputError
from eomt.model.eomt import EoMT
from eomt.weights.spec import Weights
from eomt.weights.transfer import Transfer, table, transfer
from tests.weights.sources import assert_equal

CATEGORIES = [{"id": 1, "name": "cat"}, {"id": 7, "name": "dog"}, {"id": 9, "name": "sky", "isthing": 0}]
CLASSES = Classes.from_categories(CATEGORIES)
OPTIONS = {"embed_dim": 32, "depth": 3, "num_heads": 2}


def network(seed, **changes):
    torch.manual_seed(seed)
    spec = {
        "backbone": "vit_small_patch14_reg4_dinov2",
        "image_size": 32,
        "num_classes": 3,
        "num_queries": 6,
        "num_masked_blocks": 2,
        "patch_size": 8,
        "backbone_options": OPTIONS,
    }
    net = EoMT(**(spec | changes)).eval()
    for parameter in net.parameters():
        parameter.data.normal_(0, 0.1)
    return net


def weights_of(net, classes=CLASSES):
    return Weights("a test", net.state_dict(), net.spec, classes=classes)


def outcomes(rows):
    return {row.part: row.outcome for row in rows}


def test_the_same_network_is_loaded_as_it_is():
    source, target = network(0), network(1)
    rows = transfer(target, CLASSES, weights_of(source), strict=True)
    assert set(outcomes(rows).values()) == {"loaded"}
    assert_equal(target.state_dict(), source.state_dict())


@pytest.mark.parametrize(
    ("trained", "reason"),
    [
        ([{"id": 1, "name": "cow"}, *CATEGORIES[1:]], "the classes are others"),
        ([*CATEGORIES[:2], CATEGORIES[2] | {"isthing": 1}], "the classes are others"),
        (CATEGORIES[:2], "the classes are others"),
        (None, "the weights do not name their classes"),
    ],
)
def test_other_classes_take_a_new_class_head(trained, reason):
    source, target = network(0, num_classes=len(trained or CLASSES)), network(1)
    before = target.class_head.weight.clone()
    rows = transfer(target, CLASSES, weights_of(source, trained and Classes.from_categories(trained)))
    assert Transfer("class_head", "new", reason) in rows
    assert set(outcomes(rows).values()) == {"loaded", "new"}
    assert torch.equal(target.class_head.weight, before)
    assert torch.equal(target.queries, source.queries)


def test_ids_and_colours_of_classes_do_not_matter():
    renumbered = Classes.from_categories([c | {"id": c["id"] + 5, "color": [1, 2, 3]} for c in CATEGORIES])
    rows = transfer(network(1), renumbered, weights_of(network(0)))
    assert outcomes(rows)["class_head"] == "loaded"


def test_queries_are_cut_or_extended():
    source = network(0)
    fewer, more = network(1, num_queries=4), network(2, num_queries=9)
    rows = transfer(fewer, CLASSES, weights_of(source))
    assert Transfer("queries", "resized", "the first 4 of 6") in rows
    assert "queries                   resized   the first 4 of 6\n" in table(rows)
    assert torch.equal(fewer.queries, source.queries[:4])
    new = more.queries[6:].clone()
    rows = transfer(more, CLASSES, weights_of(source))
    assert Transfer("queries", "resized", "3 more at random") in rows
    assert torch.equal(more.queries[:6], source.queries)
    assert torch.equal(more.queries[6:], new)


def test_another_image_size_gives_what_the_source_gives_at_that_size():
    """The source resamples its position embedding on the fly by the same rule."""
    source, target = network(0), network(1, image_size=[48, 64])
    rows = transfer(target, CLASSES, weights_of(source))
    assert outcomes(rows)["backbone.vit.pos_embed"] == "resized"
    assert [row.detail for row in rows if row.outcome == "resized"] == ["from 32x32 by 8 to 48x64 by 8 pixels"]
    image = torch.rand(1, 3, 48, 64)
    for ours, theirs in zip(target(image)[-1], source(image)[-1], strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_sizes_of_equally_many_patches_are_not_mistaken_for_each_other():
    source, target = network(0, image_size=[32, 64]), network(1, image_size=[64, 32])
    assert outcomes(transfer(target, CLASSES, weights_of(source)))["backbone.vit.pos_embed"] == "resized"
    assert not torch.equal(target.backbone.vit.pos_embed, source.backbone.vit.pos_embed)


def test_another_patch_size():
    source, target = network(0), network(1, image_size=64, patch_size=16)
    rows = transfer(target, CLASSES, weights_of(source))
    found = outcomes(rows)
    assert found["backbone.vit.patch_embed"] == "resized"
    assert found["backbone.vit.pos_embed"] == "loaded" or found["backbone.vit.pos_embed"] == "resized"
    # Patches of 16 pixels are upscaled twice, those of 8 once.
    assert found["upscale.0"] == "loaded"
    assert found["upscale.1"] == "new"
    back = transfer(network(2), CLASSES, weights_of(target))
    assert Transfer("upscale.1", "ignored", "the network has no such part") in back
    # Patches of 16 pixels see in the enlarged image the content of patches of 8.
    image = torch.rand(1, 3, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
    large = image.repeat_interleave(2, 2).repeat_interleave(2, 3)
    ours = target.backbone.vit.patch_embed.proj(large) - target.backbone.vit.patch_embed.proj.bias[:, None, None]
    theirs = source.backbone.vit.patch_embed.proj(image) - source.backbone.vit.patch_embed.proj.bias[:, None, None]
    assert torch.nn.functional.cosine_similarity(ours.flatten(), theirs.flatten(), dim=0) > 0.99


@pytest.mark.parametrize("options", [{"embed_dim": 48}, {"depth": 4}, {"depth": 2}])
def test_another_backbone_is_refused_in_one_line_and_nothing_is_written(options):
    target = network(1, backbone_options=OPTIONS | options)
    before = copy.deepcopy(target.state_dict())
    with pytest.raises(InputError, match=r"\Aweights= are of another backbone .* weights=null\Z"):
        transfer(target, CLASSES, weights_of(network(0)))
    assert_equal(target.state_dict(), before)


def test_strict_refuses_and_says_why():
    target = network(1, num_queries=4)
    before = target.queries.clone()
    with pytest.raises(InputError, match=r"strict=true: queries would be resized \(the first 4 of 6\)"):
        transfer(target, CLASSES, weights_of(network(0)), strict=True)
    assert torch.equal(target.queries, before)


def test_half_precision_becomes_single():
    source = network(0)
    half = {key: value.half() for key, value in source.state_dict().items()}
    target = network(1)
    transfer(target, CLASSES, Weights("half", half, source.spec, classes=CLASSES), strict=True)
    assert target.queries.dtype == torch.float32
    assert torch.equal(target.queries, source.queries.half().float())
