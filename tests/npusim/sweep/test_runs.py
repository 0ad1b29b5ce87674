"""Real points: in processes, interrupted, and on a cluster that loses a worker."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from npusim.sweep import runners
from npusim.sweep.run import sweep

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

POINTS = 4


@pytest.fixture
def file(repository: Path, tmp_path: Path) -> Path:
    path = tmp_path / "sweep.yaml"
    hw = repository / "hwconfigs" / "tiny_8x8.yaml"
    path.write_text(
        f"schema_version: 1\nworkload: tiny\nhw: {hw}\naxes: {{machine.vector_unit.lanes: [2, 4, 8, 16]}}\n"
        "objectives: {seconds: min, peak_tops: max}\n"
    )
    return path


def points(out: Path) -> list[Path]:
    return sorted((out / "points").glob("*.json"))


def test_processes_interrupted_and_resumed_give_what_one_process_gives(file, tmp_path, repository):
    rows = sweep(file, tmp_path / "one")
    assert len({row["seconds"] for row in rows}) == POINTS
    out = tmp_path / "two"
    command = [sys.executable, "-m", "npusim.cli", "sweep", str(file), "--out", str(out), "--jobs", "2"]
    environment = os.environ | {"PYTHONPATH": str(repository)}
    # Where the tests run in a shell's background, Ctrl-C is ignored, and children inherit that.
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(command, env=environment, start_new_session=True, preexec_fn=heed)
    while not points(out):
        assert process.poll() is None
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    begun = time.monotonic()
    process.wait(30)
    assert time.monotonic() - begun < 10
    assert process.returncode != 0
    finished = {path: path.stat().st_mtime_ns for path in points(out)}
    assert 0 < len(finished) < POINTS
    subprocess.run(command, env=environment, check=True, timeout=300)
    assert all(path.stat().st_mtime_ns == when for path, when in finished.items())
    assert [path.read_bytes() for path in points(out)] == [path.read_bytes() for path in points(tmp_path / "one")]
    assert (out / "results.parquet").read_bytes() == (tmp_path / "one" / "results.parquet").read_bytes()


def test_a_cluster_that_loses_a_worker(file, tmp_path):
    from distributed import LocalCluster

    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        victims = [worker.pid for worker in cluster.workers.values()]
        seen: list[str] = []

        def kill_after_the_first() -> None:
            while not points(tmp_path / "out"):
                time.sleep(0.05)
            seen.append("killed")
            os.kill(victims[0], signal.SIGKILL)

        killer = threading.Thread(target=kill_after_the_first, daemon=True)
        killer.start()
        arrived: list[str] = []
        rows = sweep(file, tmp_path / "out", dask=cluster.scheduler_address,
                     notify=lambda stage, done, total: arrived.append(f"{done} of {total}"))  # fmt: skip
    assert seen == ["killed"]
    assert arrived == [f"{done} of {POINTS}" for done in range(POINTS + 1)]  # none lost, none twice
    assert len(rows) == len(points(tmp_path / "out")) == POINTS
    assert {row["status"] for row in rows} == {"ok"}
    assert len({json.dumps(row) for row in rows}) == POINTS


def _threads() -> dict[str, str | None]:
    return {name: os.environ.get(name) for name in ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS")}


def test_processes_do_not_have_more_threads_than_cores():
    from joblib import Parallel, delayed, parallel_config

    with parallel_config(backend="loky", inner_max_num_threads=runners.threads(2)):
        found = Parallel(n_jobs=2)(delayed(_threads)() for _ in range(2))
    share = str(max(1, len(os.sched_getaffinity(0)) // 2))
    assert all(threads == {"NUMBA_NUM_THREADS": share, "OMP_NUM_THREADS": share} for threads in found)
