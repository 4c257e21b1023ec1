"""A trained network's weights with what is known about them, wherever they come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from eomt.classes import Classes


@dataclass(frozen=True)
class Weights:
    """What a file, a folder or a repository of the Hugging Face Hub holds.

    Attributes:
        origin: what it is and where, for people: "original checkpoint FILE".
        state: under the keys of `EoMT.state_dict()`, without pixel mean and deviation.
        network: arguments of `EoMT`, see `EoMT.spec`.
        kind: of segmentation; None where the source does not say.
        classes: None where the source does not say.
        config: the training run's configuration; empty where the source has none.
        overrides: what was typed to start that run.
        step: optimizer steps that the weights have seen; 0 where the source does not say.
        mask_probabilities: per masked block, see `eomt.training.annealing`; None where
            the source does not say.
        guessed: entries of `network` that the source does not tell for sure.
        resumable: whether a training run can go on from it, with optimizer and place in the data.
    """

    origin: str
    state: Mapping[str, Tensor] = field(repr=False)
    network: Mapping[str, Any]
    kind: str | None = None
    classes: Classes | None = field(default=None, repr=False)
    config: Mapping[str, Any] = field(default_factory=dict, repr=False)
    overrides: tuple[str, ...] = ()
    step: int = 0
    mask_probabilities: Tensor | None = field(default=None, repr=False)
    guessed: frozenset[str] = frozenset()
    resumable: bool = False
