import inspect
from dataclasses import replace

import numpy as np
import pytest

from npusim import engine, numerics, reference, simulate
from npusim.errors import UserError
from npusim.isa import BY_MNEMONIC, decode
from npusim.isa import table as table_isa
from npusim.isa.encoding import DTYPE_NAMES, DTYPES
from npusim.memory import MachineState
from npusim.simulate import Simulation
from tests.npusim.strategies import DRAM, machine, make


def run_all(simulation):
    simulation.prologue()
    for step in range(simulation.program.steps):
        simulation.step(step)
    return simulation


def truncating_table(state, ins):
    """The TABLE instruction with a slip: its rescale truncates instead of rounding."""
    a, table = table_isa.operands(state, ins)
    value = numerics.table_lookup_16(a.values(), table.astype(np.int64))
    _, low, high = DTYPES[DTYPE_NAMES[ins.out_dtype]]
    table_isa.output(state, ins).assign(np.clip((value * ins.multiplier >> ins.shift) + ins.out_zp, low, high))


@pytest.mark.parametrize("step", [-1, 4])
def test_a_step_that_does_not_exist_is_refused(tiny, step):
    with pytest.raises(UserError, match=rf"step {step} does not exist; allowed 0\.\.3"):
        Simulation(tiny.program, tiny.inputs).step(step)


def test_every_step_equals_the_reference(tiny):
    simulation = run_all(Simulation(tiny.program, tiny.inputs, range(4), verify_prologue=True))
    bits = simulation.bit_exact
    assert bits == simulate.BitExact((0, 1, 2, 3), True, True, None)


def test_memories_equal_those_of_the_reference_alone(tiny):
    """The whole run once more, without any code of `Simulation`."""
    program = tiny.program
    state = MachineState(program.machine, program.dram_bytes)
    for start, contents in program.areas.values():
        state.dram[start : start + contents.size] = contents
    for name, values in tiny.inputs.items():
        address, data = program.buffers[name].address, values.tobytes()
        state.dram[address : address + len(data)] = np.frombuffer(data, np.uint8)
    reference.run(state, program.prologue)
    for step in range(program.steps):
        state.bases = program.bases(step)
        reference.run(state, program.step)
    simulation = run_all(Simulation(program, tiny.inputs))
    assert simulation.bit_exact.equal is None
    for memory in ("dram", "sram", "param"):
        np.testing.assert_array_equal(getattr(simulation.state, memory), getattr(state, memory))


def test_more_dram_than_this_computer_can_allocate(tiny):
    with pytest.raises(UserError, match=f"needs {1 << 60} bytes of DRAM.*this computer cannot allocate"):
        Simulation(replace(tiny.program, dram_bytes=1 << 60), tiny.inputs)


def test_a_rounding_slip_in_the_engine_is_found_and_named(tiny, monkeypatch):
    monkeypatch.setitem(engine.EXECUTORS, "table", truncating_table)
    simulation = run_all(Simulation(tiny.program, tiny.inputs, [1, 3]))
    bits = simulation.bit_exact
    assert bits.equal is False
    assert bits.steps_compared == (1,)
    found = bits.first_difference
    assert (found.part, found.mnemonic, found.memory) == ("step 1", "table", "sram")
    assert abs(found.engine - found.reference) == 1

    # Where it should be: the first TABLE of the step whose result the slip changes.
    start = Simulation(tiny.program, tiny.inputs)
    start.prologue()
    start.step(0)
    start.state.bases = tiny.program.bases(1)
    code = decode(tiny.program.step)
    for ins in code:
        if ins.op == "table":
            other = start.state.copy()
            truncating_table(other, ins)
        reference.execute(start.state, [ins])
        if ins.op == "table" and not np.array_equal(other.sram, start.state.sram):
            break
    kind = np.dtype(DTYPES[found.dtype][0])
    index = next(i for i, each in enumerate(code) if each is ins)
    assert found.instruction == index
    assert found.layer == tiny.program.layers[ins.layer]
    assert found.dtype == DTYPE_NAMES[ins.out_dtype]
    assert found.engine == other.vector("sram", found.byte, kind, 1)[0]
    assert found.reference == start.state.vector("sram", found.byte, kind, 1)[0]
    for part in (f"instruction {index}", "table", found.layer, str(found.byte)):
        assert part in str(found)


def test_a_slip_in_the_prologue_is_found(tiny, monkeypatch):
    monkeypatch.setitem(engine.EXECUTORS, "table", truncating_table)
    simulation = Simulation(tiny.program, tiny.inputs, [0], verify_prologue=True)
    simulation.prologue()
    assert simulation.bit_exact.first_difference.part == "prologue"
    simulation.step(0)  # nothing is compared after the first difference
    assert simulation.bit_exact.steps_compared == ()


