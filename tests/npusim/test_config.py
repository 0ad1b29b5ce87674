"""A machine file is read exactly, and each mistake in one is named in a way that it can be mended from."""

import copy
import json
import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from npusim.config import Machine, load_machine
from npusim.config_messages import MAX_LINES, allowed_text, leaf_fields
from npusim.errors import UserError
from npusim.strict_yaml import MAX_DEPTH, MAX_FILE_BYTES

LEAVES = leaf_fields(Machine)
EDGE = Path(__file__).resolve().parents[2] / "hwconfigs" / "edge_8k.yaml"
BASE: dict[str, Any] = load_machine(EDGE).model_dump(mode="json")
WHOLE = {path: field for path, field in LEAVES.items() if field.annotation is int}


def message(folder: Path, content: str | bytes) -> str:
    """Load `content` as a machine file and return the message it is refused with."""
    path = folder / "machine.yaml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(UserError) as caught:
        load_machine(path)
    return str(caught.value).replace(str(path), "machine.yaml")


def edited(text: str, old: str, new: str) -> str:
    assert text.count(old) == 1, f"{old!r} is not unique in the machine file"
    return text.replace(old, new)


def line_of(text: str, part: str) -> int:
    return next(number for number, line in enumerate(text.splitlines(), 1) if part in line)


def as_yaml(data: dict[str, Any]) -> str:
    """Write `data` as JSON, which is YAML 1.2 too: written by other code than that which reads it."""
    return json.dumps(data, indent=2)


def put(data: dict[str, Any], path: tuple[Any, ...], value: object) -> dict[str, Any]:
    """Return a copy of `data` with the value at `path` replaced."""
    result = copy.deepcopy(data)
    section = result
    for part in path[:-1]:
        section = section[part]
    section[path[-1]] = value
    return result


# ---------------------------------------------------------------------------------------------- what is read


def test_edge_machine_is_the_mobile_npu(edge_machine: Machine) -> None:
    assert edge_machine.name == "edge_8k"
    assert (edge_machine.mac_array.rows, edge_machine.mac_array.cols) == (64, 128)
    assert edge_machine.peak_macs_per_cycle == 8192
    assert edge_machine.peak_tops == pytest.approx(16.384)
    assert edge_machine.dram_bytes_per_cycle == pytest.approx(51.2)
    assert edge_machine.dram_latency_cycles == 100
    assert edge_machine.storage_bytes_per_cycle == pytest.approx(4.2)
    assert edge_machine.storage_latency_cycles == 80_000
    assert edge_machine.sram.capacity_bytes == 2 << 20
    assert edge_machine.dram.npu_budget_bytes == 4 << 30


def test_tiny_machine_runs_the_same_arithmetic(tiny_machine: Machine, edge_machine: Machine) -> None:
    widths = ("acc_bits", "overflow", "requant_multiplier_bits", "requant_rounding", "row_sum_column")
    for field in widths:
        assert getattr(tiny_machine.mac_array, field) == getattr(edge_machine.mac_array, field)
    assert tiny_machine.peak_macs_per_cycle == 64
    assert tiny_machine.dram_bytes_per_cycle == 16


def test_every_machine_in_the_folder_loads_under_its_own_name(repository: Path) -> None:
    paths = sorted((repository / "hwconfigs").glob("*.yaml"))
    assert [load_machine(path).name for path in paths] == [path.stem for path in paths]


def test_a_machine_cannot_be_changed(tiny_machine: Machine) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        tiny_machine.sram.capacity_bytes = 1
    with pytest.raises(ValidationError, match="frozen"):
        tiny_machine.name = "other"
    assert hash(tiny_machine) == hash(tiny_machine.model_copy())


def test_plain_data_gives_the_same_machine_back(edge_machine: Machine) -> None:
    assert Machine.model_validate(edge_machine.model_dump(mode="json")) == edge_machine


def test_a_whole_number_may_be_written_with_an_exponent(tmp_path: Path, edge_text: str, edge_machine: Machine) -> None:
    path = tmp_path / "machine.yaml"
    path.write_text(edited(edge_text, "12884901888 ", "1.2884901888e10 "), encoding="utf-8")
    assert load_machine(path) == edge_machine
    assert isinstance(load_machine(path).dram.capacity_bytes, int)


