"""The set-up keeps its promises: every direct dependency is pinned, and the targets that people call exist."""

import re
import tomllib
from pathlib import Path


def test_every_direct_dependency_has_an_exact_pin(repository: Path) -> None:
    project = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))
    extras = project["project"]["optional-dependencies"]
    assert {"npusim[metrics]", "npusim[notebooks]", "npusim[sweep]"} <= set(extras["dev"])  # tests need these packages
    wanted = [
        *project["project"]["dependencies"],
        *(name for extra in extras.values() for name in extra if not name.startswith("npusim[")),
        *project["build-system"]["requires"],
    ]
    lines = (repository / ".ci" / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9a-z.]*", pin) for pin in pins)
    pinned = {_normal(pin.split("==")[0]) for pin in pins}
    assert {_normal(re.split(r"[<>=!~\[ ]", name)[0]) for name in wanted} <= pinned


def test_ci_runs_what_the_makefile_offers(repository: Path) -> None:
    targets = re.findall(r"^([a-z-]+):", (repository / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    called = re.findall(
        r"^make ([a-z-]+)", (repository / ".ci" / "run").read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    assert called == ["test", "test-slow"]
    assert {*called, "demo", "check", "clean"} <= set(targets)


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
