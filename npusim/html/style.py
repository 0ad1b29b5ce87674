"""How figures look: colours that colour-blind readers can tell apart, hatches that survive black-and-white print.

Colours are those of Okabe and Ito (2008). Equal figures give equal bytes: fonts are matplotlib's own.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from npusim.timing import CAUSES

INK, GRID = "#1a1a1a", "#d9d9d9"
BLUE, ORANGE, SKY, VERMILION, GREEN, PURPLE, YELLOW, GREY = (
    "#0072B2", "#E69F00", "#56B4E9", "#D55E00", "#009E73", "#CC79A7", "#F0E442", "#BBBBBB",
)  # fmt: skip
CYCLE = ((BLUE, ""), (ORANGE, "///"), (GREEN, "..."), (PURPLE, "xxx"), (SKY, "\\\\\\"), (YELLOW, "ooo"), (GREY, ""))
"""Colour and hatch of the first, second, ... of some things."""
MARKERS = "osD^vP*X"
DASHES = ("-", "--", ":", "-.")

_OF_CAUSE = {
    "busy": (BLUE, ""),
    "wait_token_raw": (ORANGE, "///"),
    "wait_token_war": (SKY, "\\\\\\"),
    "wait_dram": (VERMILION, "xxx"),
    "wait_bank": (GREEN, "+++"),
    "wait_param_swap": (PURPLE, "ooo"),
    "drain": (YELLOW, "---"),
    "wait_barrier": (GREY, "..."),
    "idle_done": ("#FFFFFF", ""),
}
_SPARE = (("#8C564B", "***"),)

DPI = 110
SETTINGS: dict[str, Any] = {
    "font.size": 10.0,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": GRID,
    "hatch.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 9.0,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "font.family": ["DejaVu Sans"],
}


def of_causes() -> list[tuple[str, str, str]]:
    """(cause, colour, hatch) of every cause, in the ledger's order; causes unknown here take spare ones."""
    spare = iter(_SPARE)
    return [(cause, *(_OF_CAUSE.get(cause) or next(spare))) for cause in CAUSES]


def of_number(index: int) -> tuple[str, str]:
    """Colour and hatch of the thing with this number."""
    return CYCLE[min(index, len(CYCLE) - 1)]


def words(cause: str) -> str:
    """A cause in words, for legends."""
    return {"wait_token_raw": "wait for data", "wait_token_war": "wait for space", "idle_done": "idle"}.get(
        cause, cause.replace("_", " ").replace("dram", "DRAM")
    )


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, sizes in inches; draw it inside `drawing`."""
    return Figure(figsize=(width, height), layout="constrained")


def drawing() -> AbstractContextManager[None]:
    """The settings of every figure of the report, from matplotlib's own defaults whatever the user has."""
    settings: dict[Any, Any] = {**mpl.rcParamsDefault, **SETTINGS}
    return mpl.rc_context(settings)


def thousands(axis: Axes, which: str = "x") -> None:
    """Numbers of cycles with separators."""
    target = axis.xaxis if which == "x" else axis.yaxis
    target.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def legend_below(figure: Figure, axis: Axes, columns: int) -> None:
    """One legend for all panels, of one panel's labels."""
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, handlelength=2.2, handleheight=1.2)


def png(figure: Figure) -> bytes:
    """The figure as PNG without the drawing program's name."""
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=DPI, metadata={"Software": None})
    return data.getvalue()


def shorter(names: Sequence[str], limit: int = 34) -> list[str]:
    """Names for axes, cut in the middle."""
    return [name if len(name) <= limit else f"{name[: limit // 2 - 1]}…{name[-limit // 2 :]}" for name in names]
