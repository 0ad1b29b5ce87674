"""Energy of a program on its machine: counted actions times the table, by layer, by part and by component.

The denoiser only, as timing counts it: the text encoder and the autoencoder run elsewhere.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from npusim.config import Machine
from npusim.cost.actions import ArrayActions, array_actions
from npusim.cost.area import accumulator_macros, param_macros, sram_macros
from npusim.cost.static import IDLE, LEAKAGE, Static, added, static_energy
from npusim.cost.tables import Base, Macros, Range, base_table, sram_table
from npusim.program import Program
from npusim.timing import CodeTiming, ProgramTiming, Traffic

WORK = (
    "multiply_accumulate",
    "accumulators",
    "requantization",
    "vector",
    "sram",
    "param_memory",
    "dram",
    "storage",
    "decoder",
)
"""Components that a layer's own actions cause."""
TIME = (IDLE, LEAKAGE)
"""Components that time causes; they belong to a part, not to a layer."""
COMPONENTS = (*WORK, *TIME)

Energies = Mapping[str, Range]
"""pJ by component."""


@dataclass(frozen=True)
class PartEnergy:
    """One execution of the prologue or of a step: ``layers`` by number, with `WORK`; ``static``: `TIME`, by cause."""

    layers: Mapping[int, Energies]
    static: Static

    @property
    def time(self) -> Energies:
        """`TIME` of all units."""
        return {
            name: total(parts[name] for causes in self.static.values() for parts in causes.values()) for name in TIME
        }

    @property
    def by_component(self) -> Energies:
        work = {name: total(layer[name] for layer in self.layers.values()) for name in WORK}
        return {**work, **self.time}

    @property
    def total_pj(self) -> Range:
        return total(self.by_component.values())


@dataclass(frozen=True)
class Energy:
    """Of a whole video: the prologue once, then ``codes`` as each step of ``code_of_step`` asks for.

    ``step`` is the first of the codes; ``node_nm``: what all figures were scaled to.
    """

    prologue: PartEnergy
    codes: tuple[PartEnergy, ...]
    code_of_step: tuple[int, ...]
    node_nm: int

    @property
    def step(self) -> PartEnergy:
        return self.codes[0]

    @property
    def static(self) -> Static:
        """Idle and leakage of the whole video by unit and cause."""
        found = self.prologue.static
        for number, count in Counter(self.code_of_step).items():
            found = added(found, self.codes[number].static, count)
        return found

    @property
    def by_component(self) -> Energies:
        found = dict(self.prologue.by_component)
        for number, count in Counter(self.code_of_step).items():
            for name, value in self.codes[number].by_component.items():
                found[name] += value * count
        return found

    @property
    def total_pj(self) -> Range:
        return total(self.by_component.values())


@dataclass(frozen=True)
class Unit:
    """Energies in pJ of one action on one machine, at its node."""

    multiply_8x8: Range
    add_32: Range
    register_bit: Range
    requantize: Mapping[int, Range]
    vector_lane: Range
    accumulator_update: Range
    sram_read_byte: Range
    sram_write_byte: Range
    param_read_byte: Range
    param_write_byte: Range
    dram_byte: Range
    storage_byte: Range
    decoded_byte: Range
    idle_cell_cycle: Range
    idle_lane_cycle: Range


def energy(program: Program, timing: ProgramTiming, node_nm: int | None = None) -> Energy:
    """Energy of ``program``, of which ``timing`` is the timing; ``node_nm``: instead of the table's for the machine."""
    machine, base = program.machine, base_table()
    node = base.node_of(machine.name) if node_nm is None else node_nm
    units = unit_energies(machine, node)
    prologue, *codes = (
        _part(machine, node, units, array_actions(code, machine), part)
        for (_, code), part in zip(program.code(), (timing.prologue, *timing.codes), strict=True)
    )
    return Energy(prologue, tuple(codes), timing.code_of_step, node)


def swap_energy(machine: Machine, storage_read_bytes: int, dram_fetch_bytes: int, decoded_bytes: int) -> Range:
    """Energy in pJ of fetched bytes: read from storage, moved on the DRAM's bus, decoded where they are coded."""
    units = unit_energies(machine, base_table().node_of(machine.name))
    return (
        units.storage_byte * storage_read_bytes + units.dram_byte * dram_fetch_bytes
        + units.decoded_byte * decoded_bytes
    )  # fmt: skip


