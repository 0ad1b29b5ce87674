"""The test file that the README shows is run as its reader would run it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path


def test_example_of_the_readme(repository: Path, tmp_path: Path) -> None:
    text = (repository / "npusim" / "testing" / "README.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(.*?)```", text, re.S)
    assert code is not None
    path = tmp_path / "test_mine.py"
    path.write_text(code[1])
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), str(path)]
    environment = {**os.environ, "PYTHONPATH": str(repository)}

    def run(**variables: str) -> str:
        env = environment | variables
        return subprocess.run(command, cwd=repository, env=env, capture_output=True, text=True).stdout

    assert "1 failed, 3 passed" in (output := run()), output
    assert "no such golden file; write it with NPUSIM_UPDATE_GOLDEN=1" in output
    assert "4 passed" in (output := run(NPUSIM_UPDATE_GOLDEN="1")), output
    assert "4 passed" in (output := run()), output
