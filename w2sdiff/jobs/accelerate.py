"""The engine for several accelerators of one machine: one process each, started by others.

There is nothing to run here. ``accelerate launch`` (or ``torchrun``) starts the same command
several times; each process runs `run_local` on the same folder and takes the next task that nobody
holds. The ledger is all they share: no rendezvous, no collective call, so nobody waits for a slower
or a dead one. accelerate's own ``PartialState`` would open a process group, which needs all of
them; the three numbers that a process must know stand in its environment.

When one process dies, ``torchrun``, which is what ``accelerate launch`` starts, ends the others
too. Their finished items are in the ledger, and only what each had in hand is made again: run the
command again, or let the launcher do that (``accelerate launch --max_restarts 3 ...``).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from w2sdiff.errors import InputError

__all__ = ["Process", "process"]

# torchrun; Intel MPI and MPICH; Open MPI: what accelerate itself reads.
_RANK = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK")
_COUNT = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE")
_LOCAL_RANK = ("LOCAL_RANK", "MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK")


@dataclass(frozen=True)
class Process:
    """One of the processes that a launcher started together.

    Attributes:
        rank: from 0; the process of rank 0 shows progress and writes reports.
        count: how many there are.
        device: where this one computes: "cuda:1", "xpu:0", "cpu", as torch names it; "auto" if it
            is the only one, so that whoever asked decides.
    """

    rank: int = 0
    count: int = 1
    device: str = "auto"

    @property
    def is_main(self) -> bool:
        """Whether it speaks for all of them."""
        return self.rank == 0


def process(environment: Mapping[str, str] | None = None) -> Process:
    """Which process this is, from the environment alone.

    More processes than accelerators share them in turn; on a machine without any, each is on the
    CPU. Without a launcher it is the only one.

    Args:
        environment: instead of `os.environ`.

    Raises:
        InputError: the launcher's variables are no numbers, or contradict each other.

    Example:
        >>> process({})
        Process(rank=0, count=1, device='auto')
        >>> process({"RANK": "1", "WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "true"})
        Process(rank=1, count=2, device='cpu')
    """
    known = os.environ if environment is None else environment
    rank, count = _number(known, _RANK, 0), _number(known, _COUNT, 1)
    if not 0 <= rank < count:
        raise InputError(
            f"expected a rank below the number of processes, got {rank} of {count}; "
            "RANK and WORLD_SIZE are set by accelerate launch and by torchrun"
        )
    if count == 1:
        return Process()
    return Process(rank, count, _device(known, _number(known, _LOCAL_RANK, rank)))


def _device(known: Mapping[str, str], local_rank: int) -> str:
    if known.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes"):
        return "cpu"
    import torch

    for kind, there in (("cuda", torch.cuda), ("xpu", torch.xpu)):
        if there.is_available():
            return f"{kind}:{local_rank % there.device_count()}"
    return "cpu"


def _number(known: Mapping[str, str], names: tuple[str, ...], default: int) -> int:
    for name in names:
        if value := known.get(name):
            try:
                return int(value)
            except ValueError as error:
                raise InputError(f"expected a whole number in {name}, got {value!r}") from error
    return default
