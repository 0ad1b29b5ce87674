"""Compiled kernels are found again, and never after an edit that could change their bits."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from npusim.engine import cache

RUN = """
import numba  # imported first, as a user's program may
import numpy as np
from npusim.config import load_machine
from npusim.engine import execute, stream, stream_vector
from npusim.isa.assembly import assemble
from npusim.isa import decode
from npusim.memory import MachineState

state = MachineState(load_machine(MACHINE), 64)
state.vector("sram", 0, np.int16, 4)[:] = [-3, -1, 1, 3]
execute(state, decode(assemble(
    "ewlin unit=vector a_dtype=i16 out_dtype=i16 rows=1 cols=4 batch=1 shift=1 a_mul=1 out_addr=64 "
    "b_addr=0xffffffff a_mul_addr=0xffffffff b_mul_addr=0xffffffff bias_addr=0xffffffff")))
print(state.vector("sram", 64, np.int16, 4).tolist(), stream._compiled(stream_vector.ewlin).cache_hits)
"""


def run(folder: Path, repository: Path) -> str:
    script = RUN.replace("MACHINE", repr(str(repository / "hwconfigs" / "tiny_8x8.yaml")))
    environment = {**os.environ, "PYTHONPATH": str(folder), "XDG_CACHE_HOME": str(folder / "cache")}
    environment.pop("NUMBA_CACHE_DIR", None)
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=200,
    )
    return done.stdout.strip()


def test_an_edit_to_a_function_that_a_kernel_calls_takes_effect(tmp_path: Path, repository: Path) -> None:
    shutil.copytree(repository / "npusim", tmp_path / "npusim", ignore=shutil.ignore_patterns("__pycache__"))
    assert run(tmp_path, repository) == "[-1, 0, 1, 2] 0"
    assert run(tmp_path, repository) == "[-1, 0, 1, 2] 1"  # compiled once, found again

    source = tmp_path / "npusim" / "engine" / "lanes.py"
    text = source.read_text(encoding="utf-8")
    before = "builder.ashr(builder.add(product, rounding), shift)"
    assert text.count(before) == 1
    source.write_text(text.replace(before, "builder.ashr(product, shift)"), encoding="utf-8")
    assert run(tmp_path, repository) == "[-2, -1, 0, 1] 0"

    source.write_text(text, encoding="utf-8")
    assert run(tmp_path, repository) == "[-1, 0, 1, 2] 1"


def test_the_key_follows_names_and_contents_of_all_sources(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x = 1\n")
    keys = [cache.source_key(tmp_path)]
    (tmp_path / "notes.txt").write_text("not a source\n")
    assert cache.source_key(tmp_path) == keys[0]
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.py").write_text("")
    keys.append(cache.source_key(tmp_path))
    (tmp_path / "sub" / "b.py").rename(tmp_path / "c.py")
    keys.append(cache.source_key(tmp_path))
    (tmp_path / "a.py").write_text("x = 2\n")
    keys.append(cache.source_key(tmp_path))
    assert len(set(keys)) == 4


def folder_with(monkeypatch: pytest.MonkeyPatch, **variables: str) -> Path | None:
    for name in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return cache._folder.__wrapped__()[0]


def test_where_the_kernels_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"kernels-{cache.source_key()}"
    chosen, xdg, home = (str(tmp_path / part) for part in ("chosen", "xdg", "home"))
    assert folder_with(monkeypatch, HOME=home) == tmp_path / "home" / ".cache" / "npusim" / name
    assert folder_with(monkeypatch, HOME=home, XDG_CACHE_HOME=xdg) == tmp_path / "xdg" / "npusim" / name
    assert folder_with(monkeypatch, HOME=home, XDG_CACHE_HOME="rel") == tmp_path / "home" / ".cache" / "npusim" / name
    assert folder_with(monkeypatch, XDG_CACHE_HOME=xdg, NUMBA_CACHE_DIR=chosen) == tmp_path / "chosen" / name
    assert cache._folder.__wrapped__() == (tmp_path / "chosen" / name, False)
    (tmp_path / "chosen" / name).rmdir()  # of another version
    assert cache._folder.__wrapped__() == (tmp_path / "chosen" / name, True)


def test_without_a_writable_folder_kernels_work_uncached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    assert folder_with(monkeypatch, NUMBA_CACHE_DIR=str(tmp_path / "file")) is None
    monkeypatch.setattr(cache, "cache_folder", lambda: None)
    assert cache.kernel(lambda x: x + 1)(41) == 42
