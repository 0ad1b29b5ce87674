"""Result folders, written whole or not at all: complete in a temporary folder beside them, then moved in place."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from npusim.errors import UserError


@dataclass(frozen=True)
class Layout:
    """What a kind of folder holds.

    owned: all names that it may hold, the marker first, a file that every such folder has; other names are the user's
    and stay. kind: a word for messages. working: the name of what may be there before the marker.
    """

    kind: str
    owned: tuple[str, ...]
    working: str = ""

    @property
    def marker(self) -> str:
        return self.owned[0]


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say what it was that the disk refused."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from None


def check_folder(out: Path, layout: Layout) -> None:
    """Raise UserError if such a folder cannot be written at ``out``, before anything is computed; writes nothing."""
    allowed = f"allowed: a new folder, an empty one, or that of an earlier {layout.kind}"
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: exists and is not a folder; {allowed}")
    others = out.is_dir() and any(entry.name != layout.working for entry in out.iterdir())
    if others and not (out / layout.marker).is_file():
        raise UserError(f"{out}: holds files but no {layout.marker}; {allowed}")
    check_above(out)


def check_above(path: Path) -> None:
    """Raise UserError if nothing can be made at ``path`` because of the folders above it."""
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise UserError(f"{path}: cannot be made, {above} is not a folder that may be written to")


def write_folder(out: Path, layout: Layout, write: Callable[[Path], None]) -> None:
    """Have ``write`` fill a new folder and move it to ``out``.

    Of an earlier such folder in ``out``, every file is replaced or removed; other files there stay. Raises UserError as
    `check_folder`, and if the disk refuses.
    """
    check_folder(out, layout)
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
        try:
            temporary.chmod(0o755)
            write(temporary)
            if not out.exists():
                temporary.rename(out)
            else:
                _replace(temporary, out, layout)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _replace(source: Path, out: Path, layout: Layout) -> None:
    """Move new files over old ones; the marker goes first and comes last: it never tells of others."""
    for name in layout.owned:
        old = out / name
        if old.is_dir() and not old.is_symlink():
            shutil.rmtree(old)
        else:
            old.unlink(missing_ok=True)
    for name in reversed(layout.owned):
        if (source / name).exists():
            (source / name).rename(out / name)
