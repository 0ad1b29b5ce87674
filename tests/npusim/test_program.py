"""A program file comes back as it was saved, or not at all: every damage has its message."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from npusim.errors import UserError
from npusim.isa import BY_MNEMONIC
from npusim.isa.assembly import assemble
from npusim.isa.encoding import encode
from npusim.program import Buffer, Program
from npusim.program_file import FORMAT_VERSION, TENSORS, digest, load_program, save_program
from tests.npusim.strategies import DRAM, machine, small_program


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "program.npu"


def refused(path: Path) -> str:
    """The message of loading; it names the file."""
    with pytest.raises(UserError) as caught:
        load_program(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


def test_round_trip(path: Path) -> None:
    program = small_program()
    save_program(program, path)
    again = load_program(path)
    for name in TENSORS:
        assert getattr(again, name).dtype == getattr(program, name).dtype
        assert np.array_equal(getattr(again, name), getattr(program, name))
    for name in (
        "machine",
        "set_address",
        "range_address",
        "range_of_step",
        "dram_bytes",
        "buffers",
        "layers",
        "host",
        "steps",
    ):
        assert getattr(again, name) == getattr(program, name)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_bases_of_a_step() -> None:
    program = small_program()
    assert program.bases(0) == [0, 64, 0xC0, 192, *[0] * 6]
    assert program.bases(1) == [0, 128, 0xE0, 192, *[0] * 6]


def test_base_of_a_time_range() -> None:
    ranges = {"range_sets": np.zeros((2, 8), np.uint8), "range_address": 256, "range_of_step": (1, 0)}
    program = small_program(lambda v: v.update(ranges))
    assert [program.bases(step)[3] for step in (0, 1)] == [264, 256]
    assert program.limits["dram", 3] == 8


def test_the_same_program_gives_the_same_bytes_in_every_process(path: Path, repository: Path) -> None:
    save_program(small_program(), path)
    first = path.read_bytes()
    code = (
        "from pathlib import Path; from npusim.program_file import save_program; "
        "from tests.npusim.strategies import small_program; "
        f"save_program(small_program(), Path({str(path)!r}))"
    )
    for _ in range(2):  # safetensors itself orders its metadata at random
        subprocess.run([sys.executable, "-c", code], cwd=repository, check=True, timeout=100)
        assert path.read_bytes() == first


def test_a_failed_write_leaves_the_old_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_program(small_program(), path)
    before = path.read_bytes()

    def fail(self: Path, target: Path) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        save_program(small_program(lambda v: v.update(layers=("", "other"))), path)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_missing_file(path: Path) -> None:
    assert refused(path) == "no such program file"
    path.mkdir()
    assert refused(path) == f"is a folder; did you mean {path / 'program.npu'}?"


@pytest.mark.parametrize("kept", [0, 1, 7, 8, 100, 2000, -1])
def test_truncated_file(path: Path, kept: int) -> None:
    save_program(small_program(), path)
    path.write_bytes(path.read_bytes()[:kept])
    assert refused(path).startswith("truncated or damaged program file")


@pytest.mark.parametrize("size", [2**63, 2**64 - 1, 2**40, 101 * 2**20, 3])
def test_absurd_header_size(path: Path, size: int) -> None:
    save_program(small_program(), path)
    path.write_bytes(size.to_bytes(8, "little") + path.read_bytes()[8:])
    assert refused(path).startswith("truncated or damaged program file")


def test_every_altered_byte_of_the_tensors_is_noticed(path: Path) -> None:
    save_program(small_program(), path)
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    for at in [*range(start, len(data), 97), len(data) - 1]:
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        assert refused(path) == "contents do not match their SHA-256; the file was altered"


def test_no_altered_byte_of_the_header_gives_another_program(path: Path) -> None:
    """An altered byte is refused, unless it only re-spells the same program."""
    save_program(small_program(), path)
    data = path.read_bytes()
    original = load_program(path)
    for at in range(8, 8 + int.from_bytes(data[:8], "little"), 41):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        loaded = None
        with suppress(UserError):
            loaded = load_program(path)
        assert loaded is None or (loaded.buffers == original.buffers and loaded.machine == original.machine)


def write(path: Path, tensors: dict[str, Any], **metadata: str) -> None:
    path.write_bytes(save(tensors, metadata))


@pytest.mark.parametrize("data", [b"", b"not a program", b"\x80\x04\x95pickle", b"\x00" * 64])
def test_foreign_bytes(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    assert refused(path).startswith("truncated or damaged program file")


def parts(program: Program) -> tuple[dict[str, Any], dict[str, str]]:
    """The tensors and the metadata that `save_program` writes."""
    header = json.dumps(
        {
            "step_counts": [len(program.step)],
            "code_of_step": [],
            "swap": None,
            "machine": program.machine.model_dump(mode="json"),
            "set_address": program.set_address,
            "range_address": program.range_address,
            "range_of_step": list(program.range_of_step),
            "dram_bytes": program.dram_bytes,
            "buffers": {n: [b.address, b.dtype, list(b.shape)] for n, b in program.buffers.items()},
            "layers": list(program.layers),
            "host": program.host,
        }
    )
    return {name: getattr(program, name) for name in TENSORS}, {
        "format": "npusim-program",
        "version": str(FORMAT_VERSION),
        "header": header,
    }


def resealed(path: Path, tensors: dict[str, Any], metadata: dict[str, str]) -> None:
    """A file with a right SHA-256, as somebody who means harm would write it."""
    sha256 = digest(tensors, metadata.get("header", ""))
    write(path, tensors, **metadata, sha256=sha256)


def test_a_safetensors_file_of_another_kind(path: Path) -> None:
    write(path, {"weight": np.zeros(3, np.float32)}, format="pt")
    assert refused(path) == "not an npusim program file"
    write(path, {"weight": np.zeros(3, np.float32)})
    assert refused(path) == "not an npusim program file"


@pytest.mark.parametrize("name", TENSORS)
def test_a_missing_or_misshapen_tensor(path: Path, name: str) -> None:
    tensors, metadata = parts(small_program())
    resealed(path, {n: t for n, t in tensors.items() if n != name}, metadata)
    assert refused(path) == "not an npusim program file"
    resealed(path, {**tensors, "extra": np.zeros(1, np.uint8)}, metadata)
    assert refused(path) == "not an npusim program file"
    resealed(path, {**tensors, name: tensors[name].astype(np.float32)}, metadata)
    assert refused(path) == "a tensor has the wrong type or rank"
    resealed(path, {**tensors, name: tensors[name][None]}, metadata)
    assert refused(path) == "a tensor has the wrong type or rank"


@pytest.mark.parametrize("version", ["0", "5", "", "6.0"])
def test_another_version(path: Path, version: str) -> None:
    tensors, metadata = parts(small_program())
    resealed(path, tensors, {**metadata, "version": version})
    assert refused(path) == f"format version {version!r}; this npusim reads version 6"


def test_a_wrong_or_missing_digest(path: Path) -> None:
    tensors, metadata = parts(small_program())
    for extra in ({}, {"sha256": hashlib.sha256(b"").hexdigest()}):
        write(path, tensors, **metadata, **extra)
        assert refused(path) == "contents do not match their SHA-256; the file was altered"


@pytest.mark.parametrize(
    "header",
    ["", "{", "3", "null", "[]", '"text"', "{}", "[" * 100_000, '{"machine": null}', '{"machine": {}, "buffers": 3}'],
    ids=lambda text: text[:20],
)
def test_a_header_that_is_no_header(path: Path, header: str) -> None:
    tensors, metadata = parts(small_program())
    resealed(path, tensors, {**metadata, "header": header})
    assert refused(path).startswith("damaged header")


NOISE = [192, "i16", [2, 16]]
FIELDS: list[tuple[dict[str, Any], str]] = [
    ({"dram_bytes": 512.0}, r"dram_bytes is 512\.0; allowed: an integer"),
    ({"dram_bytes": "512"}, "dram_bytes is '512'"),
    ({"dram_bytes": True}, "dram_bytes is True"),
    ({"dram_bytes": 10**30}, "dram_bytes is 1000000000000000000000000000000"),
    ({"dram_bytes": 0}, "needs 0 bytes of DRAM"),
    ({"dram_bytes": 1 << 39}, "needs 549755813888 bytes of DRAM; the machine's budget is 134217728"),
    ({"set_address": -1}, "set_address is -1"),
    ({"range_address": 513}, r"range_sets at bytes 513\.\.513 lies outside the program's 512 bytes of DRAM"),
    ({"range_of_step": [0]}, r"range_of_step = \[0\]: allowed one of 0\.\.0 for each of 2 steps"),
    ({"range_of_step": [0, 1]}, r"range_of_step = \[0, 1\]: allowed one of 0\.\.0"),
    ({"range_of_step": [0, -1]}, "range_of_step is -1"),
    ({"range_of_step": 7}, "damaged header"),
    ({"set_address": 480}, r"sets at bytes 480\.\.608 lies outside the program's 512 bytes of DRAM"),
    ({"buffers": {"noise": [500, "i16", [2, 16]]}}, r"noise at bytes 500\.\.564 lies outside"),
    ({"buffers": {"noise": [0, "i16", [10**9, 10**9]]}}, "noise at bytes 0.* lies outside"),
    ({"buffers": {"noise": [0, "i16", [10**30]]}}, "buffer noise: size is 1000"),
    ({"buffers": {"noise": [0, "i16", [-1, 2]]}}, "buffer noise: size is -1"),
    ({"buffers": {"noise": [0, "f32", [2]]}}, "buffer noise: element type 'f32'; allowed: u8, i8, i16, i32"),
    ({"buffers": {"noise": NOISE, "a": [400, "u8", []]}}, r"buffer a: 0 sizes; allowed 1\.\.8"),
    ({"buffers": {"noise": NOISE, "a": [400, "u8", [1] * 9]}}, r"buffer a: 9 sizes; allowed 1\.\.8"),
    ({"buffers": {"noise": [0, "i16"]}}, "damaged header"),
    ({"buffers": {}}, r"instruction 1 \(load\) of layer \(no name\): dram bytes 0\.\.32 lie outside its 0 bytes"),
    ({"buffers": {"noise": [0, "u8", [3]]}}, "buffer noise does not hold one plane for each of 2 steps"),
    ({"buffers": {"noise": NOISE, "a": [32, "u8", [8]]}}, r"a at bytes 32\.\.40 overlaps constants at bytes 0\.\.64"),
    ({"buffers": {"noise": NOISE, "a": [0, "u8", [64]]}}, r"constants at bytes 0\.\.64 overlaps a at bytes 0\.\.64"),
    ({"buffers": {"noise": NOISE, "a": [191, "u8", [1]]}}, r"a at bytes 191\.\.192 overlaps sets at bytes 64\.\.192"),
    ({"buffers": {"noise": NOISE, "a": [255, "u8", [9]]}}, r"a at bytes 255\.\.264 overlaps noise at bytes 192\.\.256"),
    (
        {"buffers": {"noise": NOISE, "a": [192, "u8", [63]]}},
        r"noise at bytes 192\.\.256 overlaps a at bytes 192\.\.255",
    ),
    ({"buffers": {"noise": NOISE, "a": [400, "u8", [0]]}}, "buffer a holds no element"),
    ({"set_address": 63}, r"sets at bytes 63\.\.191 overlaps constants at bytes 0\.\.64"),
    ({"host": {"state_fraction_bits": 24.5}}, "host.state_fraction_bits is 24.5"),
    ({"host": []}, "damaged header"),
    ({"layers": []}, r"instruction 0 \(barrier\) of layer number 0: layer = 0: allowed 0..-1"),
    ({"layers": ["a"]}, r"instruction 3 \(ewlin\) of layer number 1: layer = 1: allowed 0..0"),
    ({"machine": {"name": "x"}}, "damaged header"),
    ({"surplus": 1}, "unknown header field 'surplus'"),
]


@pytest.mark.parametrize(("fields", "message"), FIELDS, ids=[str(fields)[:50] for fields, _ in FIELDS])
def test_a_bad_header_field(path: Path, fields: dict[str, Any], message: str) -> None:
    tensors, metadata = parts(small_program())
    header = {**json.loads(metadata["header"]), **fields}
    resealed(path, tensors, {**metadata, "header": json.dumps(header)})
    with pytest.raises(UserError, match=message):
        load_program(path)
    refused(path)


def test_two_names_for_one_buffer_are_allowed(path: Path) -> None:
    noise = Buffer(0xC0, "i16", (2, 16))
    buffers = {"noise": noise, "bytes": Buffer(0xC0, "u8", (64,)), "after": Buffer(0x100, "u8", (1,))}
    save_program(small_program(lambda v: v.update(buffers=buffers)), path)
    assert load_program(path).buffers == buffers


def test_too_many_or_no_steps(path: Path) -> None:
    for steps in (0, 10_001):
        save_program(small_program(lambda v, steps=steps: v.update(sets=np.zeros((steps, 0), np.uint8))), path)
        assert refused(path) == f"{steps} denoising steps; allowed 1..10000"


INSTRUCTIONS: list[tuple[str, str]] = [
    (
        "smexp unit=vector rows=1 cols=1",
        r"step: instruction 0 \(smexp\) of layer \(no name\): p_bits = 0, out_dtype = u8",
    ),
    (
        "recip unit=mac rows=1 multiplier=0x40000000",
        r"step: instruction 0 \(recip\) of layer \(no name\): unit = mac: allowed vector",
    ),
    (
        f"load unit=load dram_addr={DRAM} row_bytes=1 rows=1 planes=1 layer=1",
        r"instruction 0 \(load\) of layer sampler.add: dram bytes 8192\.\.8193 lie outside its 512 bytes",
    ),
    ("load unit=load base=1 dram_addr=64 row_bytes=1 rows=1 planes=1", r"dram bytes 64\.\.65 lie outside its 64 bytes"),
    ("load unit=load base=2 dram_addr=31 row_bytes=2 rows=1 planes=1", r"dram bytes 31\.\.33 lie outside its 32 bytes"),
    (
        "store unit=store local_addr=65536 row_bytes=1 rows=1 planes=1",
        r"sram bytes 65536\.\.65537 lie outside its 65536",
    ),
    ("load unit=load memory=param local_addr=8192 row_bytes=1 rows=1 planes=1", "param bytes 8192"),
    ("load unit=load row_bytes=1 rows=1 planes=2 local_plane=1 dram_plane=0xffffffffffffffff", "dram bytes 0"),
]


@pytest.mark.parametrize(("line", "message"), INSTRUCTIONS)
def test_an_instruction_that_is_not_legal(path: Path, line: str, message: str) -> None:
    save_program(small_program(lambda v: v.update(step=assemble(line))), path)
    with pytest.raises(UserError, match=message):
        load_program(path)
    refused(path)


def test_words_that_are_no_instruction(path: Path) -> None:
    def edit(values: dict[str, Any]) -> None:
        values["prologue"] = np.stack(
            [encode(BY_MNEMONIC["barrier"], {"unit": 3}), np.full(32, 0xFFFF_FFFF, np.uint32)]
        )

    save_program(small_program(edit), path)
    assert refused(path).startswith("prologue: instruction 1: opcode 255 is not an instruction")
    save_program(small_program(lambda v: v.update(step=np.zeros((4, 31), np.uint32))), path)
    assert refused(path) == "step: code has shape (4, 31); allowed: (count, 32)"


def test_a_buffer_of_absurd_shape_has_its_true_size() -> None:
    assert Buffer(0, "i32", (2**40, 2**40)).bytes == 2**82
    assert machine().dram.npu_budget_bytes < 2**82


EDITS: dict[str, Callable[[dict[str, Any]], None]] = {
    "no instructions": lambda v: v.update(step=np.zeros((0, 32), np.uint32)),
    "no constants": lambda v: v.update(constants=np.zeros(0, np.uint8)),
    "empty sets": lambda v: v.update(sets=np.zeros((2, 0), np.uint8), step=assemble("barrier unit=vector")),
}


@pytest.mark.parametrize("edit", EDITS)
def test_empty_parts_are_allowed(path: Path, edit: str) -> None:
    save_program(small_program(EDITS[edit]), path)
    assert load_program(path).steps == 2