def unit_energies(machine: Machine, node_nm: int) -> Unit:
    """What each action costs on ``machine`` at ``node_nm``."""
    base, figures = base_table(), base_table().figures

    def pj(name: str) -> Range:
        figure = getattr(figures, name)
        scaled: Range = figure.range * base.energy_factor(figure.node_nm, node_nm)
        return scaled

    array = machine.mac_array
    multiply, add, register = pj("multiply_8x8_pj"), pj("add_32_pj"), pj("register_bit_pj")
    update = sum(byte_access(base, accumulator_macros(machine), node_nm), Range()) * (array.acc_bits / 8)
    reads, writes = byte_access(base, sram_macros(machine), node_nm)
    param = byte_access(base, param_macros(machine), node_nm)
    lane = pj("vector_lane_pj")
    idle = figures.idle_share.range
    return Unit(
        multiply_8x8=multiply,
        add_32=add,
        register_bit=register,
        requantize={16: pj("requantize_16_pj"), 32: pj("requantize_32_pj")},
        vector_lane=lane,
        accumulator_update=update + add * (array.acc_bits / 32),
        sram_read_byte=reads,
        sram_write_byte=writes,
        param_read_byte=param[0],
        param_write_byte=param[1],
        dram_byte=base.dram(machine.dram.device.kind) * 8,
        storage_byte=base.storage(machine.storage.device.kind) * 8,
        decoded_byte=pj("decoded_byte_pj"),
        idle_cell_cycle=product_pj(multiply, add, register, (8, 8), array.acc_bits) * idle,
        idle_lane_cycle=lane * idle,
    )


def product_pj(multiply: Range, add: Range, register: Range, bits: tuple[int, int], acc_bits: int) -> Range:
    """One product in a cell: multiplier by the product of the widths, adder by its width, and the registers behind."""
    return multiply * (bits[0] * bits[1] / 64) + add * (acc_bits / 32) + register * (bits[0] + acc_bits)


def byte_access(base: Base, macros: Macros, node_nm: int) -> tuple[Range, Range]:
    """Energies in pJ to read and to write one byte of an SRAM bank, as its share of whole words."""
    table = sram_table()
    bank = table.bank(macros.bytes, macros.word_bits)
    factor = base.energy_factor(table.node_nm, node_nm) * (8 / macros.word_bits)
    return Range(*bank.read_pj) * factor, Range(*bank.write_pj) * factor


def _part(
    machine: Machine, node_nm: int, units: Unit, array: Mapping[int, ArrayActions], timing: CodeTiming
) -> PartEnergy:
    vectors = machine.units_of("vector")
    layers = {
        number: _layer(
            machine,
            units,
            array.get(number, ArrayActions()),
            layer.traffic,
            sum(layer.busy_cycles[unit] for unit in vectors),
        )
        for number, layer in timing.layers.items()
    }
    static = static_energy(
        machine, node_nm, units.idle_cell_cycle, units.idle_lane_cycle, timing.ledger, timing.total_cycles
    )
    return PartEnergy(layers, static)


def _layer(machine: Machine, units: Unit, array: ArrayActions, traffic: Traffic, vector_cycles: int) -> Energies:
    acc_bits = machine.mac_array.acc_bits
    products = total(
        product_pj(units.multiply_8x8, units.add_32, units.register_bit, bits, acc_bits) * count
        for bits, count in array.products.items()
    )
    sram_reads = traffic.sram_read_bytes + array.refetched_bytes
    return {
        "multiply_accumulate": products + units.add_32 * array.row_sums,
        "accumulators": units.accumulator_update * array.accumulations,
        "requantization": total(units.requantize[bits] * count for bits, count in array.requantizations.items()),
        "vector": units.vector_lane * (vector_cycles * machine.vector_unit.lanes),
        "sram": units.sram_read_byte * sram_reads + units.sram_write_byte * traffic.sram_write_bytes,
        "param_memory": units.param_read_byte * traffic.param_read_bytes
        + units.param_write_byte * traffic.param_load_bytes,
        "dram": units.dram_byte * (traffic.dram_read_bytes + traffic.dram_write_bytes + traffic.dram_fetch_bytes),
        "storage": units.storage_byte * traffic.storage_read_bytes,
        "decoder": units.decoded_byte * traffic.decoded_bytes,
    }


def total(ranges: Iterable[Range]) -> Range:
    """Sum of ``ranges``; low with low, high with high, as if all sources erred the same way."""
    return sum(ranges, Range())


def as_pj(value: Range) -> dict[str, int]:
    """A range of pJ as run.json holds it, whole pJ."""
    return {"low": round(value.low), "nominal": round(value.nominal), "high": round(value.high)}


def energy_block(found: Energy) -> dict[str, object]:
    """``cost.energy_pj`` of run.json: in all, by component, of prologue and step; idle and leakage by cause."""
    return {
        "total": as_pj(found.total_pj),
        "prologue": as_pj(found.prologue.total_pj),
        "step": as_pj(found.step.total_pj),
        "by_component": {name: as_pj(value) for name, value in found.by_component.items()},
        "static_by_cause": {
            unit: {cause: as_pj(total(parts.values())) for cause, parts in causes.items()}
            for unit, causes in found.static.items()
        },
        "node_nm": found.node_nm,
    }
