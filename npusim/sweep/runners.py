"""Where points are evaluated: in processes here, or on a Dask cluster. Records come back as they are ready."""

from __future__ import annotations

import os
from collections.abc import Generator, Sequence
from typing import Any

from npusim.errors import UserError
from npusim.sweep.point import Record, evaluate
from npusim.sweep.space import Point

CONNECT_SECONDS = 10
RETRIES = 3


def local(points: Sequence[Point], jobs: int) -> Generator[Record, None, None]:
    """In ``jobs`` processes, which share the cores: each has that part of them for its threads."""
    if jobs == 1 or len(points) == 1:
        yield from map(evaluate, points)
        return
    from joblib.externals.loky import get_reusable_executor

    from npusim.workers import in_processes

    finished = False
    try:
        yield from in_processes(evaluate, ((point,) for point in points), min(jobs, len(points)), threads(jobs))
        finished = True
    finally:
        if not finished:  # interrupted: what runs is worth nothing, and shall not be waited for
            get_reusable_executor().shutdown(wait=False, kill_workers=True)


def threads(jobs: int) -> int:
    """Threads for each of ``jobs`` processes on this machine's cores."""
    return max(1, len(os.sched_getaffinity(0)) // jobs)


def on_dask(points: Sequence[Point], address: str) -> Generator[Record, None, None]:
    """On a cluster, whose workers need npusim installed and no shared disk.

    A worker that dies gives its points to others. Raises UserError if nobody answers at the address.
    """
    import distributed

    dask: Any = distributed  # untyped

    try:
        client: Any = dask.Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError, TimeoutError) as error:
        raise UserError(f"dask = {address!r}: no scheduler answers there ({' '.join(str(error).split())})") from None
    with client:
        names = [f"npusim-{point.key}" for point in points]
        futures = client.map(_with_one_thread, points, key=names, retries=RETRIES)
        try:
            for _, record in dask.as_completed(futures, loop=client.loop, with_results=True):
                yield record
        finally:
            client.cancel(futures, force=True)


def _with_one_thread(point: Point) -> Record:
    """A cluster has a worker for each core, or a thread."""
    import numba
    import torch

    numba.set_num_threads(1)
    torch.set_num_threads(1)
    return evaluate(point)
