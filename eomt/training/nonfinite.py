"""Optimizer steps whose loss or gradient is not finite: left out, named and counted."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed, nn

from eomt.errors import InputError
from eomt.files import replacing

log = logging.getLogger("eomt")

MOST_NAMES = 8
"""Images or parameters that a message names."""


class _Seen(NamedTuple):
    batch: Any
    terms: Sequence[Mapping[str, Tensor]]


class FiniteSteps:
    """Leaves optimizer steps out whose total gradient norm is NaN or infinite, and ends the run after too many.

    The norm is a sum over all parameters of all ranks' gradients: it is not finite wherever a loss or a gradient
    is not, on every rank alike, so that all of them leave the same step out without asking each other. Reading
    it is the one thing that a step waits for here. What went wrong is looked for, and the ranks talk, only then.

    A step that is left out changes neither weights nor the optimizer's moments. It counts as a step of the
    schedule and of mask annealing, as it does where gradient scaling leaves one out.

    Args:
        most_in_a_row: steps left out one after the other that end the run; at least 1.

    Attributes:
        skipped: steps left out so far.
        in_a_row: how many of them came last, without a good step since.
    """

    def __init__(self, most_in_a_row: int):
        if most_in_a_row < 1:
            raise InputError(f"optim.max_skipped_steps is {most_in_a_row}, must be at least 1")
        self.most_in_a_row = most_in_a_row
        self.skipped = 0
        self.in_a_row = 0
        self._seen: list[_Seen] = []

    def watch(self, batch: Any, terms: Sequence[Mapping[str, Tensor]]) -> None:
        """Remember a batch until its optimizer step: with `names`, `images` and `targets`; and its loss terms,
        scalars of each output. Nothing is read."""
        self._seen.append(_Seen(batch, [{name: t.detach() for name, t in output.items()} for output in terms]))

    def passes(self, norm: Tensor) -> bool:
        """Whether the step may be done; where it may not, `leave_out` says why, and the caller drops the gradients.

        Args:
            norm: scalar, the total gradient norm, after unscaling; the same on all ranks.
        """
        if not norm.isfinite():
            return False
        self._seen.clear()
        self.in_a_row = 0
        return True

    def leave_out(self, network: nn.Module, step: int, folder: str | Path, scaler: Any = None) -> None:
        """Count and name a step that did not pass. All ranks call it together.

        Args:
            network: whose gradients they are, not clipped yet.
            step: the number of the step, from 1.
            folder: where `bad_batch.pt` goes.
            scaler: the gradient scaler of float16, if any. It tries large scales, and leaves out by itself the steps
                in which those overflow: these are no fault and not counted.

        Raises:
            InputError: at the last of `most_in_a_row` steps, once the batch is saved.
        """
        seen, self._seen = self._seen, []
        loss = _bad_terms(seen)
        names = [name for part in seen for name in part.batch.names]
        everyone = _gather((loss, names))
        rank = next((rank for rank, (bad, _) in enumerate(everyone) if bad), None)
        if rank is None and scaler is not None and scaler.get_scale() > 1:
            return
        self.skipped += 1
        self.in_a_row += 1
        # The gradient is the same on all ranks: unless a loss says whose it is, all images may be the cause.
        if rank is None:
            what, names = _bad_gradients(network), [name for _, part in everyone for name in part]
        else:
            what, names = everyone[rank]
        where = f" of rank {rank}" if rank is not None and len(everyone) > 1 else ""
        fault = f"step {step}: {what} not finite; images{where}: {_some(names)}"
        if self.in_a_row < self.most_in_a_row:
            if _rank() == 0:
                log.warning("%s; step left out, %d in a row, %d so far", fault, self.in_a_row, self.skipped)
            return
        saved = _save(Path(folder) / "bad_batch.pt", step, fault, seen) if _rank() == (rank or 0) else ""
        # No rank ends before the file is there.
        saved = "".join(_gather(saved))
        raise InputError(
            f"{self.in_a_row} optimizer steps in a row were left out (optim.max_skipped_steps); the last, {fault}; "
            f"{saved}; go on from a checkpoint with a lower optim.lr or with trainer.precision=32-true"
        )

    def state_dict(self) -> dict[str, int]:
        """The counts, in plain values."""
        return {"skipped": self.skipped, "in_a_row": self.in_a_row}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on counting from there."""
        self.skipped, self.in_a_row = state["skipped"], state["in_a_row"]


def total_norm(network: nn.Module) -> Tensor:
    """The L2 norm of all gradients, over all ranks' shares where they are sharded."""
    return _whole(torch.nn.utils.get_total_norm([p.grad for p in network.parameters() if p.grad is not None]))


def _whole(tensor: Tensor) -> Tensor:
    """A tensor that may be sharded over the ranks, which then all ask for it."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def _bad_terms(seen: Sequence[_Seen]) -> str:
    """Such as "loss mask (outputs 0, 2), class (output 2)"; "" if all terms are finite."""
    bad: dict[str, list[int]] = {}
    for part in seen:
        for number, output in enumerate(part.terms):
            for name, value in output.items():
                if not value.isfinite() and number not in bad.setdefault(name, []):
                    bad[name].append(number)
    outputs = {name: ", ".join(map(str, sorted(numbers))) for name, numbers in bad.items() if numbers}
    parts = [f"{name} (output{'s' if ',' in n else ''} {n})" for name, n in outputs.items()]
    return f"loss {', '.join(parts)}" if parts else ""


def _bad_gradients(network: nn.Module) -> str:
    """Such as "the gradient of class_head.weight, class_head.bias"."""
    bad = [name for name, p in network.named_parameters() if p.grad is not None and not _whole(p.grad).isfinite().all()]
    return f"the gradient of {_some(bad)}" if bad else "the norm of the gradient"


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return ", ".join(names[:MOST_NAMES]) + more


def _rank() -> int:
    return distributed.get_rank() if distributed.is_initialized() else 0


def _gather(value: Any) -> list:
    """Every rank's value."""
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return [value]
    values = [None] * distributed.get_world_size()
    distributed.all_gather_object(values, value)
    return values


def _save(path: Path, step: int, fault: str, seen: Sequence[_Seen]) -> str:
    """Write the batches with a bad loss, or all of the step's, as plain values and tensors; say where they are."""
    chosen = [part for part in seen if _bad_terms([part])] or seen
    batches = [
        {
            "names": list(part.batch.names),
            "images": part.batch.images.cpu(),
            "targets": {
                name: value.cpu() if isinstance(value, Tensor) else list(value)
                for name, value in part.batch.targets._asdict().items()
            },
            "terms": [{name: float(value) for name, value in output.items()} for output in part.terms],
        }
        for part in chosen
    ]
    try:
        with replacing(path) as temporary:
            torch.save({"step": step, "fault": fault, "batches": batches}, temporary)
    except (OSError, RuntimeError) as error:
        return f"its batch could not be saved ({error})"
    return f"its batch is in {path}"
