"""Every command that a document names exists and takes the options it is shown with; the quick ones run.

Documents are all Markdown files, and the examples in `--help`. Commands stand in `sh` blocks, in indented lines, and in
code spans. What runs is a reduced form of each complete command, stated below, in one folder and in this order.
"""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
import typer
from typer.core import TyperCommand, TyperGroup
from typer.exceptions import TyperException

from npusim.cli import app, main

REPOSITORY = Path(__file__).resolve().parent.parent
PROGRAMS = ("npusim", "python", "make", "pip", ".venv/bin/python", ".venv/bin/npusim", "pytest")

XL2 = "--workload stdit-xl2-16x256x256"
EDGE, TINY = "--workload emoji --hw hwconfigs/edge_8k.yaml", "--workload tiny --hw hwconfigs/tiny_8x8.yaml"
DYNAMIC = "--hw hwconfigs/edge_8k_dynamic.yaml --method dynamic"
REDUCED = {
    "make demo": f"npusim run {TINY} --method cw_tw --out runs/demo",
    f"npusim run {EDGE} --verify all --out runs/all": f"npusim run {TINY} --verify all --out runs/all",
    f"npusim run {EDGE} --act-bits 16 --out runs/a16": f"npusim run {TINY} --act-bits 16 --out runs/a16",
    f"npusim run --timing-only {XL2} --method asq --hw hwconfigs/edge_8k.yaml --out runs/xl2": (
        f"npusim run --timing-only {TINY} --method asq --out runs/xl2"
    ),
    "npusim run --timing-only --workload stdit-xl2-16x512x512 --method asq --hw hwconfigs/edge_8k.yaml "
    "--out runs/xl2-512": (f"npusim run --timing-only {TINY} --method asq --out runs/xl2-512"),
    "npusim run --timing-only --workload emoji --hw hwconfigs/edge_2x4k.yaml --method cw_tw --out runs/two": (
        "npusim run --timing-only --workload tiny --hw hwconfigs/edge_2x4k.yaml --method cw_tw --out runs/two"
    ),
    f"npusim evaluate {EDGE} --out runs/evaluation": f"npusim evaluate {TINY} --captions sheet --out runs/evaluation",
    f"npusim evaluate {EDGE} --captions sheet --out runs/sheet": f"npusim evaluate {TINY} --out runs/sheet",
    f"npusim swap {EDGE} --out runs/swap": (
        f"npusim swap {TINY} --methods tsw --ranges 1,2 --policies blocking,shadow --out runs/swap"
    ),
    f"npusim swap {EDGE} --methods tsq --ranges 10,20 --policies shadow,streamed --delta --out runs/delta": (
        f"npusim swap {TINY} --methods tsq --ranges 2 --policies shadow,streamed --delta --out runs/delta"
    ),
    f"npusim swap {XL2} --hw hwconfigs/edge_8k.yaml --methods tsq --ranges 4,20 --policies blocking,shadow "
    "--out runs/swap-xl2": (
        f"npusim swap {TINY} --methods tsq --ranges 2,4 --policies blocking,shadow --out runs/swap-xl2"
    ),
    f"npusim swap {XL2} --hw hwconfigs/edge_8k.yaml --methods tsw,tsq_pot --ranges 20 --policies blocking,shadow "
    "--out runs/swap-xl2-small": (
        f"npusim swap {TINY} --methods tsw,tsq_pot --ranges 4 --policies blocking,shadow --out runs/swap-xl2-small"
    ),
    "npusim swap --workload stdit-xl2-16x512x512 --hw hwconfigs/edge_8k.yaml --methods tsq --ranges 20 "
    "--policies blocking,shadow --out runs/swap-xl2-512": (
        f"npusim swap {TINY} --methods tsq --ranges 4 --policies blocking,shadow --out runs/swap-xl2-512"
    ),
    "npusim quantize --workload emoji --method tsq --weight-bits 4 --ranges 4 --out tsq.safetensors": (
        "npusim quantize --workload tiny --method tsq --weight-bits 4 --ranges 4 --out tsq.safetensors"
    ),
    "npusim run --workload emoji --hw gemmini_like --attention-bits 8 --out runs/gemmini": (
        "npusim run --workload tiny --hw gemmini_like --attention-bits 8 --verify 1 --out runs/gemmini"
    ),
    f"npusim run --timing-only {EDGE} --method asq --out runs/static": (
        f"npusim run --timing-only {TINY} --method asq --out runs/static"
    ),
    f"npusim run --timing-only {EDGE} --method asq --no-reuse --out runs/static": (
        f"npusim run --timing-only {TINY} --method asq --no-reuse --out runs/static"
    ),
    f"npusim run --timing-only --workload emoji {DYNAMIC} --out runs/dynamic": (
        f"npusim run --timing-only --workload tiny {DYNAMIC} --out runs/dynamic"
    ),
    f"npusim run --timing-only {XL2} {DYNAMIC} --out runs/xl2-dynamic": (
        f"npusim run --timing-only --workload tiny {DYNAMIC} --out runs/xl2-dynamic"
    ),
    "npusim compare runs/demo runs/gemmini": "npusim compare runs/demo runs/gemmini",
    "npusim explain runs/demo/program.npu 78": "npusim explain runs/demo/program.npu 78",
    "npusim calibrate --workload emoji --out models/calibration/emoji.safetensors": (
        "npusim calibrate --workload tiny --out calibration.safetensors"
    ),
    "npusim report runs/demo": "npusim report runs/demo",
    "npusim trace runs/demo --window 0:20000 --out runs/demo.pftrace": (
        "npusim trace runs/demo --window 0:20000 --out runs/demo.pftrace"
    ),
    "npusim sweep hwconfigs/sweeps/tiny.yaml --jobs 2 --out runs/sweep": (
        "npusim sweep hwconfigs/sweeps/tiny.yaml --jobs 2 --out runs/sweep"
    ),
    "npusim rtl --hw hwconfigs/edge_8k.yaml --out build/rtl": "npusim rtl --hw hwconfigs/edge_8k.yaml --out build/rtl",
    "npusim hw list": "npusim hw list",
    "npusim hw new my_npu --template edge_8k --folder build/machines": (
        "npusim hw new my_npu --template edge_8k --folder build/machines"
    ),
    "npusim hw check build/machines/my_npu.yaml": "npusim hw check build/machines/my_npu.yaml",
    "npusim hw show build/machines/my_npu.yaml": "npusim hw show build/machines/my_npu.yaml",
}
"""What is documented, and what runs in its place: small sizes, the same paths through the code."""