@given(
    transfer_bytes=st.integers(0, 1 << 50),
    clock=st.integers(1, 10_000),
    dram_clock=st.integers(400, 10_000),
    channels=st.sampled_from([1, 2, 4, 128]),
)
def test_stream_cycles_are_the_smallest_that_suffice(
    transfer_bytes: int, clock: int, dram_clock: int, channels: int
) -> None:
    data = put(BASE, ("dram", "device", "clock_mhz"), dram_clock) | {"barrier_cycles": 10_000}
    machine = Machine.model_validate(put(put(data, ("clock_mhz",), clock), ("dram", "channels"), channels))
    cycles = machine.dram_stream_cycles(transfer_bytes)
    per_cycle = Fraction(channels * dram_clock * 32, 2 * clock)  # a burst of 32 bytes takes two clocks
    assert cycles * per_cycle >= transfer_bytes
    assert cycles == 0 or (cycles - 1) * per_cycle < transfer_bytes


@st.composite
def machine_data(draw: st.DrawFn) -> dict[str, Any]:
    """Draw a machine that every rule allows."""
    data = copy.deepcopy(BASE)
    array = data["mac_array"]
    array["rows"], array["cols"] = draw(st.integers(1, 512)), draw(st.integers(1, 512))
    array["acc_bits"] = draw(st.integers(24, 48))
    array["requant_multiplier_bits"] = draw(st.sampled_from([16, 32] if array["acc_bits"] <= 32 else [16]))
    wide = array["requant_multiplier_bits"] == 32
    array["requant_rounding"] = draw(st.sampled_from(["single", "double"] if wide else ["single"]))
    array["factored_requant"] = array["requant_rounding"] == "single" and draw(st.booleans())
    array["overflow"] = draw(st.sampled_from(["saturate", "wrap", "trap"]))
    passes = sorted(draw(st.lists(st.integers(1, 64), min_size=3, max_size=3)))
    array["pass_cycles_a8w8"], array["pass_cycles_a16w8"], array["pass_cycles_a16w16"] = passes
    array["shadow_weights"], array["row_sum_column"] = draw(st.booleans()), draw(st.booleans())
    banks = draw(st.integers(0, 8))
    data["sram"]["banks"], data["sram"]["bytes_per_cycle"] = 1 << banks, 1 << draw(st.integers(0, 12 - banks))
    data["sram"]["ports"] = draw(st.sampled_from(["1rw", "1r1w", "2rw", "unlimited"]))
    data["sram"]["mapping"] = draw(st.sampled_from(["interleaved", "blocked"]))
    data["sram"]["capacity_bytes"] = draw(st.integers(64, 4096)) << 12
    data["dram"]["channels"] = 1 << draw(st.integers(0, 7))
    data["dram"]["interleave_bytes"] = 32 << draw(st.integers(0, 6))
    data["barrier_cycles"] = 10_000
    data["dram"]["device"]["kind"] = draw(
        st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=80)
    )
    data["clock_mhz"] = draw(st.integers(1, 10_000))
    return data


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=machine_data())
def test_any_allowed_machine_survives_the_way_through_a_file(tmp_path: Path, data: dict[str, Any]) -> None:
    path = tmp_path / "machine.yaml"
    path.write_text(as_yaml(data), encoding="utf-8")
    machine = load_machine(path)
    assert machine.model_dump(mode="json") == data
    assert machine.peak_macs_per_cycle > 0
    assert machine.dram_latency_cycles >= 1


