"""What a user sees where an outside program cannot be installed or fails."""

from __future__ import annotations

import sys

import pytest

from tests.conformance.side_venv import OracleError, call


def test_a_failure_names_the_purpose_the_command_and_its_last_words() -> None:
    program = "import sys; print('REQUIRE() fails'); sys.exit(3)"
    with pytest.raises(OracleError, match=r"(?s)^the oracle: .* ended with 3:\nREQUIRE\(\) fails"):
        call([sys.executable, "-c", program], 60, "the oracle")


def test_a_missing_program_and_one_that_hangs_are_failures_too() -> None:
    with pytest.raises(OracleError, match=r"^the oracle: .*no-such-program"):
        call(["/no-such-program"], 60, "the oracle")
    with pytest.raises(OracleError, match="timed out"):
        call([sys.executable, "-c", "import time; time.sleep(60)"], 1, "the oracle")


def test_pins_of_other_environments_do_not_reach_an_oracle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_CONSTRAINT", ".ci/constraints.txt")
    call([sys.executable, "-c", "import os, sys; sys.exit('PIP_CONSTRAINT' in os.environ)"], 60, "the oracle")
