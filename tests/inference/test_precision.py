"""Weights that are cast once give what autocast gives."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from eomt.inference.precision import with_cast_weights
from tests.random_networks import PUBLISHED, tiny

BACKBONES = sorted({name.replace("base", "small").replace("large", "small") for name, _ in PUBLISHED})


class CastTensors(TorchDispatchMode):
    """Collects the tensors that are cast to another type."""

    def __init__(self):
        super().__init__()
        self.found = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ == "_to_copy":
            self.found.add(args[0].data_ptr())
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_outputs_are_bit_equal_to_autocast_and_no_weight_is_cast(backbone, dtype):
    network = tiny(backbone)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    cast = with_cast_weights(network, dtype)
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    kinds = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)
    layers = {name: part for name, part in cast.named_modules() if isinstance(part, kinds)}
    uncast, casts = CastTensors(), CastTensors()
    with torch.no_grad(), torch.autocast("cpu", dtype):
        with uncast:
            expected = network(images)[-1].logits()
        with casts:
            found = cast(images)[-1].logits()
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    assert {network.get_submodule(name).weight.data_ptr() for name in layers if "blocks" in name} <= uncast.found
    assert not {p.data_ptr() for part in layers.values() for p in part.parameters(recurse=False)} & casts.found
    # The network itself stays as it was; all else is shared, not copied.
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    for name, value in cast.named_parameters():
        own = network.get_parameter(name)
        assert value.dtype == dtype if name.rpartition(".")[0] in layers else value is own
    assert cast.pixel_mean is network.pixel_mean
