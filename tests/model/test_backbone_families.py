"""timm's plain ViTs, family by family: the published size builds, a small one learns, loads and is exported."""

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torchvision.transforms.functional import normalize

from eomt.errors import InputError
from eomt.export.export import export
from eomt.model.backbone import Backbone
from eomt.model.eomt import EoMT
from eomt.weights.load import read_weights
from eomt.weights.original import from_original, to_original
from eomt.weights.spec import check_state, network_of
from tests.export.exporting import weights_of
from tests.random_networks import published
from tests.running import composed
from tests.weights.sources import SEVEN, assert_equal

SMALL = {"embed_dim": 48, "depth": 3, "num_heads": 3}
# The gated MLP of DINOv2's giant has a ratio of its own.
FAMILIES = {
    "vit_small_patch14_dinov2": SMALL,
    "vit_giant_patch14_reg4_dinov2": {**SMALL, "embed_dim": 96},
    "vit_tiny_patch16_dinov3_qkvb": SMALL,
    "vit_small_plus_patch16_dinov3_qkvb": SMALL,
    "vit_huge_plus_patch16_dinov3_qkvb": SMALL,
    "vit_7b_patch16_dinov3": SMALL,
    "vit_base_patch16_siglip_512": SMALL,
    "vit_so400m_patch16_siglip_gap_512": SMALL,
    "vit_small_patch16_224": SMALL,
}


@pytest.mark.parametrize(("name", "options"), FAMILIES.items())
def test_a_family_builds_learns_and_is_exported(name, options, tmp_path):
    assert len(published(name, 3).backbone.blocks) >= 12
    torch.manual_seed(0)
    network = EoMT(name, 32, len(SEVEN), 6, 2, 16, options)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    before = {key: value.clone() for key, value in network.named_parameters()}
    outputs = network(torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8), torch.zeros(2, 2, 6, dtype=torch.bool))
    sum(part.square().mean() for output in outputs for part in output.logits()).backward()
    assert [key for key, value in network.named_parameters() if value.grad is None] == [], "ranks wait for these"
    optimizer.step()
    assert all(value.isfinite().all() for value in network.parameters())
    assert not torch.equal(network.queries, before["queries"])
    for format in ("eomt", "original") if "dino" in name else ("eomt",):
        export(weights_of(network.eval()), format, tmp_path / format)
        back = read_weights(tmp_path / format)
        assert back.network == network.spec
        assert_equal(back.state, network.state_dict())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit_7b_patch16_dinov3", "vit_so400m_patch16_siglip_gap_512"])
def test_its_graph_computes_the_same(name, tmp_path):
    torch.manual_seed(0)
    check = export(weights_of(EoMT(name, 32, len(SEVEN), 6, 2, 16, SMALL).eval()), "torch_export", tmp_path / "out")
    assert check.difference < 1e-4 * check.largest


@pytest.mark.parametrize("model", ["dinov3_huge_plus", "dinov3_7b"])
def test_models_without_a_recipe_are_known_by_their_shapes(model):
    cfg = composed("train", f"model={model}", "task=coco_panoptic", "data.root=DIR").model
    network = published(cfg.backbone, cfg.num_masked_blocks)
    state = from_original(to_original(network.state_dict(), network.spec))
    found = network_of(state)
    # The original's form has biases of queries and values, zeros here.
    assert found == network.spec | {"backbone_options": {} if "_qkvb" in cfg.backbone else {"qkv_bias": True}}
    check_state(state, found)


@pytest.mark.parametrize(
    "name", ["vit_tiny_patch16_224", "vit_base_patch16_siglip_512", "vit_tiny_patch16_dinov3_qkvb"]
)
def test_a_backbone_sees_the_pixels_that_it_was_trained_on(name, tmp_path):
    torch.manual_seed(0)
    options = {"img_size": 32, "num_classes": 0, **SMALL}
    source = timm.create_model(name, **options)
    save_file(source.state_dict(), tmp_path / "vit.safetensors")
    backbone = Backbone(name, (32, 32), 16, SMALL)
    backbone.load_pretrained(str(tmp_path / "vit.safetensors"))
    images = torch.rand(2, 3, 32, 32)
    theirs = source.patch_embed(normalize(images, source.pretrained_cfg["mean"], source.pretrained_cfg["std"]))
    ours = backbone.vit.patch_embed(normalize(images, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    if "dino" in name:
        assert torch.equal(backbone.vit.patch_embed.proj.weight, source.patch_embed.proj.weight)


@pytest.mark.parametrize("name", ["vit_base_patch16_xp_224", "vit_base_patch16_18x2_224", "vit_base_patch16_rpn_224"])
def test_blocks_of_another_kind_are_refused(name):
    with pytest.raises(InputError, match="is not a plain ViT"), torch.device("meta"):
        Backbone(name, (64, 64))