# ---------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (
            "lanes: 128",
            "lane: 128",
            "vector_unit.lane: unknown field; did you mean `vector_unit.lanes`? Allowed here: ",
        ),
        ("sram:", "srams:", "srams: unknown field; did you mean `sram`? Allowed here: schema_version, name, "),
        ("clock_mhz: 1000", "clock_mhz: 1000\nlatency_ns: 5", "latency_ns: unknown field; Allowed here: "),
        ("acc_bits: 40", "acc_bits: 49", "mac_array.acc_bits: 49 is not allowed; must be a whole number from 24 to 48"),
        (
            "acc_bits: 40",
            "acc_bits: '40'",
            "mac_array.acc_bits: '40' is not allowed; must be a whole number from 24 to",
        ),
        (
            "acc_bits: 40",
            "acc_bits: true",
            "mac_array.acc_bits: true is not allowed; must be a whole number from 24 to",
        ),
        ("acc_bits: 40", "acc_bits: 40.5", "mac_array.acc_bits: 40.5 is not allowed; must be a whole number from 24"),
        ("acc_bits: 40", "acc_bits: [40]", "mac_array.acc_bits: [40] is not allowed; must be a whole number from 24"),
        ("acc_bits: 40", "acc_bits:", "mac_array.acc_bits: an empty value is not allowed; must be a whole number from"),
        (
            "interconnect_ns: 60",
            "interconnect_ns: .nan",
            "dram.interconnect_ns: nan is not allowed; must be a whole number from 0 to",
        ),
        (
            "interconnect_ns: 60",
            "interconnect_ns: .inf",
            "dram.interconnect_ns: inf is not allowed; must be a whole number from 0 to",
        ),
        (
            "interconnect_ns: 60",
            "interconnect_ns: -100",
            "dram.interconnect_ns: -100 is not allowed; must be a whole number from 0 to",
        ),
        (
            "queue_entries: 32",
            "queue_entries: 0",
            "dram.queue_entries: 0 is not allowed; must be a whole number from 1 to",
        ),
        (
            "interconnect_ns: 60",
            "interconnect_ns: 1e300",
            "dram.interconnect_ns: 1e+300 is not allowed; must be a whole number from",
        ),
        (
            "interconnect_ns: 60",
            "interconnect_ns: 2020-01-01",
            "dram.interconnect_ns: datetime.date(2020, 1, 1) is not allowed; must",
        ),
        ("shadow_weights: true", "shadow_weights: yes", "shadow_weights: 'yes' is not allowed; must be true or false"),
        ("shadow_weights: true", "shadow_weights: 1", "shadow_weights: 1 is not allowed; must be true or false"),
        ("overflow: saturate", "overflow: clamp", "overflow: 'clamp' is not allowed; must be saturate or wrap or trap"),
        (
            "name: edge_8k",
            "name: ../x",
            "name: '../x' is not allowed; must be 1 to 64 lower-case letters, digits and _",
        ),
        (
            "device: lpddr5_6400",
            "device: 5",
            "dram.device: 5 is not allowed; must be the name of a table in hwconfigs/",
        ),
        (
            "device: ufs4_0",
            "device: 5",
            "storage.device: 5 is not allowed; must be the name of a table in hwconfigs/storage",
        ),
        ("schema_version: 1", "schema_version: 2", "schema_version: 2 is not allowed; must be 1"),
    ],
)
def test_a_wrong_field_is_named_with_what_is_allowed(
    tmp_path: Path, edge_text: str, old: str, new: str, says: str
) -> None:
    text = edited(edge_text, old, new)
    lines = message(tmp_path, text).splitlines()
    assert len(lines) == 1
    assert says in lines[0]
    assert lines[0].startswith(f"machine.yaml:{line_of(text, new.splitlines()[-1])}: ")


@pytest.mark.parametrize(
    ("old", "new", "field", "numbers"),
    [
        (
            "requant_multiplier_bits: 16",
            "requant_multiplier_bits: 32",
            "mac_array.requant_multiplier_bits",
            "40 + 31 = 71",
        ),
        ("requant_rounding: single", "requant_rounding: double", "mac_array.requant_rounding", "multiplier_bits 16"),
        ("pass_cycles_a8w8: 1", "pass_cycles_a8w8: 3", "mac_array.pass_cycles_a16w8", "pass_cycles_a8w8 3"),
        ("npu_budget_bytes: 4294967296", "npu_budget_bytes: 12884901889", "dram.npu_budget_bytes", "12884901888"),
        ("interleave_bytes: 256", "interleave_bytes: 96", "dram.interleave_bytes", "64 or 128"),
        ("interleave_bytes: 256", "interleave_bytes: 4096", "dram.interleave_bytes", "32 to 2048"),
        ("channels: 4", "channels: 3", "dram.channels", "2 or 4"),
        (
            "background_bytes_per_second: 0",
            "background_bytes_per_second: 6e10",
            "dram.background_bytes_per_second",
            "allowed: at most 51200000000",
        ),
        (
            "barrier_cycles: 400",
            "barrier_cycles: 349",
            "barrier_cycles",
            "280 clocks at 800 MHz; allowed: at least 350",
        ),
        ("bytes_per_cycle: 64", "bytes_per_cycle: 96", "sram.bytes_per_cycle", "64 or 128"),
        ("banks: 16", "banks: 12", "sram.banks", "8 or 16"),
        (
            "capacity_bytes: 2097152",
            "capacity_bytes: 2097216",
            "sram.capacity_bytes",
            "banks 16 x sram.bytes_per_cycle 64",
        ),
        ("capacity_bytes: 2097152", "capacity_bytes: 4096", "sram.capacity_bytes", "rows 64 x cols 128 = 8192 bytes"),
        (
            "npu_budget_bytes: 4294967296",
            "npu_budget_bytes: 1048576",
            "sram.capacity_bytes",
            "npu_budget_bytes 1048576",
        ),
    ],
)
def test_values_that_do_not_fit_together_are_refused_with_the_numbers(
    tmp_path: Path, edge_text: str, old: str, new: str, field: str, numbers: str
) -> None:
    text = edited(edge_text, old, new)
    (line,) = message(tmp_path, text).splitlines()
    assert re.match(r"machine\.yaml:\d+: " + re.escape(field) + ": ", line)
    assert numbers in line
    assert "allow" in line


