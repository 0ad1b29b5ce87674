"""Files that are at fault in any way end in one message: no traceback, nothing written, in bounded time and memory.

Here random damage in this process; `test_hostile_files.py` has what is made to hurt, under limits of the system.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, event, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from models.errors import ModelError
from models.quantize import QuantizedModel, load_overrides
from models.quantize.files import sealed
from models.stats import CalibrationStats
from models.workloads import get_workload
from npusim.config import Machine, load_machine
from npusim.errors import UserError
from npusim.isa import BY_MNEMONIC
from npusim.isa.assembly import assemble, disassemble
from npusim.program_file import digest, load_program, save_program
from npusim.run import quantize_workload
from npusim.strict_yaml import read_yaml
from npusim.sweep.space import load_space
from npusim.sweep.store import read_fidelity, row_of
from tests.npusim.strategies import small_program

ABSURD: list[Any] = [
    None, True, -1, 0, 1, 2**31, 2**63, 2**64, 10**400, -(10**30), 0.5, 1e308, float("nan"), float("inf"), "", "x",
    "../../etc/passwd", "\x00", "\ud800", [], {}, [[]], {"": None}, [1, 2], {"a": {"b": []}}, "1" * 5000,
]  # fmt: skip
values = st.sampled_from(ABSURD) | st.integers(-(2**70), 2**70) | st.text(max_size=8) | st.floats()
SCRAPS = [b"", b"\x00", b"\xff\xfe", b"&a ", b"*a", b"!!python/object:os.system ", b"<<: ", b"{" * 20, b"[" * 20,
          b"- " * 20, b"? ", b"%YAML 1.1\n---\n", b"---\n", b"...\n", b"\t", b"'", b'"\\U00110000"', b"0x", b"0o",
          b"1e", b"._", b"9" * 5000, b"2001-99-99", b"=",
          b": ", b"\xc2\x85", b"\xe2\x80\xa8", b"\xed\xa0\x80"]  # fmt: skip


def examples(count: int) -> settings:
    """Found is enough: to look for a smaller example takes minutes where examples are files."""
    return settings(max_examples=count, phases=(Phase.explicit, Phase.generate))


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """``whole`` with a few cuts, and scraps or other parts of itself put in their places."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 3))):
        begin = draw(st.integers(0, len(data)))
        end = min(len(data), begin + draw(st.sampled_from([0, 0, 1, 4, 40, len(data)])))
        data[begin:end] = draw(st.sampled_from(SCRAPS) | st.binary(max_size=6))
    return bytes(data)


@st.composite
def altered(draw: st.DrawFn, whole: Any) -> Any:
    """Plain data like ``whole`` with a few values replaced, removed or added anywhere."""
    data = json.loads(json.dumps(whole))
    for _ in range(draw(st.integers(1, 3))):
        at = data
        while isinstance(at, dict | list) and at:
            keys = list(at) if isinstance(at, dict) else list(range(len(at)))
            key = draw(st.sampled_from(keys))
            if isinstance(at[key], dict | list) and at[key] and draw(st.booleans()):
                at = at[key]
                continue
            action = draw(st.sampled_from(["replace", "replace", "replace", "remove", "add"]))
            if action == "remove":
                del at[key]
            elif action == "add" and isinstance(at, dict):
                at[draw(st.text(max_size=4))] = draw(values)
            else:
                at[key] = draw(values)
            break
    return data


def read_or_refused(read: Callable[[Path], Any], path: Path, data: bytes) -> None:
    """The file is read, or refused with a message that names it."""
    path.write_bytes(data)
    before = sorted(path.parent.iterdir())
    try:
        read(path)
    except (UserError, ModelError) as error:
        text = str(error)
        assert path.name in text
        assert "Traceback" not in text
        assert len(text) < 20_000
    assert sorted(path.parent.iterdir()) == before


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="module")
def yaml_texts(repository: Path) -> dict[str, bytes]:
    machine = (repository / "hwconfigs" / "tiny_8x8.yaml").read_bytes()
    sweep = (repository / "hwconfigs" / "sweeps" / "tiny.yaml").read_bytes()
    sweep = sweep.replace(b"../tiny_8x8.yaml", str(repository / "hwconfigs" / "tiny_8x8.yaml").encode())
    return {"machine": machine, "sweep": sweep, "overrides": b"overrides:\n- {layers: [mlp.fc2], act_bits: 16}\n"}


READ_YAML = {"machine": load_machine, "sweep": load_space, "overrides": load_overrides}


@pytest.mark.parametrize("kind", READ_YAML)
@examples(25)
@given(data=st.data())
def test_damaged_yaml(folder: Path, yaml_texts: dict[str, bytes], kind: str, data: st.DataObject) -> None:
    read_or_refused(READ_YAML[kind], folder / f"{kind}.yaml", data.draw(damaged(yaml_texts[kind])))


@pytest.mark.parametrize("kind", READ_YAML)
@examples(25)
@given(data=st.data())
def test_yaml_with_other_values(folder: Path, yaml_texts: dict[str, bytes], kind: str, data: st.DataObject) -> None:
    """JSON is YAML, so that any value can be written into any field."""
    path = folder / f"{kind}.yaml"
    path.write_bytes(yaml_texts[kind])
    fields = data.draw(altered(read_yaml(path).data))
    read_or_refused(READ_YAML[kind], path, json.dumps(fields).encode())


