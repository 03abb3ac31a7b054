"""The ranks' rendezvous: a store of torch.distributed's, under a name that no earlier start of theirs
has used.

torchrun's store outlives the processes that it starts again, with what they wrote there, and a rank that
reads an earlier process's address waits for nobody (pytorch#135712). So rank 0 draws a token and each other
rank answers it with one of its own; who finds that the first has heard just that answer is among the living.
"""

from __future__ import annotations

import datetime
import json
import time
import uuid

from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

PAUSE = 0.05


def meet(timeout: float) -> tuple[Store, int, int]:
    """Return (the store, this rank, how many). Raises RuntimeError where not all have come after `timeout`
    seconds."""
    limit = datetime.timedelta(seconds=timeout)
    store, rank, count = next(rendezvous("env://", timeout=limit))
    mine = uuid.uuid4().hex
    token = _gather(store, count, mine, limit) if rank == 0 else _answer(store, rank, mine, timeout)
    return PrefixStore(f"fastbn/{token}", store), rank, count


def _gather(store: Store, count: int, token: str, limit: datetime.timedelta) -> str:
    store.set("fastbn/token", token)
    keys = [f"fastbn/{token}/{rank}" for rank in range(1, count)]
    store.wait(keys, limit)
    store.set(f"fastbn/{token}/heard", json.dumps([store.get(key).decode() for key in keys]))
    return token


def _answer(store: Store, rank: int, mine: str, timeout: float) -> str:
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if store.check(["fastbn/token"]):
            token = store.get("fastbn/token").decode()
            store.set(f"fastbn/{token}/{rank}", mine)
            heard = f"fastbn/{token}/heard"
            if store.check([heard]) and json.loads(store.get(heard))[rank - 1] == mine:
                return token
        time.sleep(PAUSE)
    raise RuntimeError(f"timed out after {timeout:g} s")
