"""One call made by several processes at once: each does a share, all get the whole result.

The processes are those of ``torch.distributed``, which the caller has started and joined
(``torchrun``, then ``init_process_group`` with gloo or NCCL).  Work is divided only when *every*
process makes the call with ``distributed=True`` and the same arguments; running under ``torchrun``
is not enough, since training scripts measure on their first process alone.

    torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500 repair.py

Where one process raises an error between two exchanges, all raise one.  Where one dies, ``torchrun``
ends the others; without it they wait for the ``timeout`` of ``init_process_group``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, distributed

from rectify_widgets.engine.base.checks import check_flag
from rectify_widgets.engine.base.progress import Cancelled

Item = TypeVar("Item")


@dataclass(frozen=True)
class Ranks:
    """The ``size`` processes that share one call, seen from number ``rank`` (from 0)."""

    rank: int = 0
    size: int = 1

    @property
    def several(self) -> bool:
        """Whether there is more than one process."""
        return self.size > 1

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """Every ``size``-th item, starting at this rank's number, of a sequence that all ranks have."""
        return items[self.rank :: self.size]

    def rows(self, count: int) -> tuple[slice, int]:
        """This rank's rows of ``count`` that all have, and how many they are.

        A rank without rows gets the first row to work on, which is not counted.
        """
        own = len(range(self.rank, count, self.size))
        return (slice(self.rank, count, self.size) if own else slice(0, 1)), own

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all ranks, the same on each; every rank calls it with one shape."""
        if not self.several:
            return tensor
        total = tensor.to(_device(tensor), copy=True).contiguous()
        distributed.all_reduce(total)
        return total.to(tensor.device)

    def add(self, number: int) -> int:
        """The sum of a whole number over all ranks."""
        return int(self.sum(torch.tensor(number)))

    def mean(self, values: Tensor, count: int) -> Tensor:
        """The mean over all samples, from each rank's mean over ``count`` of its own."""
        if not self.several:
            return values
        own = values.double() * count if count else torch.zeros_like(values).double()
        weighted = self.sum(torch.cat([own.flatten(), own.new_tensor([count])]))
        return (weighted[:-1] / weighted[-1]).reshape(values.shape).to(values)

    def gather(self, rows: Tensor) -> Tensor:
        """The rows of all ranks, rank after rank; their numbers may differ."""
        if not self.several:
            return rows
        counts = torch.zeros(self.size, dtype=torch.long)
        counts[self.rank] = len(rows)
        ends = self.sum(counts).cumsum(dim=0)
        everything = rows.new_zeros(int(ends[-1]), *rows.shape[1:])
        stop = int(ends[self.rank])
        everything[stop - len(rows) : stop] = rows
        return self.sum(everything)

    def check_same(self, argument: str, text: str, what: str) -> None:
        """Refuse a ``text`` that differs between ranks; ``what`` names it.

        Raises:
            ValueError: on every rank.
        """
        number = int(hashlib.blake2b(text.encode(), digest_size=6).hexdigest(), 16)
        if self.add(number) != self.size * number:
            raise ValueError(
                f"{argument}: {what} differ from rank to rank, want the same on every one"
            )

    @contextmanager
    def together(self) -> Iterator[None]:
        """Fail on every rank if the block fails on one; no rank exchanges anything within it.

        Raises:
            RuntimeError: another rank raised an error, which that one shows.
            Cancelled: another rank was cancelled.
        """
        if not self.several:
            yield
            return
        error: Exception | None = None
        try:
            yield
        except Exception as raised:  # noqa: BLE001 - raised again below
            error = raised
        stopped = isinstance(error, Cancelled)
        flags = torch.tensor([error is not None and not stopped, stopped])
        failures, stops = self.sum(flags.long()).tolist()
        if error is not None:
            raise error
        if failures:
            raise RuntimeError("distributed: another rank failed, and shows why")
        if stops:
            raise Cancelled("cancelled on another rank")


ALONE = Ranks()


def check_distributed(distribute: object) -> Ranks:
    """The ranks to share a call with, from its argument ``distributed``.

    Raises:
        TypeError: it is neither True nor False.
        ValueError: it is True, and ``torch.distributed`` has not been initialised.
    """
    if not check_flag("distributed", distribute):
        return ALONE
    if not distributed.is_available() or not distributed.is_initialized():
        raise ValueError(
            "distributed: got True in a process without others; start the script with torchrun and "
            "call torch.distributed.init_process_group() first"
        )
    return Ranks(distributed.get_rank(), distributed.get_world_size())


def _device(tensor: Tensor) -> torch.device:
    """The device on which the backend exchanges tensors: a GPU for NCCL, the CPU for gloo."""
    backend = str(distributed.get_backend())
    if backend == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu") if backend == "gloo" else tensor.device
