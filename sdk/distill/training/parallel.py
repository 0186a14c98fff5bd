"""Several processes that train one student: what `torchrun` started finds itself here, and a lone process too."""

from __future__ import annotations

import atexit
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist

from edgekit.errors import InvalidInput

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """Which process this is, of how many, and where it computes."""

    rank: int
    count: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this process writes and speaks for all."""
        return self.rank == 0

    def part(self, items: Sequence[T]) -> Sequence[T]:
        """This process's share: together the shares are all items, each once."""
        return items[self.rank :: self.count]

    def slice(self, items: Sequence[T]) -> Sequence[T]:
        """This process's share of a batch whose size the count divides, in the batch's order."""
        size = len(items) // self.count
        return items[self.rank * size : (self.rank + 1) * size]

    def sum(self, *values: float) -> tuple[float, ...]:
        """Sums over all processes; each must ask."""
        if self.count == 1:
            return values
        found = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(found)
        return tuple(found.tolist())

    def wait(self) -> None:
        """Go on when all processes are here."""
        self.sum(0.0)


def processes(device: str | torch.device) -> Processes:
    """Join the processes that `torchrun` started, NCCL between GPUs and gloo between CPUs; alone where there are none.

    `device="cuda"` is the GPU of this process's local rank. Raises `InvalidInput` for a device that torch does not see.
    """
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise InvalidInput(f"'{device}' is no device of torch: give cpu, cuda or cuda:1") from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise InvalidInput("torch sees no CUDA device: take --device cpu, or install a torch built for this driver")
    count, local = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("LOCAL_RANK", "0"))
    if str(chosen) == "cuda":
        chosen = torch.device("cuda", local)
    if count == 1:
        return Processes(0, 1, chosen)
    if not dist.is_initialized():
        if chosen.type == "cuda":
            torch.cuda.set_device(chosen)
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
        atexit.register(dist.destroy_process_group)  # not before: gloo cannot join a group of the same name again
    return Processes(dist.get_rank(), dist.get_world_size(), chosen)
