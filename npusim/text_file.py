"""Reads text that a person or another program wrote: a plain file of bounded size, in UTF-8."""

from __future__ import annotations

from pathlib import Path

from npusim.errors import UserError

MOST_BYTES = 64 << 20


def read_text(path: Path, what: str, most_bytes: int = MOST_BYTES) -> str:
    """The text of ``path``; line ends as they are.

    Raises UserError, which names ``what`` the file should be, if it is no plain file, larger, unreadable or not UTF-8.
    """
    try:
        if path.exists() and not path.is_file():
            kind = "Is a directory" if path.is_dir() else "is a device or pipe"
            raise UserError(f"{path}: not a readable {what} ({kind})")
        with path.open("rb") as file:
            data = file.read(most_bytes + 1)
        if len(data) > most_bytes:
            raise UserError(f"{path}: not a readable {what} (larger than {most_bytes} bytes)")
        return data.decode("utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a readable {what} ({getattr(error, 'strerror', None) or error})") from None
