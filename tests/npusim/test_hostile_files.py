"""Files made to hurt: each refused with one message, under limits of memory and time that the system sets."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.numpy import save

from npusim.program_file import save_program
from tests.npusim.strategies import small_program

MEMORY_BYTES, SECONDS = 1 << 29, 60
CODE = f"""
import json, pathlib, resource, sys
import torch, npusim.run, npusim.sweep.run, npusim.swap, npusim.translation
from npusim.cli import main
size = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + {MEMORY_BYTES},) * 2)
used = resource.getrusage(resource.RUSAGE_SELF).ru_utime
resource.setrlimit(resource.RLIMIT_CPU, (int(used) + {SECONDS},) * 2)
for name, command in json.load(sys.stdin):
    print(f"== {{name}}", file=sys.stderr, flush=True)
    print(name, main(command), flush=True)
"""


def tensors(header: dict[str, object] | bytes, body: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file with this header, whatever it says."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + body


def entry(shape: list[int], begin: int = 0, end: int = 0, dtype: str = "U8") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


YAML = {
    "aliases": "a: &a [x, x, x, x, x, x, x, x]\nb: &b [*a, *a, *a, *a, *a, *a, *a, *a]\nc: [*b, *b, *b, *b, *b]\n",
    "merge": "a: &a {x: 1}\nb:\n  <<: *a\n",
    "tag": "a: !!python/object/apply:os.system [touch hurt]\n",
    "flow": "a: " + "[" * 20_000,
    "mappings": "a: " + "{a: " * 15_000,
    "sequences": "a:\n  " + "- " * 20_000,
    "keys": "? " * 20_000,
    "long": "a: " + "9" * 60_000,
    "large": "# " + "x" * 100_000,
    "quoted": 'a: "' + "\\u0000" * 10_000,
    "binary": "\x00\x01\x02",
    "twice": "a: 1\na: 2\n",
    "documents": "a: 1\n---\na: 2\n" * 100,
    "colons": "a" + ":" * 60_000,
    "plain": "a:\n" + "  b\n" * 15_000,
    "empty": "",
}
TENSORS = {
    "length": tensors(b"{}", length=2**63),
    "longer": tensors(b"{}", length=2**20),
    "no json": tensors(b"\xff" * 64),
    "deep": tensors(b'{"a":' * 100_000),
    "array": tensors(b"[]"),
    "negative": tensors({"a": entry([-1], 0, 1)}, b"x"),
    "overflow": tensors({"a": entry([2**62, 2**62])}),
    "huge": tensors({"a": entry([2**40], 0, 2**40)}),
    "empty but long": tensors({"a": entry([2**62, 0])}),
    "overlap": tensors({"a": entry([4], 0, 4), "b": entry([4], 2, 6)}, b"xxxxxx"),
    "backwards": tensors({"a": entry([4], 4, 0)}, b"xxxx"),
    "type": tensors({"a": entry([1], 0, 1, "X9")}, b"x"),
    "metadata": tensors({"__metadata__": {"format": 1}}),
    "names": tensors({"../../hurt": entry([0]), "__metadata__": {"format": "npusim-program"}}),
    "nothing": b"",
    "short": b"\x08\x00",
}
HEADERS = {"deep header": "[" * 100_000, "no header": "", "long number": '{"machine": ' + "9" * 100_000 + "}"}


@pytest.fixture
def hw(repository: Path) -> str:
    return str(repository / "hwconfigs" / "tiny_8x8.yaml")


def programs(folder: Path) -> dict[str, bytes]:
    """Program files with a right digest around wrong contents."""
    from safetensors.numpy import load

    from npusim.program_file import digest

    path = folder / "whole"
    save_program(small_program(), path)
    whole = path.read_bytes()
    path.unlink()
    arrays = load(whole)
    header = json.loads(whole[8 : 8 + int.from_bytes(whole[:8], "little")])["__metadata__"]
    fields = json.loads(header["header"])
    large = {"dram_bytes": 2**40, "buffers": {"x": [0, "u8", [2**62, 2**62]]}}
    texts = HEADERS | {f"large {name}": json.dumps(fields | {name: value}) for name, value in large.items()}
    texts |= {"negative": json.dumps(fields | {"buffers": {"x": [-1, "u8", [-4]]}}), "cut": header["header"][:-9]}
    return {
        name: save(arrays, header | {"header": text, "sha256": digest(arrays, text)}) for name, text in texts.items()
    } | {"cut file": whole[: len(whole) // 2]}


@pytest.mark.slow
def test_hostile_files_end_in_one_message(tmp_path: Path, repository: Path, hw: str) -> None:
    inputs, commands = tmp_path / "inputs", []

    def add(kind: str, name: str, data: bytes, *command: str) -> None:
        path = inputs / f"{kind} {name}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        commands.append((path.name, [part.replace("FILE", str(path)) for part in command]))

    out, work = str(tmp_path / "out"), ["--workload", "tiny"]
    for number, (name, text) in enumerate(YAML.items()):
        add("machine", name, text.encode(), "hw", "check", "FILE")  # a sweep file is read by the same code
        if number % 4 == 0:
            add("sweep", name, text.encode(), "sweep", "FILE", "--out", out)
        add("overrides", name, text.encode(), "quantize", *work, "--overrides", "FILE", "--out", out)
    machine = f"schema_version: 1\nworkload: tiny\nhw: {hw}\n"
    for name, text in {
        "grid": "axes: {" + ", ".join(f"machine.{x}: {list(range(1, 900))}" for x in ("clock_mhz", "barrier_cycles")),
        "path": "axes: {machine.../../x: [1]}",
        "hw": "hw: /dev/zero\naxes: {method: [x]}",
        "fidelity": "axes: {method: [x]}\nfidelity: /dev/zero",
    }.items():
        add("sweep of", name, f"{machine}{text}".encode(), "sweep", "FILE", "--out", out)
    readers = {
        "quantized": ("compile", "FILE", "--hw", hw, "-o", out),
        "statistics": ("quantize", *work, "--calibration", "FILE", "--out", out),
        "checkpoint": ("quantize", *work, "--checkpoint", "FILE", "--out", out),
        "text": ("calibrate", *work, "--text", "FILE", "--out", out),
    }
    for number, (name, data) in enumerate(TENSORS.items()):
        add("program", name, data, "verify", "FILE")
        for kind in list(readers)[number % 2 :: 2]:  # one library reads all of them
            add(kind, name, data, *readers[kind])
    for name, data in programs(tmp_path).items():
        add("program of", name, data, "verify", "FILE")
    for name, data in {"number": b"barrier layer=" + b"9" * 100_000, "fields": b"barrier" + b" x" * 100_000,
                       "line": b"x" * 1_000_000, "text": b"\xff\xfe", "ports": b"\x00"}.items():  # fmt: skip
        add("assembler", name, data, "asm", "FILE", "-o", out)
    add("words", "cut", bytes(127), "disasm", "FILE")
    for device in ("/dev/zero", "/dev/null"):
        for command in (
            ["asm", device, "-o", out], ["disasm", device], ["verify", device], ["hw", "check", device],
            ["sweep", device, "--out", out], ["compile", device, "--hw", hw, "-o", out], ["report", device],
            ["quantize", *work, "--overrides", device, "--out", out], ["trace", device, "--out", out],
            ["quantize", *work, "--calibration", device, "--out", out], ["compare", device, device],
            ["quantize", *work, "--checkpoint", device, "--out", out],
            ["calibrate", *work, "--text", device, "--out", out],
        ):  # fmt: skip
            if (command[0], device) != ("asm", "/dev/null"):
                commands.append((f"{device} {command[0]}", command))
    before = sorted(tmp_path.rglob("*"))
    done = subprocess.run(
        [sys.executable, "-c", CODE], input=json.dumps(commands), text=True, capture_output=True, cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(repository)}, timeout=2400,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    assert done.stdout.splitlines() == [f"{name} 2" for name, _ in commands]
    messages = done.stderr.split("== ")[1:]
    assert len(messages) == len(commands)
    for message in messages:
        assert 0 < len(message.split("\n", 1)[1].strip()) < 3000, message[:3000]
    assert sorted(tmp_path.rglob("*")) == before
