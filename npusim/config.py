"""The machine: what an NPU described in `hwconfigs/*.yaml` is made of. Read by the compiler and the simulator alike.

Every number is a positive integer whose name ends in its unit. `load_machine` is the only way from a file to a
`Machine`; a `Machine` that exists has passed every check here. Fields and their ranges are listed for readers in
`hwconfigs/README.md`.
"""

import re
from fractions import Fraction
from itertools import pairwise
from math import ceil
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from npusim.config_base import Section, clash, whole
from npusim.config_dram import Dram, DramDevice
from npusim.config_messages import NAME_PATTERN, problems
from npusim.config_sram import Sram
from npusim.config_storage import Storage, StorageDevice
from npusim.errors import UserError
from npusim.strict_yaml import printable, read_yaml
from npusim.units import KINDS, MOST, UNITS, kind_of

MIB = 1 << 20
MACHINES = Path(__file__).resolve().parents[1] / "hwconfigs"
"""This project's machine files."""
TABLES: dict[str, type[Section]] = {"dram": DramDevice, "storage": StorageDevice}
"""Sections whose ``device`` may name a table, and what the table holds. The folder of that name with the tables lies
beside a machine file or in this project's `hwconfigs`."""


class MacArray(Section):
    """A systolic array, its accumulators and its requantizer; ``count`` of them.

    Weight-stationary: one pass holds a `rows` x `cols` tile of weights and streams up to `acc_rows` activation rows
    through it. Input-stationary: one pass holds activations of `cols` rows and streams the weights of up to `acc_rows`
    output channels. Output-stationary: one pass holds `rows` x `cols` outputs and streams the reduction dimension. Each
    streamed row costs `pass_cycles_*` cycles according to the operand widths.
    """

    dataflow: Annotated[
        Literal["weight_stationary", "output_stationary", "input_stationary"],
        Field(description="what stays in the cells during a pass; no RTL of input_stationary"),
    ]
    fold_overlap: Annotated[
        bool, Field(description="a fold streams while the one before it drains; false: none overlaps, no RTL of it")
    ]
    rows: Annotated[
        int, whole(1, 4096, "array height: elements of the reduction dimension (K), or output rows (M), held at once")
    ]
    cols: Annotated[int, whole(1, 4096, "array width: output channels (N) held at once")]
    acc_bits: Annotated[int, whole(24, 48, "width of one signed accumulator")]
    overflow: Annotated[
        Literal["saturate", "wrap", "trap"], Field(description="what an accumulator does beyond its width")
    ]
    acc_rows: Annotated[
        int, whole(1, 65536, "accumulators per column: rows that one weight- or input-stationary pass streams")
    ]
    shadow_weights: Annotated[
        bool,
        Field(description="a second weight register per cell, so that the next tile loads while this one computes"),
    ]
    narrowest_activation_bits: Annotated[
        Literal[4, 6, 8], Field(description="packed activations that the array takes, down to this width")
    ]
    narrowest_weight_bits: Annotated[
        Literal[4, 6, 8], Field(description="packed weights that the array takes, down to this width")
    ]
    a4w4_per_cell: Annotated[Literal[1, 2], Field(description="products of 4 x 4 bits in one cell and cycle")]
    input_shift: Annotated[
        bool, Field(description="a left shift of 0 to 3 for each input channel, before the multiplication")
    ]
    pass_cycles_a8w8: Annotated[int, whole(1, 64, "cycles per streamed row, 8-bit activations, 8-bit weights")]
    pass_cycles_a16w8: Annotated[int, whole(1, 64, "cycles per streamed row, 16-bit activations, 8-bit weights")]
    pass_cycles_a16w16: Annotated[int, whole(1, 64, "cycles per streamed row, both operands 16-bit")]
    row_sum_column: Annotated[
        bool, Field(description="an extra column that sums the activations, for the zero point of asymmetric weights")
    ]
    requant_multiplier_bits: Annotated[
        Literal[16, 32], Field(description="width of the requantization multiplier; 32 needs acc_bits of at most 32")
    ]
    requant_rounding: Annotated[
        Literal["single", "double"],
        Field(description="rounding of TOSA RESCALE; double exists only with 32-bit multipliers"),
    ]
    factored_requant: Annotated[
        bool,
        Field(description="a second multiplier per column, for a scale per layer or per row behind that per channel"),
    ]
    requant_latency_cycles: Annotated[int, whole(1, 1024, "pipeline depth of the requantizer")]
    count: Annotated[int, whole(1, MOST, "arrays, all as described, each with accumulators and a requantizer")] = 1

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.requant_multiplier_bits == 32 and self.acc_bits > 32:
            # A multiplier is never negative, so it has one magnitude bit less than its width.
            raise clash(
                "requant_multiplier_bits",
                f"32 does not fit mac_array.acc_bits {self.acc_bits}: accumulator times multiplier needs "
                f"{self.acc_bits} + 31 = {self.acc_bits + 31} bits, and the requantizer computes in int64; "
                "allowed: 16, or 32 with acc_bits of at most 32",
            )
        if self.requant_rounding == "double" and self.requant_multiplier_bits != 32:
            raise clash(
                "requant_rounding",
                f"double does not fit mac_array.requant_multiplier_bits {self.requant_multiplier_bits}: TOSA defines "
                "double rounding for 32-bit multipliers only; allowed: single, or double with 32-bit multipliers",
            )
        if self.factored_requant and self.requant_rounding == "double":
            raise clash(
                "factored_requant",
                "true does not fit mac_array.requant_rounding double: the factored modes round each of their products "
                "once; allowed: false, or true with single rounding",
            )
        widths = ("pass_cycles_a8w8", "pass_cycles_a16w8", "pass_cycles_a16w16")
        for narrow, wide in pairwise(widths):
            if getattr(self, wide) < getattr(self, narrow):
                raise clash(
                    wide,
                    f"{getattr(self, wide)} is less than mac_array.{narrow} {getattr(self, narrow)}: wider operands "
                    f"cannot be faster; allowed: at least {getattr(self, narrow)}",
                )
        return self