TABLES, TOSA, RELEASED, MANUAL = (
    "tests/npusim/tables",
    "tests/npusim/test_translation.py, tests/compiler/tosa",
    "needs a checkpoint that is not part of this project; the same options: tests/models/test_xl.py",
    "tests/npusim/test_isa_manual.py",
)
RUN_ELSEWHERE = {
    # hours at full size; the options on the tiny workload
    "npusim run --workload stdit-xl2-16x256x256 --hw hwconfigs/edge_8k.yaml --method asq --integer-only "
    "--verify-sample 0.01 --out runs/xl2": "tests/npusim/test_unfinished.py",
    "npusim evaluate --tables integer --out runs/tables": TABLES,
    "npusim evaluate --tables all --out runs/tables": TABLES,
    "npusim evaluate --tables all --out DIR": TABLES,
    "npusim bench": "tests/npusim/test_bench.py",
    "npusim hw check FILE": "tests/npusim/test_hw.py",
    "npusim verify runs/demo --tosa": TOSA,
    "npusim verify runs/demo --tosa --block 0": TOSA,
    "npusim verify runs/demo --tosa --step 5": TOSA,
    "npusim verify quantized.safetensors --tosa --hw hwconfigs/edge_8k.yaml": TOSA,
    f"npusim calibrate {XL2} --checkpoint OpenSora-v1-16x256x256.pth --text t5.safetensors --prompts 10 --steps 20 "
    "--out stats.safetensors": RELEASED,
    f"npusim quantize {XL2} --checkpoint OpenSora-v1-16x256x256.pth "
    "--calibration stats.safetensors --method asq --out asq.safetensors": RELEASED,
    "npusim asm example.s --hw hwconfigs/tiny_8x8.yaml --out example.npu": MANUAL,
    "npusim verify example.npu": MANUAL,
    "npusim explain example.npu 1": MANUAL,
}
"""Complete commands that other tests run, and where."""


