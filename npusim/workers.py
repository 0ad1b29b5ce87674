"""Work in processes of joblib's loky, for whatever has many pieces that do not depend on each other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from joblib import Parallel, delayed, parallel_config
from joblib.externals.loky import process_executor


def in_processes(
    task: Callable[..., Any], arguments: Iterable[tuple[Any, ...]], jobs: int, threads: int
) -> Iterator[Any]:
    """Yield ``task(*each)`` for each of ``arguments``, as they are ready; ``jobs`` processes of ``threads`` threads."""
    with parallel_config(backend="loky", inner_max_num_threads=threads):
        workers = Parallel(n_jobs=jobs, return_as="generator_unordered", batch_size=1)
        yield from workers(delayed(_call)(task, *each) for each in arguments)


def _call(task: Callable[..., Any], *arguments: Any) -> Any:
    # With psutil there, loky replaces a worker that has grown by 300 MB, as ours do, and may lose its task for ever.
    process_executor._USE_PSUTIL = False
    return task(*arguments)
