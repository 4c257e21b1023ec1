"""Optimizer steps whose loss or gradient is not finite: left out, named and counted."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, distributed, nn
from torch.amp import GradScaler
from torch.optim import AdamW, Optimizer

from eomt.errors import InputError

log = logging.getLogger("eomt")

MAX_NAMES = 8
"""Images, loss terms or parameters that a message names."""


class NonFiniteSteps:
    """Guard against total gradient norms that are NaN or infinite: leaves out their steps, ends the run after too many.

    The norm is taken over all parameters of all ranks' gradients: it is not finite wherever a loss or a gradient
    is not, on every rank alike, so that all ranks leave the same step out without asking each other. With
    fused AdamW on a GPU the optimizer's kernel leaves the step out, and the host learns it one step later, so that it
    need not wait for the GPU; with others the host waits for the norm. Only after a bad step do the ranks communicate,
    to find the cause.

    A step that is left out changes neither weights nor the optimizer's moments. It counts as a step of the
    schedule and of mask annealing, as it does where gradient scaling leaves one out.

    Args:
        max_in_a_row: consecutive steps left out that end the run; 0: none do.

    Attributes:
        skipped: steps left out so far.
        in_a_row: steps left out since the last good one.
    """

    def __init__(self, max_in_a_row: int):
        self.max_in_a_row = max_in_a_row
        self.skipped = 0
        self.in_a_row = 0
        self._names: list[str] = []
        self._terms: list[tuple[str, Tensor]] = []
        self._unread: _Unread | None = None

    def watch(self, names: Sequence[str], terms: Mapping[str, Tensor]) -> None:
        """Remember the images and loss terms, [O] by name, of a batch. Nothing is read."""
        self._names += names
        self._terms += [(name, term.detach()) for name, term in terms.items()]

    def read(self, network: nn.Module) -> None:
        """Count and name the last step if the device left it out; its gradients are still needed.

        Raises:
            InputError: at the last of `max_in_a_row` steps.
        """
        unread, self._unread = self._unread, None
        if unread is None:
            return
        if unread.copied is not None:
            unread.copied.synchronize()
        if unread.flag.numpy():
            self._count(network, *unread[2:])
        else:
            self.in_a_row = 0

    def passes(
        self, norm: Tensor, network: nn.Module, optimizer: Optimizer, step: int, scaler: GradScaler | None = None
    ) -> bool:
        """Decide whether an optimizer step is done; count and name one that is not. All ranks call it together.

        Args:
            norm: scalar, the total gradient norm after unscaling, the same on all ranks.
            network: the network with its gradients, not clipped yet.
            optimizer: its optimizer.
            step: the number of the step, from 1.
            scaler: the gradient scaler of float16, if any. It tries large scales and leaves out by itself the steps
                in which those overflow: these are no fault and not counted.

        Returns:
            False if the step must not be done; True if it may, or if the device decides: then `read` tells.

        Raises:
            InputError: at the last of `max_in_a_row` steps.
        """
        names, terms, self._names, self._terms = self._names, self._terms, [], []
        if scaler is None and self.is_left_to(optimizer, norm):
            bad = norm.isfinite().logical_not()
            # What a gradient scaler sets, too: the optimizer's kernel changes nothing where it is 1.
            optimizer.found_inf = bad.float()  # pyright: ignore[reportAttributeAccessIssue] not declared
            flag, copied = bad.to("cpu", non_blocking=True), torch.cuda.Event() if bad.is_cuda else None
            if copied is not None:
                copied.record()
            self._unread = _Unread(flag, copied, step, names, terms)
            return True
        if norm.isfinite():
            self.in_a_row = 0
            return True
        self._count(network, step, names, terms, scaler)
        return False

    def is_left_to(self, optimizer: Optimizer, norm: Tensor) -> bool:
        """True if the optimizer can leave a step out on the device: fused AdamW of parameters that are not sharded."""
        sharded = hasattr(optimizer.param_groups[0]["params"][0], "full_tensor")
        return norm.is_cuda and isinstance(optimizer, AdamW) and bool(optimizer.defaults["fused"]) and not sharded

    def _count(
        self,
        network: nn.Module,
        step: int,
        names: Sequence[str],
        terms: Sequence[tuple[str, Tensor]],
        scaler: GradScaler | None = None,
    ) -> None:
        bad = [
            f"{name} (output {output})"
            for name, term in terms
            for output in (~term.isfinite()).nonzero()[:, 0].tolist()
        ]
        bad = list(dict.fromkeys(bad))
        everyone = [(bad, names)] * (distributed.get_world_size() if distributed.is_initialized() else 1)
        if distributed.is_initialized():
            distributed.all_gather_object(everyone, (bad, names))
        rank = next((rank for rank, (bad, _) in enumerate(everyone) if bad), None)
        if rank is None and scaler is not None and scaler.get_scale() > 1:
            return
        self.skipped += 1
        self.in_a_row += 1
        if rank is None:
            # The gradient is the same on all ranks: unless a loss tells whose it is, all images may be the cause.
            what, names = _bad_gradients(network), [name for _, part in everyone for name in part]
        else:
            what, names = f"loss {_some(everyone[rank][0])}", everyone[rank][1]
        where = f" of rank {rank}" if rank is not None and len(everyone) > 1 else ""
        fault = f"step {step}: {what} not finite; images{where}: {_some(names)}"
        if self.in_a_row == self.max_in_a_row:
            raise InputError(
                f"{self.in_a_row} optimizer steps in a row were left out (optim.max_skipped_steps); the last, {fault}; "
                "resume from a checkpoint with a lower optim.lr or with trainer.precision=32-true"
            )
        if not distributed.is_initialized() or distributed.get_rank() == 0:
            log.warning("%s; step left out, %d in a row, %d so far", fault, self.in_a_row, self.skipped)

    def state_dict(self) -> dict[str, int]:
        """Return the counts."""
        return {"skipped": self.skipped, "in_a_row": self.in_a_row}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Resume counting."""
        self.skipped, self.in_a_row = state["skipped"], state["in_a_row"]


class _Unread(NamedTuple):
    """A step of which the host does not know yet whether it was left out: bool on the host, once `copied`."""

    flag: Tensor
    copied: torch.cuda.Event | None
    step: int
    names: list[str]
    terms: list[tuple[str, Tensor]]


def total_norm(network: nn.Module) -> Tensor:
    """Return the L2 norm of all gradients, over all ranks' shares where they are sharded."""
    return _whole(torch.nn.utils.get_total_norm([p.grad for p in network.parameters() if p.grad is not None]))


def _whole(tensor: Tensor) -> Tensor:
    whole = getattr(tensor, "full_tensor", None)  # of a DTensor
    return tensor if whole is None else whole()


def _bad_gradients(network: nn.Module) -> str:
    bad = [name for name, p in network.named_parameters() if p.grad is not None and not _whole(p.grad).isfinite().all()]
    return f"the gradient of {_some(bad)}" if bad else "the norm of the gradient"


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return ", ".join(names[:MAX_NAMES]) + more
