"""The processes that train one network together, as torchrun started them: who they are, and what they settle
between two steps.

Two groups of torch.distributed: one for tensors (NCCL on GPUs, gloo on CPUs), in which nobody waits longer
than --rank-timeout, and one of gloo for what the hosts tell each other while a run is prepared, where the
first may have to download a data set."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from fastbn.errors import MachineError, UsageError
from fastbn.machine.environment import place
from fastbn.training.distributed.rendezvous import meet

T = TypeVar("T")
PREPARATION = 1800.0  # seconds that a rank may take over data, network and checkpoint
MEETING = 120.0  # at least, from a rank's start to the last one's
TIMEOUT = 300.0


class Ranks:
    """This process among `count`; `rank` 0 alone writes and speaks. Every method is called by all of them, in
    the same order.

    Where a rank is lost or lets the others wait too long, each of them raises MachineError.
    """

    def __init__(
        self, rank: int = 0, count: int = 1, timeout: float = TIMEOUT, tensors: Any = None, hosts: Any = None
    ):
        self.rank, self.count, self.timeout = rank, count, timeout
        self._tensors, self._hosts = tensors, hosts

    @property
    def first(self) -> bool:
        return self.rank == 0

    @property
    def share(self) -> tuple[int, int]:
        """Return this rank and the number of ranks, as a feed's batches take them."""
        return self.rank, self.count

    @property
    def backend(self) -> str:
        return dist.get_backend(self._tensors) if self.count > 1 else ""

    def agree(self, act: Callable[[], T]) -> T:
        """Return act() of this rank, once all ranks have called it. Where it raises UsageError or
        MachineError on any rank, all raise what the lowest of these raised, which rank 0 says."""
        if self.count == 1:
            return act()
        result: Any = None
        failure: UsageError | MachineError | None = None
        try:
            result = act()
        except (UsageError, MachineError) as raised:
            failure = raised
        mine = None if failure is None else (isinstance(failure, UsageError), str(failure))
        for rank, answer in enumerate(self._everybody(mine)):
            if answer is not None:
                text = answer[1] if rank == 0 else f"rank {rank}: {answer[1]}"
                error = UsageError(text) if answer[0] else MachineError(text)
                error.agreed = True
                raise error from failure
        return result

    def _everybody(self, value: T) -> list[T]:
        """Return each rank's value, a plain Python one, by rank."""
        told: list[Any] = [None] * self.count
        with self.waiting("the run's preparation", PREPARATION):
            dist.all_gather_object(told, value, group=self._hosts)
        return told

    def told(self, value: T) -> T:
        """Return rank 0's value, a plain Python one, on every rank."""
        if self.count == 1:
            return value
        box = [value if self.first else None]
        with self.waiting("the run's preparation", PREPARATION):
            dist.broadcast_object_list(box, src=0, group=self._hosts)
        return box[0]  # type: ignore[return-value]

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum over all ranks, in place; each gets the same bits."""
        if self.count > 1:
            with self.waiting("an all-reduce", self.timeout):
                dist.all_reduce(tensor, group=self._tensors)
        return tensor

    def total(self, value: float | None, device: torch.device) -> float | None:
        """Return the sum of one number per rank; None where any rank has none."""
        if self.count == 1:
            return value
        summed = self.sum(
            torch.tensor([value or 0.0, value is None], dtype=torch.float64, device=device)
        ).tolist()
        return None if summed[1] else summed[0]

    @torch.no_grad()
    def average(self, tensors: list[Tensor]) -> None:
        """Turn each tensor into its mean over the ranks: one all-reduce, in float64, which leaves equal
        float32 values as they are."""
        if self.count == 1 or not tensors:
            return
        mean = self.sum(torch.cat([t.reshape(-1).double() for t in tensors])) / self.count
        for tensor, part in zip(tensors, mean.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(part.view(tensor.shape))

    @torch.no_grad()
    def copy(self, tensors: list[Tensor]) -> None:
        """Turn each tensor into rank 0's, bit for bit: one broadcast per dtype."""
        if self.count == 1:
            return
        for dtype in dict.fromkeys(t.dtype for t in tensors):
            same_dtype = [t for t in tensors if t.dtype == dtype]
            flat = torch.cat([t.reshape(-1) for t in same_dtype])
            with self.waiting("a broadcast", self.timeout):
                flat = self._first_ones(flat)
            for tensor, part in zip(same_dtype, flat.split([t.numel() for t in same_dtype]), strict=True):
                tensor.copy_(part.view(tensor.shape))

    def _first_ones(self, flat: Tensor) -> Tensor:
        """Return rank 0's vector."""
        dist.broadcast(flat, src=dist.get_global_rank(self._tensors, 0), group=self._tensors)
        return flat

    @contextlib.contextmanager
    def waiting(self, what: str, seconds: float) -> Iterator[None]:
        """Turn what torch.distributed raises into one sentence."""
        try:
            yield
        except RuntimeError as error:
            raise self.lost(what, seconds, str(error)) from error

    def lost(self, what: str, seconds: float, reason: str) -> MachineError:
        remedy = "what was saved is intact, start again with --resume (torchrun --max-restarts does)"
        if "imed out" in reason:
            late = f"a rank hangs, or takes longer than --rank-timeout {seconds:g}"
            return MachineError(
                f"rank {self.rank} of {self.count} waited {seconds:g} s in {what} for the others: {late}; "
                f"{remedy}"
            )
        lines = reason.strip().splitlines() or ["no reason given"]
        return MachineError(
            f"rank {self.rank} of {self.count} lost the others in {what} ({lines[0][:200]}); {remedy}"
        )


