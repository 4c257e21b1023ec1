"""Host synchronisations that a GPU would need, counted on a CPU."""

from collections import Counter

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class HostSyncs(TorchDispatchMode):
    """Counts operations whose result the host needs: a value, or a size that depends on values."""

    def __init__(self):
        super().__init__()
        self.found = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in ("_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "unique_dim", "bincount"):
            self.found[name] += 1
        if name == "index" and any(i is not None and i.dtype == torch.bool for i in args[1]):
            self.found["index by bool"] += 1
        return func(*args, **(kwargs or {}))