def test_a_wrong_byte_that_no_type_covers_is_reported_as_a_byte(tiny, monkeypatch):
    load = engine.EXECUTORS["load"]

    def slip(state, ins):
        load(state, ins)
        getattr(state, ("sram", "param")[ins.memory])[ins.local_addr] ^= 1

    monkeypatch.setitem(engine.EXECUTORS, "load", slip)
    simulation = Simulation(tiny.program, tiny.inputs, verify_prologue=True)
    simulation.prologue()
    found = simulation.bit_exact.first_difference
    assert (found.mnemonic, found.dtype, found.engine ^ found.reference) == ("load", "u8", 1)


def made_wrong(monkeypatch, ins, byte, value):
    """The difference where the engine leaves ``value`` in a byte of SRAM behind ``ins``, on memories of zeros."""

    def slip(state, ins):
        BY_MNEMONIC[ins.op].execute(state, ins)
        state.sram[byte] = value

    monkeypatch.setitem(engine.EXECUTORS, ins.op, slip)
    return simulate.first_difference(MachineState(machine(), DRAM), "step 0", [ins], ("layer",))


def test_a_packed_element_is_shown_by_its_value(monkeypatch):
    ins = make("table8", rows=2, cols=5, a_dtype="u4", out_dtype="i4", a_row=3, out_row=3, out_addr=100)
    found = made_wrong(monkeypatch, ins, 104, 0xD0)  # element 3 of the second row: its upper half
    assert (found.byte, found.dtype, found.engine, found.reference) == (104, "i4", -3, 0)
    assert str(found).endswith(
        "sram byte 104 (i4) is -3 in the engine, 0 in the reference; element [1, 3] of out [2, 5]"
    )
    padding = made_wrong(monkeypatch, ins, 105, 0xD0)  # behind the last element: no element differs
    assert (padding.byte, padding.dtype, padding.engine, padding.element) == (105, "u8", 0xD0, "")


def test_a_record_is_shown_by_the_field_that_differs(monkeypatch):
    ins = make("lnstat", rows=2, cols=4, stat_addr=100, epsilon=1)
    found = made_wrong(monkeypatch, ins, 120, 7)
    assert (found.byte, found.dtype, found.engine, found.reference) == (120, "i32", 7, 21)
    assert found.element == "shift of element [1] of stat [2]"


def test_a_twin_goes_its_own_way(tiny):
    simulation = Simulation(tiny.program, tiny.inputs, [0])
    simulation.prologue()
    twin = simulation.twin()
    before = simulation.read("state")
    twin.write("state", np.zeros_like(before))
    twin.step(2)
    np.testing.assert_array_equal(simulation.read("state"), before)
    assert twin.bit_exact.equal is None
    other = run_all(Simulation(tiny.program, tiny.inputs))
    for step in range(4):
        simulation.step(step)
    for name in ("state", "eps", "raw"):
        np.testing.assert_array_equal(simulation.read(name), other.read(name))


def test_bad_requests_are_refused(tiny):
    with pytest.raises(UserError, match=r"step 4 does not exist; allowed 0\.\.3"):
        Simulation(tiny.program, tiny.inputs, [4])
    with pytest.raises(UserError, match="input 'noise' is missing"):
        Simulation(tiny.program, {name: v for name, v in tiny.inputs.items() if name != "noise"})
    with pytest.raises(UserError, match=r"buffer 'state': given int64\[64, 16\], allowed int32\[64, 16\]"):
        Simulation(tiny.program, {**tiny.inputs, "state": tiny.inputs["state"].astype(np.int64)})
    with pytest.raises(UserError, match="no buffer 'latent'"):
        Simulation(tiny.program, tiny.inputs).read("latent")


def test_an_access_outside_a_memory_names_its_instruction(tiny):
    code = tiny.program.prologue.copy()
    index = next(i for i, ins in enumerate(decode(code)) if ins.op == "load")
    code[index, 2] = tiny.program.dram_bytes  # the low word of the DRAM address
    broken = Simulation(replace(tiny.program, prologue=code), tiny.inputs)
    with pytest.raises(UserError, match=rf"prologue, instruction {index} \(load, layer .*\): "):
        broken.prologue()


def test_no_float_in_the_program_or_between_host_and_machine(tiny):
    program = tiny.program
    arrays = [program.prologue, program.step, program.constants, program.sets, *tiny.inputs.values()]
    simulation = run_all(Simulation(program, tiny.inputs))
    arrays += [simulation.read(name) for name in program.buffers]
    arrays += [simulation.state.dram, simulation.state.sram, simulation.state.param]
    assert {array.dtype.kind for array in arrays} <= {"i", "u"}
    assert all(isinstance(value, int) for value in program.host.values())
    assert "float" not in inspect.getsource(simulate)