def _depth(op: str) -> Any:
    return whole(0, 1024, f"pipeline depth of {op}, 0: vector_unit.op_latency_cycles")


class LatencyByOp(Section):
    """Pipeline depths of single vector operations; 0: as `VectorUnit.op_latency_cycles`."""

    ewlin_cycles: Annotated[int, _depth("EWLIN")] = 0
    ewmul_cycles: Annotated[int, _depth("EWMUL")] = 0
    transpose_cycles: Annotated[int, _depth("TRANSPOSE")] = 0
    table_cycles: Annotated[int, _depth("TABLE")] = 0
    table8_cycles: Annotated[int, _depth("TABLE8")] = 0
    lnstat_cycles: Annotated[int, _depth("LNSTAT")] = 0
    lnapply_cycles: Annotated[int, _depth("LNAPPLY")] = 0
    smexp_cycles: Annotated[int, _depth("SMEXP")] = 0
    recip_cycles: Annotated[int, _depth("RECIP")] = 0
    rtquant_cycles: Annotated[int, _depth("RTQUANT")] = 0


class VectorUnit(Section):
    """The unit for everything that is not a matrix product: LayerNorm, softmax, GELU, residuals, the sampler."""

    lanes: Annotated[int, whole(1, 4096, "elements processed per cycle")]
    op_latency_cycles: Annotated[int, whole(1, 1024, "pipeline depth of a vector operation without one of its own")]
    latency_by_op: LatencyByOp = LatencyByOp()
    runtime_quantization: Annotated[
        bool, Field(description="computes scale and zero point of each token at run time (dynamic quantization)")
    ]
    count: Annotated[int, whole(1, MOST, "vector units, all as described")] = 1

    def latency_cycles(self, op: str) -> int:
        """Pipeline depth of the operation with the mnemonic ``op``."""
        own: int = getattr(self.latency_by_op, f"{op}_cycles")
        return own or self.op_latency_cycles


