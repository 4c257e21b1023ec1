"""The form of a source of weights, told by its keys and by the descriptions beside it."""

from __future__ import annotations

from collections.abc import Callable

from eomt.errors import InputError
from eomt.weights.delta import read_delta
from eomt.weights.eomt_format import read_bare, read_exported, read_run
from eomt.weights.huggingface import read_huggingface
from eomt.weights.original import BACKBONE, read_original
from eomt.weights.safe_load import CONFIG, EXPORT, FORMAT, Source
from eomt.weights.weights import Chosen, Weights

Reader = Callable[[Source, Chosen], Weights]


def detect(source: Source) -> Reader:
    """The reader for a source.

    Raises:
        InputError: if it holds no EoMT.
    """
    state = source.state
    if FORMAT in source.content:
        return read_run
    if "network.q.weight" in state and any(key.startswith(BACKBONE) for key in state):
        # The original subtracts its whole encoder, with the pixel statistics in it, and stores these in every file:
        # no absolute file has a deviation of 0. Where it was taken out of a delta file, this cannot be seen.
        deviation = state.get("network.encoder.pixel_std")
        return read_delta if deviation is not None and not deviation.any() else read_original
    if all(key in state or f"network.{key}" in state for key in ("queries", "class_head.weight")):
        return read_exported if EXPORT in source.descriptions else read_bare
    if CONFIG in source.descriptions:
        return read_huggingface
    some = ", ".join(key[:60] for key in list(state)[:3])
    hint = f"; Hugging Face weights need their {CONFIG}: give their folder" if "query.weight" in state else ""
    raise InputError(f"{source.name} holds no EoMT: its weights are called {some} and so on{hint}")