def test_wide_multipliers_are_allowed_on_narrow_accumulators(tmp_path: Path, edge_text: str) -> None:
    text = edited(edge_text, "acc_bits: 40", "acc_bits: 32")
    text = edited(text, "requant_multiplier_bits: 16", "requant_multiplier_bits: 32")
    path = tmp_path / "machine.yaml"
    text = edited(text, "requant_rounding: single", "requant_rounding: double")
    assert "mac_array.factored_requant: true does not fit mac_array.requant_rounding double: " in message(
        tmp_path, text
    )
    path.write_text(edited(text, "factored_requant: true", "factored_requant: false"), encoding="utf-8")
    assert load_machine(path).mac_array.requant_rounding == "double"


def test_a_missing_field_and_a_missing_section_are_named(tmp_path: Path, edge_text: str) -> None:
    without = "\n".join(line for line in edge_text.splitlines() if "op_latency_cycles" not in line)
    assert message(tmp_path, without) == (
        f"machine.yaml:{line_of(without, 'vector_unit:')}: vector_unit.op_latency_cycles: missing; "
        "must be a whole number from 1 to 1024"
    )
    short = "\n".join(line for line in edge_text.splitlines() if "decoder_bytes_per_cycle" not in line)
    without = edited(short, "\ndma:\n  setup_cycles: 32 ", "\n# ")
    assert "dma: missing; must be a section with the fields setup_cycles" in message(tmp_path, without)
    assert "dma: an empty value is not allowed; must be a section" in message(
        tmp_path, edited(short, "\ndma:\n  setup_cycles: 32 ", "\ndma:\n# ")
    )


def test_all_faults_are_reported_at_once_but_no_more_than_a_screenful(tmp_path: Path, edge_text: str) -> None:
    text = edited(edited(edge_text, "lanes: 128", "lanes: 0"), "overflow: saturate", "overflow: none")
    assert [line.split(": ")[1] for line in message(tmp_path, text).splitlines()] == [
        "mac_array.overflow",
        "vector_unit.lanes",
    ]
    lines = message(tmp_path, "\n".join(f"key_{index}: 1" for index in range(1000))).splitlines()
    assert len(lines) == MAX_LINES + 1
    assert lines[-1].endswith("more faults")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "machine.yaml: the file must hold fields, written `name: value`; it holds nothing"),
        ("[1, 2]", "machine.yaml: the file must hold fields, written `name: value`; it holds a list"),
        ("name: a\nclock_mhz: 1\nname: b\n", "machine.yaml:3: name: given twice, first on line 1"),
        ("sram:\n  x: 1\n  x: 2\n", "machine.yaml:3: sram.x: given twice, first on line 2"),
        ("a: 1\nb: [1\nc: 2\n", "machine.yaml:3: not valid YAML 1.2: while parsing a flow sequence"),
        ("a: 1\n\tb: 2\n", "machine.yaml:2: not valid YAML 1.2: "),
        ("a: 1\n---\nb: 2\n", "machine.yaml:2: not valid YAML 1.2: expected a single document"),
        ("a: &x 1\nb: *x\n", "machine.yaml:1: YAML anchors (&) and aliases (*) are not allowed"),
        ("<<: {name: x}\n", "machine.yaml:1: a field name must be text, not `<<`"),
        ("1: x\n", "machine.yaml:1: a field name must be text, not `1`"),
        ("? [a]\n: x\n", "machine.yaml:1: a field name must be text, not a list"),
        ("a: !!python/object/apply:os.getcwd []\n", "machine.yaml:1: YAML tags (!) are not allowed"),
        ("%YAML 1.1\n---\na: no\n", "machine.yaml:2: the file asks for another YAML version"),
        ("a: 2020-13-45\n", "machine.yaml: not valid YAML 1.2: month must be in 1..12"),
        ("a: \0\n", "machine.yaml: not valid YAML 1.2: unacceptable character #x0000"),
        (b"a: 1\nb: \xff\n", "machine.yaml:2: not UTF-8 text (byte 8)"),
        ("a: " + "9" * 50_000, "machine.yaml: not valid YAML 1.2: "),
        ("#" * MAX_FILE_BYTES + "\n", f"machine.yaml: larger than {MAX_FILE_BYTES} bytes"),
        ("[" * 60_000, f"machine.yaml:1: nested deeper than {MAX_DEPTH} levels"),
        ("{a: " * 15_000, f"machine.yaml:1: nested deeper than {MAX_DEPTH} levels"),
        ("- " * 30_000, f"machine.yaml:1: nested deeper than {MAX_DEPTH} levels"),
    ],
)
def test_a_file_that_is_not_strict_yaml_is_refused(tmp_path: Path, content: str | bytes, says: str) -> None:
    assert message(tmp_path, content).startswith(says)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path, repository: Path) -> None:
    with pytest.raises(
        UserError, match=r"edge8k\.yaml: no such file; in .*hwconfigs there are: edge_2x4k\.yaml, edge_8k\.yaml, "
    ):
        load_machine(repository / "hwconfigs" / "edge8k.yaml")
    with pytest.raises(UserError, match="is a folder, not a YAML file"):
        load_machine(tmp_path)
    with pytest.raises(UserError, match="is a device or pipe, not a YAML file"):
        load_machine("/dev/zero")
    with pytest.raises(UserError, match="cannot be read: File name too long"):
        load_machine("x" * 5000)
    with pytest.raises(UserError, match="cannot be read: embedded null byte"):
        load_machine("a\0b")
    with pytest.raises(UserError, match="no such file"):
        load_machine(tmp_path / "nowhere" / "x.yaml")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=st.sampled_from(sorted(WHOLE)), beyond=st.integers(1, 1 << 70), above=st.booleans())