class ParamMemory(Section):
    """The small memory that holds the active parameter set: requantization tables, modulation, sampler constants."""

    capacity_bytes: Annotated[int, whole(256, 256 * MIB, "size of the memory, both banks included")]
    bank_bytes: Annotated[
        int, whole(0, 128 * MIB, "size of each of two banks, one in use while the other is filled; 0: no banks")
    ]

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if 2 * self.bank_bytes >= self.capacity_bytes:
            raise clash(
                "bank_bytes",
                f"two banks of {self.bank_bytes} leave nothing of param_memory.capacity_bytes {self.capacity_bytes}; "
                "allowed: less than half of that",
            )
        return self

    @property
    def common_bytes(self) -> int:
        """Bytes outside the banks; the active bank's addresses follow them."""
        return self.capacity_bytes - 2 * self.bank_bytes

    @property
    def addressable_bytes(self) -> int:
        """Bytes that instructions reach: all but the bank that is being filled."""
        return self.capacity_bytes - self.bank_bytes


class Dma(Section):
    """The engines between DRAM and SRAM, and between storage and DRAM."""

    setup_cycles: Annotated[int, whole(1, 65536, "from issue of one transfer to its first request")]
    decoder_bytes_per_cycle: Annotated[
        int, whole(0, 4096, "bytes per cycle out of the decoder of sets that storage holds as differences; 0: none")
    ]
    load_units: Annotated[int, whole(1, MOST, "engines from DRAM to the chip; all DMA shares the DRAM")] = 1
    store_units: Annotated[int, whole(1, MOST, "engines from the chip to DRAM")] = 1
    storage_units: Annotated[int, whole(1, MOST, "engines from storage to DRAM, each with a device of its own")] = 1


