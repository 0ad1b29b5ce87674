"""What a long run has finished so far: the folder ``unfinished`` in its run folder; the same command goes on from it.

Nothing is written before the run has lasted as long as the time between two savings, so quick runs leave no trace.
Files appear under their names when they are complete. All of them belong to one run, which ``run.json`` in the folder
describes: another run's are refused, for they may be hours of work.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from models.errors import ModelError
from models.quantize import QuantizedModel
from models.stats import CalibrationStats
from models.store import ArrayWriter, array_sha256, load_arrays
from npusim.atomic_file import write_atomically
from npusim.errors import UserError
from npusim.folder import writing
from npusim.program import Program
from npusim.program_file import load_program, program_sha256, save_program

FOLDER, ABOUT = "unfinished", "run.json"
STATISTICS, QUANTIZED, PROGRAM = "statistics.safetensors", "quantized.safetensors", "program.npu"
KIND, VERSION = "unfinished run", 1

Kept = tuple[dict[str, NDArray[Any]], dict[str, Any]]
"""Arrays by name, and facts as JSON has them."""
Made = tuple[CalibrationStats, QuantizedModel, Program]


class Unfinished:
    """Keeps what a run has finished, and gives it back to the next one of the same settings.

    Args:
        out: the run folder; None keeps nothing.
        about: everything that decides the run's results, as JSON has it.
        seconds: time between two savings.

    Raises:
        UserError: the folder belongs to a run of other settings (the first that differs is named), or is damaged.
    """

    def __init__(self, out: Path | None = None, about: Mapping[str, Any] | None = None, seconds: float = 60.0) -> None:
        self.folder = None if out is None else out / FOLDER
        self._about = json.loads(json.dumps(about or {}))
        self._key = hashlib.sha256(json.dumps(self._about, sort_keys=True).encode()).hexdigest()
        self._seconds, self._start, self._program = seconds, time.monotonic(), ""
        self._last: dict[str, float] = {}
        if self.folder is not None and self.folder.exists():
            self._check(self.folder / ABOUT)

    def _check(self, path: Path) -> None:
        hint = f"allowed: the same settings, or to remove {path.parent} first"
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"{path}: not readable ({' '.join(str(error).split())}); {hint}") from None
        if found != self._about:
            where, there, here = _difference(found, self._about)
            raise UserError(f"{path}: belongs to another run: {where} = {there!r} there, {here!r} here; {hint}")

    @property
    def _lasting(self) -> bool:
        """Whether the run has lasted long enough to keep anything of it."""
        return self.folder is not None and time.monotonic() - self._start >= self._seconds

    def keep_made(self, stats: CalibrationStats, quantized: QuantizedModel, program: Program) -> None:
        """Keep what calibration, quantization and compilation made, if they took long. Raises UserError or ModelError.

        Called in any case: what is kept behind it belongs to this program.
        """
        self._program = program_sha256(program)
        if not self._lasting or self.folder is None:
            return
        self._begin()
        with writing(self.folder):
            stats.save(self.folder / STATISTICS)
            quantized.save(self.folder / QUANTIZED)
            save_program(program, self.folder / PROGRAM)

    def take_made(self) -> Made | None:
        """What `keep_made` kept; None if it did not. Raises UserError or ModelError for a damaged file."""
        if self.folder is None or not (self.folder / PROGRAM).is_file():
            return None
        program = load_program(self.folder / PROGRAM)
        self._program = program_sha256(program)
        made = CalibrationStats.load(self.folder / STATISTICS), QuantizedModel.load(self.folder / QUANTIZED)
        return *made, program

    def keep_if_due(self, name: str, make: Callable[[], Kept], last: bool = False) -> None:
        """Keep what a stage has done so far, if that was long ago or it is the ``last`` of it. Raises UserError."""
        now = time.monotonic()
        if not self._lasting or self.folder is None:
            return
        if not last and now - self._last.get(name, self._start) < self._seconds:
            return
        self._begin()
        arrays, facts = make()
        digests = {key: array_sha256(array) for key, array in arrays.items()}
        layout = {key: (array.shape, array.dtype.type) for key, array in arrays.items()}
        about = {"run": self._key, "program": self._program, "sha256": digests, "facts": facts}
        with writing(self.folder), ArrayWriter(self._path(name), KIND, VERSION, layout, about) as writer:
            for key, array in arrays.items():
                writer.put(key, array)
        self._last[name] = time.monotonic()

    def take(self, name: str) -> Kept | None:
        """What `keep_if_due` kept last; None if it did not.

        Raises UserError for a damaged file, and for that of another run or program.
        """
        if self.folder is None or not self._path(name).is_file():
            return None
        path = self._path(name)
        with self.naming(name):
            arrays, about = load_arrays(path, KIND, VERSION)
            if (about["run"], about["program"]) != (self._key, self._program):
                raise UserError("belongs to another run or program")
            if {key: array_sha256(array) for key, array in arrays.items()} != about["sha256"]:
                raise UserError("contents do not match their SHA-256; the file was altered")
            facts: dict[str, Any] = about["facts"]
        return arrays, facts

    @contextmanager
    def naming(self, name: str) -> Iterator[None]:
        """Say of a fault in what was kept which file it lies in, and what to do."""
        try:
            yield
        except (UserError, ModelError, KeyError, TypeError, ValueError) as error:
            what = str(error).removeprefix(f"{self._path(name)}: ")
            hint = "allowed: to remove the file, which repeats its stage"
            raise UserError(f"{self._path(name)}: {what}; {hint}") from None

    def remove(self) -> None:
        """Forget all that was kept."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _begin(self) -> None:
        """Say whose folder it is, before anything lies in it."""
        assert self.folder is not None
        path = self.folder / ABOUT
        if not path.is_file():
            with writing(self.folder):
                write_atomically(path, (json.dumps(self._about, indent=2) + "\n").encode())

    def _path(self, name: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{name}.safetensors"


def _difference(there: Any, here: Any, where: str = "") -> tuple[str, Any, Any]:
    """The first field in which two JSON values differ: its path, and both values."""
    if isinstance(there, dict) and isinstance(here, dict):
        for name in [*here, *there]:
            if there.get(name) != here.get(name):
                return _difference(there.get(name), here.get(name), f"{where}.{name}" if where else name)
    return where or "settings", there, here
