"""Makes the notebooks from the py:percent scripts beside them, and executes them.

``python notebooks/pair.py`` writes each script's ``.ipynb``; with ``--execute FOLDER`` it leaves those alone and writes
executed copies, outputs included, into FOLDER. Needs the extra `notebooks`.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).resolve().parent
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def scripts() -> list[Path]:
    """The scripts that are notebooks, in their order."""
    return sorted(HERE.glob("[0-9][0-9]_*.py"))


def notebook(script: Path) -> nbformat.NotebookNode:
    """The notebook of a script, without outputs; equal scripts give equal notebooks."""
    made = jupytext.read(script, fmt="py:percent")
    for index, cell in enumerate(made.cells):
        cell.id = f"cell-{index:02}"
    made.metadata = nbformat.from_dict({"jupytext": {"formats": "ipynb,py:percent"}, "kernelspec": KERNEL})
    return made


def text(made: nbformat.NotebookNode) -> str:
    """What stands in the file."""
    return nbformat.writes(made, version=4) + "\n"


def execute(script: Path, folder: Path, **environment: str) -> nbformat.NotebookNode:
    """Run a script's notebook from top to bottom in ``folder``; variables of the environment are for its kernel.

    Raises CellExecutionError with the cell and its traceback at the first one that fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    made = notebook(script)
    client = NotebookClient(
        made,
        timeout=None,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
        extra_arguments=[
            "--log-level=ERROR"
        ],  # every start warns that the port, on this machine only, is not encrypted
    )
    client.execute(env={**os.environ, **environment})
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--execute", type=Path, metavar="FOLDER", help="write executed copies into FOLDER instead")
    parser.add_argument("names", nargs="*", help="only notebooks that begin so, e.g. 02")
    arguments = parser.parse_args()
    chosen = [s for s in scripts() if not arguments.names or s.name.startswith(tuple(arguments.names))]
    if not chosen:
        sys.exit(f"error: no notebook begins with {' or '.join(arguments.names)}; there are {len(scripts())} in {HERE}")
    for script in chosen:
        start = time.perf_counter()
        out = (arguments.execute or HERE) / f"{script.stem}.ipynb"
        made = execute(script, arguments.execute) if arguments.execute else notebook(script)
        out.write_text(text(made), encoding="utf-8")
        print(f"{out} ({time.perf_counter() - start:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
