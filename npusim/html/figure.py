"""What every figure of the report is: a picture, and the numbers in it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from npusim.html.style import drawing, png
from npusim.report import csv_bytes


@dataclass(frozen=True, eq=False)
class Picture:
    """A figure as PNG and CSV; ``name`` is that of both files, ``caption`` says what is seen and how it is defined."""

    name: str
    title: str
    caption: str
    png: bytes
    csv: bytes

    @classmethod
    def of(
        cls, name: str, title: str, caption: str, figure: Figure, header: Sequence[str], rows: Iterable[Sequence[Any]]
    ) -> Picture:
        """Draws a figure; rows of its data below ``header``, with units in the names."""
        with drawing():
            return cls(name, title, caption, png(figure), csv_bytes(header, rows))
