"""Trained weights with everything known about them, and the caller's choices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from eomt.classes import Classes


@dataclass(frozen=True)
class Chosen:
    """A caller's choices, which complete a source where it is silent and must agree with it elsewhere.

    Attributes:
        kind: semantic, instance or panoptic segmentation, or a custom task; None says nothing.
        classes: the classes of the network's outputs; None says nothing.
        network: some or all arguments of `EoMT`, none of them None, `image_size` as [height, width].
        backbone: the pretrained DINOv3 of delta weights, as file, folder or Hub id; None for Meta's.
        complete: the network is to be run. False allows unknown kind, classes and number of heads.
    """

    kind: str | None = None
    classes: Classes | None = None
    network: Mapping[str, Any] = field(default_factory=dict)
    backbone: str | Path | None = None
    complete: bool = True


@dataclass(frozen=True)
class Weights:
    """The content of a file, a folder or a repository of the Hugging Face Hub.

    Attributes:
        origin: form and place, for messages: "original weights FILE".
        state: tensors under the keys of `EoMT.state_dict()`, without pixel mean and deviation.
        network: arguments of `EoMT`, see `EoMT.spec`.
        kind: the kind of segmentation; None where it is not known.
        classes: None where they are not known.
        config: the training run's configuration, plain values; empty where the source has none.
        overrides: the command-line overrides of that run.
        step: optimizer steps that the weights have seen; 0 where the source does not say.
        mask_probabilities: float32 [L2] in 0..1, one per masked block, see `eomt.training.annealing`; None where they
            are not known.
        guessed: entries of `network` that the source does not say for sure; "classes" where it has their names or
            their number alone.
        resumable: whether a training run can be resumed from the source, with optimizer state and position in the
            data.
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
