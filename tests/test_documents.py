"""Documents: every folder has its README, links lead somewhere, nothing is left to be filled in."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def tracked(repository: Path) -> list[Path]:
    listed = subprocess.run(["git", "ls-files"], cwd=repository, capture_output=True, text=True, check=True).stdout
    return [Path(line) for line in listed.splitlines()]


def test_every_folder_has_a_readme(tracked: list[Path]) -> None:
    folders = {folder for path in tracked for folder in path.parents} - {Path("npusim/images")}
    assert {folder for folder in folders if folder / "README.md" not in tracked} == set()


def test_links_lead_to_tracked_files(repository: Path, tracked: list[Path]) -> None:
    known = {repository / path for path in tracked} | {repository / up for path in tracked for up in path.parents}
    for path in tracked:
        if path.suffix == ".md":
            for target in re.findall(r"\]\(([^)#:]+)\)", (repository / path).read_text(encoding="utf-8")):
                assert (repository / path.parent / target).resolve() in known, f"{path}: {target}"


def test_nothing_is_left_to_be_filled_in(repository: Path, tracked: list[Path]) -> None:
    for path in tracked:
        if path.suffix == ".md":
            assert not re.search(r"@[A-Z]+@|TODO|FIXME", (repository / path).read_text(encoding="utf-8")), path
