"""Low-rank changes of linear layers."""

import pytest
import torch
from torch import nn

from eomt.errors import InputError
from eomt.model.eomt import EoMT
from eomt.model.lora import LoRALinear, add_lora, merged


@pytest.mark.parametrize("backbone", ["vit_small_patch14_reg4_dinov2", "vit_small_patch16_dinov3_qkvb"])
def test_lora_is_a_change_of_the_weights(backbone):
    """Nothing at first; later what the merged weights give, also where biases are added from outside the layer."""
    torch.manual_seed(0)
    sizes = {"embed_dim": 48, "depth": 2, "num_heads": 3, "init_values": 1.0}
    network = EoMT(backbone, 32, 3, 4, 1, 8, sizes).double()
    images = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    drops = torch.zeros(1, 2, 4, dtype=torch.bool)
    before = network(images, drops)[-1].logits()
    add_lora(network.backbone.blocks, rank=3, alpha=6, seed=0)
    layers = [layer for layer in network.modules() if isinstance(layer, LoRALinear)]
    assert len(layers) == 2 * 4
    for one, other in zip(network(images, drops)[-1].logits(), before, strict=True):
        assert torch.equal(one, other)
    for layer in layers:
        nn.init.normal_(layer.lora_b, std=0.3)
    changed = network(images, drops)[-1].logits()
    plain = EoMT(backbone, 32, 3, 4, 1, 8, sizes).double()
    plain.load_state_dict(merged(network.state_dict(), {"rank": 3, "alpha": 6}))
    for one, other, first in zip(plain(images, drops)[-1].logits(), changed, before, strict=True):
        torch.testing.assert_close(one, other, atol=1e-10, rtol=0)
        assert not torch.allclose(one, first, atol=1e-3)


@pytest.mark.parametrize("lora", [None, {"rank": 0, "alpha": 1}, {"rank": 2}])
def test_lora_weights_without_their_scale_are_refused(lora):
    state = {"x.weight": torch.ones(2, 2), "x.lora_a": torch.ones(1, 2), "x.lora_b": torch.ones(2, 1)}
    with pytest.raises(InputError, match="the LoRA weights of x cannot be merged"):
        merged(state, lora)


def test_small_lora_weights_with_a_large_product_are_refused():
    """Before the product fills the memory."""
    state = {"x.weight": torch.ones(2, 2), "x.lora_a": torch.ones(1, 10**6), "x.lora_b": torch.ones(10**6, 1)}
    with pytest.raises(InputError, match=r"B A is \[1000000, 1000000\], the weight \[2, 2\]"):
        merged(state, {"rank": 1, "alpha": 1})