def test_every_number_has_both_bounds(tmp_path: Path, path: tuple[str, ...], beyond: int, above: bool) -> None:
    low, high = map(int, re.findall(r"\d+", allowed_text(Machine, path)))
    value = high + beyond if above else low - beyond
    says = message(tmp_path, as_yaml(put(BASE, path, value)))
    assert f"{'.'.join(path)}: {value} is not allowed; must be a whole number from {low} to {high}" in says


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=st.sampled_from(sorted(LEAVES)), data=st.data())
def test_a_slip_of_one_letter_finds_its_field(tmp_path: Path, path: tuple[str, ...], data: st.DataObject) -> None:
    name = path[-1]
    at = data.draw(st.integers(0, len(name) - 1))
    letter = data.draw(st.sampled_from(["", "x", "_"]))
    slip = name[:at] + letter + name[at + 1 :]
    assume(slip and slip != name)
    wrong = copy.deepcopy(BASE)
    section = wrong
    for part in path[:-1]:
        section = section[part]
    assume(slip not in section)
    section[slip] = section.pop(name)
    says = message(tmp_path, as_yaml(wrong))
    assert f"{'.'.join((*path[:-1], slip))}: unknown field; did you mean `{'.'.join(path)}`?" in says
    assert "missing" not in says


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.one_of(st.binary(max_size=200), st.text(max_size=200).map(lambda text: text.encode("utf-8", "replace")))
)
def test_no_bytes_whatever_get_past_the_reader_or_break_it(tmp_path: Path, content: bytes) -> None:
    says = message(tmp_path, content)
    assert says.startswith("machine.yaml")
    assert all(line.isprintable() for line in says.splitlines())


SIGNS = "{ } [ ] : - ? &a *a !t | > % --- ... ' \" # a 1 <<".split(" ")
SNIPPETS = st.sampled_from([*SIGNS, ": ", "- ", "? ", "\n", "\n---\n", "  "])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.lists(SNIPPETS, max_size=40).map("".join))
def test_no_mixture_of_yaml_signs_breaks_the_reader(tmp_path: Path, content: str) -> None:
    assert message(tmp_path, content).startswith("machine.yaml")


# ---------------------------------------------------------------------------------------------- what is documented


def test_the_readme_lists_every_field_as_the_code_has_it(repository: Path) -> None:
    """On failure, paste the expected rows into the table of hwconfigs/README.md."""
    expected = [
        f"| `{'.'.join(path)}` | {allowed_text(Machine, path)} | {field.description} |"
        for path, field in LEAVES.items()
    ]
    readme = (repository / "hwconfigs" / "README.md").read_text(encoding="utf-8").splitlines()
    rows = [line for line in readme[readme.index("## All fields") :] if line.startswith("| `")]
    assert rows == expected, "\n".join(expected)


def test_the_machine_of_the_dynamic_baseline_differs_in_one_flag(repository: Path) -> None:
    static, dynamic = (
        load_machine(repository / "hwconfigs" / f"{name}.yaml") for name in ("edge_8k", "edge_8k_dynamic")
    )
    fields = dynamic.model_dump()
    assert fields["vector_unit"]["runtime_quantization"] is True
    fields["vector_unit"]["runtime_quantization"], fields["name"] = False, "edge_8k"
    assert fields == static.model_dump()
