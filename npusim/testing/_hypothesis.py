"""hypothesis, or a message that says what to install: only the strategies need it."""

from __future__ import annotations

try:
    import hypothesis
    from hypothesis import strategies as st
except ImportError as error:
    raise ImportError(
        "npusim.testing.strategies and networks need hypothesis, which is not installed: pip install 'npusim[testing]'"
    ) from error

__all__ = ["hypothesis", "st"]
