"""The manual is what the table says today, complete, and its figures are those that are measured."""

from __future__ import annotations

import json

import pytest

from npusim import accuracy
from npusim.isa import ALL, manual
from npusim.isa.encoding import HEADER


def test_the_manual_is_not_stale() -> None:
    """On failure run `python -m npusim.isa.manual`."""
    assert manual.FILE.read_text(encoding="utf-8") == manual.manual()


def test_every_field_rule_and_cycle_count_is_explained() -> None:
    text = manual.manual()
    for spec in ALL:
        assert spec.summary
        assert spec.cycles.__doc__, f"{spec.mnemonic}: cycles without a docstring"
        assert f"#### {spec.mnemonic}\n" in text
        for f in (*HEADER, *spec.fields):
            assert f.doc, f"{spec.mnemonic}.{f.name} without a meaning"
        for rule in spec.rules:
            assert rule.allowed in text
            assert set(rule.fields) <= set(spec.by_name)


def test_every_approximating_instruction_has_a_measured_error() -> None:
    figures = json.loads(manual.ACCURACY.read_text(encoding="utf-8"))
    assert set(figures) == {"table", "table8", "lnstat", "lnapply", "smexp", "recip", "rtquant"}
    assert all(figures[name] for name in figures)


@pytest.mark.slow
def test_the_figures_are_those_measured() -> None:
    """On failure run `python -m npusim.accuracy`, then `python -m npusim.isa.manual`."""
    assert json.loads(manual.ACCURACY.read_text(encoding="utf-8")) == accuracy.measure()