class Documented(NamedTuple):
    """A command, the file that shows it, and whether it is there to be typed (a block) or named in a sentence."""

    source: str
    text: str
    block: bool


def _block_commands(text: str) -> Iterator[str]:
    """Lines of a block without comments, continued lines joined."""
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        command = re.sub(r"\s+#.*$", "", line).strip()
        if command and command.split()[0] in PROGRAMS:
            yield re.sub(r"\s+", " ", command)


def _documented() -> list[Documented]:
    listed = subprocess.run(
        ["git", "ls-files", "*.md"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout
    found = []
    for name in listed.splitlines():
        text = (REPOSITORY / name).read_text(encoding="utf-8")
        fence = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
        blocks = [match[2] for match in fence.finditer(text) if match[1] == "sh"]
        rest = fence.sub("", text)
        blocks += re.findall(r"(?:^ {4,}.+\n)+", rest, re.MULTILINE)
        found += [Documented(name, command, True) for block in blocks for command in _block_commands(block)]
        spans = [re.sub(r"\s+", " ", span) for span in re.findall(r"`([^`]+)`", rest)]
        found += [Documented(name, span, False) for span in spans if span.split(" ")[0] in PROGRAMS and " " in span]
    for name, command in _all_commands():
        examples = re.findall(r"npusim [^,]*(?:,[^ ][^,]*)*", (command.epilog or "").partition("Example: ")[2])
        found += [Documented(f"npusim {name} --help", example.removesuffix("."), True) for example in examples]
    return found


def _root() -> TyperGroup:
    root = typer.main.get_command(app)
    assert isinstance(root, TyperGroup)
    return root


@cache
def _all_commands() -> tuple[tuple[str, TyperCommand], ...]:
    return tuple(_leaves())


def _leaves() -> Iterator[tuple[str, TyperCommand]]:
    for name, command in _root().commands.items():
        leaves = (
            {f"{name} {n}": c for n, c in command.commands.items()}
            if isinstance(command, TyperGroup)
            else {name: command}
        )
        for full, leaf in leaves.items():
            assert isinstance(leaf, TyperCommand)
            yield full, leaf


FRAGMENT = ("MissingParameter", "BadOptionUsage")
"""What parsing says of `npusim verify --tosa` and `npusim asm --hw` in a sentence: something else must follow."""
DOCUMENTED = _documented()
OURS = sorted({d._replace(text=d.text.removeprefix(".venv/bin/")) for d in DOCUMENTED if "npusim" in d.text.split()[0]})


def _parsed(text: str) -> bool:
    """Whether a command is complete; fails for one that can be none: an unknown name, option or value."""
    _, *words = shlex.split(text.partition(" > ")[0])
    if words == ["--help"]:
        return False
    known = dict(_all_commands())
    name = words[0] if words[0] in known else " ".join(words[:2])
    if name not in known:
        assert len(words) == 1, f"no such command: {name}"
        assert words[0] in _root().commands, f"no such command: {name}"
        return False  # a group by itself, such as `npusim hw`
    try:
        known[name].make_context(name, words[len(name.split()) :])
    except TyperException as error:
        if type(error).__name__ in FRAGMENT:
            return False
        raise
    return True


@pytest.mark.parametrize("documented", OURS, ids=[f"{d.source}: {d.text}" for d in OURS])
def test_npusim_takes_the_command(documented: Documented) -> None:
    complete = _parsed(documented.text)
    if documented.block:
        assert complete, "a command that is to be typed must be complete"
    for word in shlex.split(documented.text):
        if word.startswith("hwconfigs/"):
            assert (REPOSITORY / word).exists()


def test_every_complete_command_is_run_somewhere() -> None:
    """In its reduced form here, or by the tests that are named; and nothing stands there that no document shows."""
    complete = {
        d.text for d in OURS if not d.source.startswith("npusim") or d.source.endswith(".md") if _parsed(d.text)
    }
    mapped = {*REDUCED, *RUN_ELSEWHERE} - {"make demo"}
    assert complete - mapped == set(), "state a reduced form in REDUCED, or where it is run"
    assert mapped - complete == set(), "no document shows these any more"
    for places in RUN_ELSEWHERE.values():
        assert all((REPOSITORY / path).exists() for path in re.findall(r"tests/[\w/.]+", places))


def test_modules_scripts_and_targets_exist() -> None:
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"][
        "optional-dependencies"
    ]
    for documented in DOCUMENTED:
        program, *words = shlex.split(documented.text)
        where = f"{documented.source}: {documented.text}"
        if program == "make":
            assert words[0] in targets, where
        elif program == "pip":
            assert set(re.findall(r"\[(\w+)\]", documented.text)) <= set(extras), where
        elif (
            program.endswith("python")
            and words[0] == "-m"
            and words[1].split(".")[0] in ("npusim", "models", "compiler")
        ):
            spec = importlib.util.find_spec(words[1])
            assert spec is not None, where
            assert spec.origin is not None
            source = (
                Path(spec.origin).with_name("__main__.py") if spec.submodule_search_locations else Path(spec.origin)
            )
            for option in re.findall(r"--[a-z][a-z-]*", documented.text):
                assert f'"{option}"' in source.read_text(encoding="utf-8"), where
        paths = [word for word in words if re.match(r"(tests|notebooks|models|hwconfigs)/", word)]
        assert all((REPOSITORY / path).exists() for path in paths), where


def _help(name: str, command: TyperCommand) -> str:
    return command.get_help(command.context_class(command, info_name=f"npusim {name}", terminal_width=100))


def test_help_fits_a_screen_and_names_its_library_call() -> None:
    """40 lines of 100 columns; an example; and "(module.function)" that can be imported."""
    for name, command in _all_commands():
        text = _help(name, command)
        assert len(text.splitlines()) <= 40, f"{name}: {len(text.splitlines())} lines"
        assert "Example: npusim" in text, name
        calls = re.findall(r"\(((?:npusim|compiler|models)(?:\.\w+)+)\)", re.sub(r"\s+", " ", command.help or ""))
        assert calls, f"{name}: names no library call"
        for call in calls:
            module, _, function = call.rpartition(".")
            try:
                found = hasattr(importlib.import_module(module), function)
            except ImportError:
                found = False
            assert found or importlib.util.find_spec(call), f"{name}: {call}"


def test_the_list_of_commands_fits_a_screen_and_cuts_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert len(text.splitlines()) <= 50
    assert "..." not in text.partition("Commands:")[2]
    assert all(re.search(rf"^  {name} +\w", text, re.MULTILINE) for name in _root().commands)


@pytest.mark.slow
def test_every_quick_command_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hwconfigs").symlink_to(REPOSITORY / "hwconfigs")
    for documented, reduced in REDUCED.items():
        assert main(shlex.split(reduced)[1:]) == 0, f"{documented}: {capsys.readouterr().err}"
        assert "error" not in capsys.readouterr().err


def _python_commands() -> list[str]:
    """Documented scripts, modules and runs of pytest, with what is optional or a place to fill in left out."""
    found = set()
    for documented in DOCUMENTED:
        text = re.sub(r" \[.*|#.*", "", documented.text).removeprefix(".venv/bin/")
        if text.startswith(("python ", "pytest ")) and text != "python -m venv":
            found.add(text)
    return sorted(found)


@pytest.mark.slow
@pytest.mark.parametrize("text", _python_commands())
def test_python_commands_start(text: str) -> None:
    """Scripts and modules take ``--help``, or write what is there already; pytest collects what it is told to run.

    What they do is tested by the tests of their folders; here, that they can be started as they are shown.
    """
    words = shlex.split(text)
    words = ["-m", *words] if words[0] == "pytest" else words[1:]
    extra = ["--collect-only", "-q"] if "pytest" in words[:2] else ["--help"]
    before = subprocess.run(["git", "status", "--porcelain"], cwd=REPOSITORY, capture_output=True, text=True).stdout
    done = subprocess.run([sys.executable, *words, *extra], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    after = subprocess.run(["git", "status", "--porcelain"], cwd=REPOSITORY, capture_output=True, text=True).stdout
    assert after == before