class Machine(Section):
    """One NPU with its memories. Immutable and hashable; `model_dump(mode="json")` gives it back as plain data."""

    schema_version: Annotated[Literal[1], Field(description="version of this file format")]
    name: Annotated[str, Field(pattern=NAME_PATTERN, description="the machine's name in reports and file names")]
    clock_mhz: Annotated[int, whole(1, 10_000, "clock of the NPU; all cycles are its cycles")]
    mac_array: MacArray
    vector_unit: VectorUnit
    sram: Sram
    param_memory: ParamMemory
    dram: Dram
    storage: Storage
    dma: Dma
    barrier_cycles: Annotated[int, whole(1, 1_000_000, "charged at the end of each denoising step")]

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        array, sram = self.mac_array, self.sram
        if array.rows * array.cols > sram.capacity_bytes:
            raise clash(
                "sram.capacity_bytes",
                f"{sram.capacity_bytes} cannot hold one weight tile of mac_array.rows {array.rows} x cols {array.cols} "
                f"= {array.rows * array.cols} bytes; allowed: at least that",
            )
        if sram.capacity_bytes > self.dram.npu_budget_bytes:
            raise clash(
                "sram.capacity_bytes",
                f"{sram.capacity_bytes} is more than dram.npu_budget_bytes {self.dram.npu_budget_bytes}; "
                "allowed: at most that",
            )
        device, least = self.dram.device, self.dram.recovery_cycles(self.clock_mhz)
        if self.barrier_cycles < least:
            raise clash(
                "barrier_cycles",
                f"{self.barrier_cycles} is too short for the DRAM to finish a write, close its rows and refresh: "
                f"{device.recovery_clocks} clocks at {device.clock_mhz} MHz; allowed: at least {least}",
            )
        return self

    @property
    def unit_counts(self) -> dict[str, int]:
        """How many units of each kind there are."""
        dma = self.dma
        counts = dma.load_units, dma.store_units, self.mac_array.count, self.vector_unit.count, dma.storage_units
        return dict(zip(KINDS, counts, strict=True))

    @property
    def units(self) -> tuple[str, ...]:
        """Names of all units, in the order of their numbers."""
        counts = self.unit_counts
        return tuple(name for number, name in enumerate(UNITS) if number // len(KINDS) < counts[kind_of(number)])

    def units_of(self, kind: str) -> tuple[str, ...]:
        """Names of all units of a kind."""
        return tuple(name for name in self.units if kind_of(UNITS.index(name)) == kind)

    @property
    def clock_hz(self) -> int:
        """Clock in cycles per second."""
        return self.clock_mhz * 1_000_000

    @property
    def peak_macs_per_cycle(self) -> float:
        """Multiply-accumulates per cycle at 8 x 8 bits with all arrays full, without the row-sum columns."""
        array = self.mac_array
        return array.count * array.rows * array.cols / array.pass_cycles_a8w8

    @property
    def peak_tops(self) -> float:
        """Peak 8-bit operations per second in units of 1e12; one multiply-accumulate counts as two operations."""
        return 2 * self.peak_macs_per_cycle * self.clock_hz / 1e12

    @property
    def dram_bytes_per_cycle(self) -> float:
        """DRAM peak rate in bytes per NPU cycle, for display; exact cycle counts come from `dram_stream_cycles`."""
        return self.dram.bandwidth_bytes_per_second / self.clock_hz

    @property
    def interconnect_cycles(self) -> int:
        """The way between the NPU and the DRAM in NPU cycles, rounded up."""
        return ceil(Fraction(self.dram.interconnect_ns * self.clock_mhz, 1000))

    @property
    def dram_latency_cycles(self) -> int:
        """NPU cycles from a request to its first byte: a closed row, an idle controller, and the interconnect."""
        device = self.dram.device
        clocks = device.trcd_clocks + device.cas_clocks
        return ceil(Fraction(clocks * self.clock_mhz, device.clock_mhz)) + self.interconnect_cycles

    @property
    def storage_bytes_per_cycle(self) -> float:
        """Storage rate in bytes per NPU cycle, for display; `npusim.timing.storage` has the exact cycles."""
        return self.storage.device.bandwidth_bytes_per_second / self.clock_hz

    @property
    def storage_latency_cycles(self) -> int:
        """Storage latency in NPU cycles."""
        return self.storage.device.latency_us * self.clock_mhz

    def dram_stream_cycles(self, transfer_bytes: int) -> int:
        """Return the NPU cycles that `transfer_bytes` take at the peak rate of all channels: rounded up, no latency."""
        device = self.dram.device
        clocks = Fraction(transfer_bytes * device.burst_clocks, device.burst_bytes * self.dram.channels)
        return ceil(clocks * self.clock_mhz / device.clock_mhz)


def find_machine(name: str) -> Path:
    """The file that ``name`` means: a path, or the name of a machine in hwconfigs.

    Raises UserError for what looks like a name and is none; that a path leads to no file is `load_machine`'s to say.
    """
    path = Path(name)
    if path.suffix or not re.match(NAME_PATTERN, name) or path.exists():
        return path
    known = [file.stem for file in sorted(MACHINES.glob("[!.]*.yaml"))]
    if name not in known:
        raise UserError(f"{printable(name)}: no such machine; allowed: {', '.join(known)}, or a machine file's path")
    return MACHINES / f"{name}.yaml"


def load_machine(path: str | Path) -> Machine:
    """Read the machine file at `path` (or the machine of that name in hwconfigs), and the device tables that it names.

    Raises:
        UserError: a file cannot be read, is not strict YAML 1.2 (see `npusim.strict_yaml`), or has a field that is
            unknown, missing, of the wrong type, out of range, or in conflict with another. The message has one line for
            each fault: file, line, field, the value given, what is allowed, and for an unknown field the nearest name.
    """
    path = find_machine(str(path))
    document = read_yaml(path)
    for name in TABLES:
        section = document.data.get(name)
        if isinstance(section, dict) and isinstance(section.get("device"), str):
            section["device"] = _device(name, section["device"], Path(path), document.where((name, "device")))
    try:
        return Machine.model_validate(document.data)
    except ValidationError as error:
        raise UserError("\n".join(problems(error, Machine, document))) from error


def _device(section: str, name: str, machine: Path, where: str) -> dict[str, Any]:
    """Read and check the device table `name` of `section`; the fields as plain data."""
    folders = [machine.parent / section, MACHINES / section]
    tables = {table.stem: table for folder in reversed(folders) for table in sorted(folder.glob("*.yaml"))}
    if name not in tables:
        raise UserError(
            f"{where}: {section}.device: there is no table {name!r}; allowed: {', '.join(sorted(tables))}, "
            "or the device's fields themselves"
        )
    document, model = read_yaml(tables[name]), TABLES[section]
    try:
        model.model_validate(document.data)
    except ValidationError as error:
        raise UserError("\n".join(problems(error, model, document))) from error
    return document.data
