"""The random numbers of a step: a function of the seed and of an image's place in the run alone.

So a resumed run draws what the undisturbed one would have drawn, and a step draws the same numbers however its
images are divided among ranks and accumulated batches.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

ImageKey = tuple[int, ...]
"""Of an image: the optimizer step, the number of the image in it, and what else tells its draws apart; not negative."""

# Streams that must not meet although they are keyed by the same numbers.
_POINTS, _DROPS = 1, 2


def point_seeds(seed: int, places: Sequence[ImageKey]) -> list[int]:
    """A seed for the loss points of each image, for `MaskClassificationLoss.draw`."""
    return [_state(_POINTS, seed, *place) for place in places]


def draw_drops(seed: int, places: Sequence[ImageKey], probabilities: Sequence[float], num_queries: int) -> Tensor:
    """Which attention masks are dropped (arXiv 2503.19108, section 3.3).

    Args:
        seed: of the run.
        places: of B images.
        probabilities: of each of L2 masked blocks, that a query keeps its mask.
        num_queries: Q.

    Returns:
        bool [L2, B, Q], on the host; True where the mask of a query is dropped in a block.
    """
    shape = (len(probabilities), num_queries)
    draws = [
        torch.rand(shape, generator=torch.Generator().manual_seed(_state(_DROPS, seed, *place))) for place in places
    ]
    return torch.stack(draws, dim=1) > torch.tensor(probabilities)[:, None, None]


def _state(*key: int) -> int:
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1))