@examples(60)
@given(data=st.data())
def test_assembler_text(tiny_machine: Machine, data: st.DataObject) -> None:
    """What is taken is what disassembly gives back."""
    mnemonics = st.sampled_from(sorted(BY_MNEMONIC)) | st.text(max_size=5)
    name = data.draw(mnemonics)
    known = [*BY_MNEMONIC[name].by_name] if name in BY_MNEMONIC else ["m"]
    field = st.sampled_from(known) | st.text(max_size=5)
    value = (
        st.integers(-(2**65), 2**65).map(str) | st.text(max_size=6) | st.sampled_from(["0x", "1_0", "٣", "9" * 5000])
    )
    parts = data.draw(st.lists(st.tuples(field, st.sampled_from(["=", "", "=="]), value), max_size=4))
    text = " ".join([name, *("".join(part) for part in parts)])
    try:
        code = assemble(text, "x.s", tiny_machine if data.draw(st.booleans()) else None)
    except UserError as error:
        event(str(error)[:20])
        return
    np.testing.assert_array_equal(assemble(disassemble(code)), code)


@pytest.fixture(scope="module")
def program_file(folder: Path) -> Path:
    path = folder / "whole.npu"
    save_program(small_program(), path)
    return path


@pytest.fixture(scope="module")
def quantized_file(folder: Path) -> Path:
    path = folder / "whole.safetensors"
    quantize_workload("tiny", out=path)
    return path


@pytest.fixture(scope="module")
def stats_file(folder: Path) -> Path:
    path = folder / "whole_stats.safetensors"
    get_workload("tiny").load_stats().save(path)
    return path


def parts_of(whole: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and data of a safetensors file."""
    size = int.from_bytes(whole[:8], "little")
    return json.loads(whole[8 : 8 + size]), whole[8 + size :]


READ_TENSORS: dict[str, Callable[[Path], Any]] = {
    "program_file": load_program, "quantized_file": QuantizedModel.load, "stats_file": CalibrationStats.load,
}  # fmt: skip


@pytest.mark.parametrize("kind", READ_TENSORS)
@examples(20)
@given(data=st.data())
def test_safetensors_headers(folder: Path, request: pytest.FixtureRequest, kind: str, data: st.DataObject) -> None:
    """Of any length, cut anywhere, with any shapes, offsets and types."""
    whole = request.getfixturevalue(kind).read_bytes()
    header, body = parts_of(whole)
    way = data.draw(st.sampled_from(["cut", "damage", "length", "fields", "fields"]))
    if way == "cut":
        result = whole[: data.draw(st.integers(0, len(whole) - 1))]
    elif way == "damage":
        result = data.draw(damaged(whole[: 8 + 200])) + whole[208:]
    elif way == "length":
        result = data.draw(st.integers(0, 2**64 - 1)).to_bytes(8, "little") + whole[8:]
    else:
        names = data.draw(st.lists(st.sampled_from(sorted(header)), min_size=1, max_size=2))
        header |= {name: data.draw(altered(header[name])) for name in names}
        text = json.dumps(header).encode()
        result = len(text).to_bytes(8, "little") + text + body
    read_or_refused(READ_TENSORS[kind], folder / "x.bin", result)


@examples(60)
@given(data=st.data())
def test_program_headers_with_the_right_digest(folder: Path, program_file: Path, data: st.DataObject) -> None:
    """Whoever alters a header can renew its SHA-256; every field is checked behind it."""
    header, _ = parts_of(program_file.read_bytes())
    program = load_program(program_file)
    names = ("prologue", "step", "constants", "sets", "range_sets", "coded")
    tensors = {name: getattr(program, name) for name in names}
    if data.draw(st.booleans()):
        name = data.draw(st.sampled_from(names))
        shape = data.draw(st.sampled_from([(0,), (1,), (0, 32), (3, 0), (1 << 40, 0), (2, 7), (1, 32), (1, 1, 1)]))
        fill = data.draw(st.sampled_from([0, 1, 255, 2**32 - 1]))
        kind = np.uint32 if name in ("prologue", "step") else np.uint8
        tensors[name] = np.full(shape, fill & np.iinfo(kind).max, kind)
    text = json.dumps(data.draw(altered(json.loads(header["__metadata__"]["header"]))))
    metadata = header["__metadata__"] | {"header": text, "sha256": digest(tensors, text)}
    read_or_refused(load_program, folder / "x.npu", save(tensors, metadata))


@examples(25)
@given(data=st.data())
def test_quantized_models_with_the_right_digest(folder: Path, quantized_file: Path, data: st.DataObject) -> None:
    from models.store import load_arrays

    arrays, metadata = load_arrays(quantized_file, "quantized model", 3)
    del metadata["sha256"]
    metadata = data.draw(altered(metadata))
    try:
        described = json.dumps({"kind": "quantized model", "version": 3, **sealed(arrays, metadata)})
    except (TypeError, ValueError):
        return
    read_or_refused(QuantizedModel.load, folder / "x.safetensors", save(arrays, {"npusim": described}))


@examples(25)
@given(st.data())
def test_measured_fidelity_of_sweeps(folder: Path, data: st.DataObject) -> None:
    """Lines that are too long or too short are as good as others' mistakes."""
    row = {"key": "0", "workload": "tiny", "status": "ok", "message": "", "figures": {},
           "settings": {"method": "cw_tw", "weight_bits": 8}}  # fmt: skip
    text = data.draw(damaged(b"method,psnr_db,ssim\ncw_tw,30.5,0.9\ncw_tw,31\ncw_tw,1,2,3\n"))
    read_or_refused(lambda path: row_of(row, read_fidelity(path)), folder / "measured.csv", text)
