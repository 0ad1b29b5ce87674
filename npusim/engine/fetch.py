"""FETCH with its decoder as a kernel."""

from __future__ import annotations

from typing import Any

from npusim import delta
from npusim.errors import UserError
from npusim.isa.encoding import Decoded
from npusim.isa.storage_dma import windows


def execute(state: Any, ins: Decoded) -> None:
    """As `npusim.isa.storage_dma.execute`."""
    source, old, target = windows(state, ins)
    try:
        target[...] = source if old is None else delta.decode(source, old)
    except UserError as error:
        raise ValueError(str(error)) from None