ALONE = Ranks()


@contextlib.contextmanager
def started(timeout: float = TIMEOUT, device: str = "auto") -> Iterator[Ranks]:
    """Yield the ranks that torchrun started this process among, for as long as it lasts; ALONE elsewhere. On
    CUDA each takes the device of its LOCAL_RANK; of "xla" they are the chips that torch_xla's launcher
    started. Raises MachineError where the others do not come, or a device is lacking."""
    if device == "xla":
        from fastbn.training.distributed import xla

        yield xla.ranks(timeout)
        return
    here = place()
    if here.count == 1:
        yield ALONE
        return
    if torch.cuda.is_available():
        if here.local >= torch.cuda.device_count():
            raise MachineError(
                f"rank {here.rank} is number {here.local} on its machine, which has "
                f"{torch.cuda.device_count()} CUDA devices; start as "
                "many processes as devices: torchrun --nproc-per-node=gpu"
            )
        torch.cuda.set_device(here.local)
    try:
        store, rank, count = meet(max(timeout, MEETING))
        dist.init_process_group(
            "gloo", store=store, rank=rank, world_size=count, timeout=datetime.timedelta(seconds=PREPARATION)
        )
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise MachineError(
            f"rank {here.rank} of {here.count} did not find the others ({reason}); start them all by torchrun"
        ) from error
    ended = False
    try:
        yield joined(torch.device("cuda" if torch.cuda.is_available() else "cpu"), timeout)
        ended = True
    finally:
        if ended or not torch.cuda.is_available():  # NCCL would wait there for a rank that is lost
            dist.destroy_process_group()


def joined(device: torch.device, timeout: float = TIMEOUT) -> Ranks:
    """Return the ranks of the process group that is there already, `started` or a program's own; ALONE where
    there is none."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return ALONE
    tensors = dist.new_group(
        backend="nccl" if device.type == "cuda" else "gloo", timeout=datetime.timedelta(seconds=timeout)
    )
    hosts = dist.new_group(backend="gloo", timeout=datetime.timedelta(seconds=PREPARATION))
    return Ranks(dist.get_rank(), dist.get_world_size(), timeout, tensors, hosts)
