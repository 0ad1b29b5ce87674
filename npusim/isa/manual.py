"""Writes ISA.md from the instruction table: what a reader needs to check every bit by hand.

    python -m npusim.isa.manual      # rewrites npusim/isa/ISA.md

Fields, rules, texts and cycles come from the same rows that encode, decode, assemble and validate; the errors of
approximating instructions come from accuracy.json, which `npusim.accuracy` measures.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from npusim import numerics
from npusim.atomic_file import write_atomically
from npusim.isa import ALL
from npusim.isa.encoding import DTYPES, ELEMENT_BITS, HEADER, INSTRUCTION_BYTES, MAX_SHIFT, WORDS, Field, Instruction
from npusim.isa.layernorm import STATISTICS
from npusim.isa.matmul import FACTORED, RECORD, ROW_RECORD, SCALARS
from npusim.units import KINDS

FOLDER = Path(__file__).parent
FILE, ACCURACY = FOLDER.joinpath("ISA.md"), FOLDER.joinpath("accuracy.json")

RECORDS = {
    "RECORD": (RECORD, "MATMUL tensor, channel: the 48-bit bias in two parts, the zero point of the weights"),
    "ROW_RECORD": (ROW_RECORD, "MATMUL row, written by RECIP: the scale of one output row"),
    "FACTORED": (FACTORED, "MATMUL factored modes: what is fixed for a channel; the bias has fraction_bits"),
    "SCALARS": (SCALARS, "MATMUL factored modes: zero point of the input and second scale, of a layer or a row"),
    "STATISTICS": (STATISTICS, "LNSTAT to LNAPPLY: what is known of a row"),
}
FUNCTIONS = (
    numerics.rescale, numerics.rescale_double, numerics.saturate_32, numerics.requantize, numerics.narrow_accumulator,
    numerics.bit_length, numerics._rsqrt_seed, numerics.rsqrt, numerics._recip_seed, numerics.reciprocal,
    numerics.normalised_multiplier, numerics._exp2_knots, numerics.exp2_negative, numerics.table_lookup_16,
)  # fmt: skip

EXAMPLE = """\
# 16 numbers from DRAM times 3/2, back to DRAM behind them.
# Bits of a token field: load 1, store 2, mac 4, vector 8, storage 16, then load2 32 and so on.
load  dram_addr=0 local_addr=0 row_bytes=32 rows=1 planes=1 signal_raw=8
ewlin a_addr=0 out_addr=64 rows=1 cols=16 batch=1 a_dtype=i16 out_dtype=i16 a_mul=3 shift=1 b_addr=0xffffffff \
a_mul_addr=0xffffffff b_mul_addr=0xffffffff bias_addr=0xffffffff wait_raw=1 signal_raw=2
store dram_addr=32 local_addr=64 row_bytes=32 rows=1 planes=1 wait_raw=8
halt
"""

EXAMPLE_COMMANDS = (
    "npusim asm example.s --hw hwconfigs/tiny_8x8.yaml --out example.npu",
    "npusim verify example.npu",
    "npusim explain example.npu 1",
)

INTRODUCTION = f"""# The instruction set

Generated from the instruction table by `python -m npusim.isa.manual`; do not edit. The reference executor
(`npusim/reference.py`) runs the semantics described here, and every other executor must leave the same bits.

## Machine

Six memories: storage, which only FETCH reads and nothing writes; DRAM; the scratchpad (`sram`), which all operands of
computation lie in; the parameter memory (`param`) with requantization records, tables and per-channel vectors; its
second bank (`param_next`), which only LOAD writes; and
the accumulators of each MAC array. Units of five kinds work side by side, each on its own queue in order: `load`,
`store`, `mac`, `vector`, `storage`. A machine may have a second of each: `load2`, `store2`, `mac2`, `vector2`,
`storage2`. All share the memories but for the accumulators, of which each MAC array has its own; each storage DMA reads
a device of its own, all with the same contents. An instruction on a unit that the machine has not is undefined.

## Words

An instruction is {WORDS} little-endian words of 32 bits, {INSTRUCTION_BYTES} bytes. A field lies inside one word, or
spans two (64 bits, low word first); signed fields are two's complement. Bits that belong to no field are 0, and a word
that breaks this is refused. Hardware loops inside an instruction run over rows, batches and channels. Addresses and
strides are bytes and independent, so an operand may be a slice, a transpose (MATMUL's b) or a repeated row (stride 0).
In an optional address, 0xffffffff means absent. An instruction reads all of its operands before it writes.

Words 0, 1 and 31 are the header of every instruction:

HEADER_TABLE

## Tokens

Between units only tokens order anything. For every ordered pair of units there are two counters, `raw` (data is there)
and `war` (space is free). An instruction starts when each counter named in its `wait_raw` and `wait_war` holds a token,
and takes one from each; when it is complete, it adds one to each counter named in `signal_raw` and `signal_war`.
BARRIER and HALT wait for everything before them, and then all counters must be 0.

## Element types

TYPE_TABLE

Elements of 4 and 6 bits are packed: element i of a row takes the bits from i times its width, counted from the lowest
bit of the row's first byte. A row starts at a byte; bits left over in its last byte are written as 0 and ignored when
read.

## Records

Little-endian, without gaps; a type is its number of bits.

RECORD_TABLE

## Numbers

Everything is an integer. `v >> s` keeps the sign. Wherever rounding happens it is TOSA 1.0's single rounding,

    rescale(v, m, s) = (v m + 2^(s-1)) >> s          s in 1..{MAX_SHIFT}, ties towards +infinity

or, in MATMUL's records on a machine with `requant_rounding: double`, TOSA's double rounding (equal to gemmlowp's):
`+ 2^30` more for `v >= 0` and `- 2^30` otherwise where s > 31. A requantization is

    requantize(v, m, s, zp) = clamp(sat32(rescale(v, m, s)) + zp)

with sat32 the clamp to 32 bits and clamp the one to the result's type. Multipliers of records are 0..2^15 - 1, or
0..2^31 - 1 on a machine with `requant_multiplier_bits: 32`, whose accumulators have at most 32 bits; so int64 holds
every intermediate value. Accumulators have the machine's `acc_bits` and saturate, wrap or trap where MATMUL says.
`numerics.*` names a function at the end of this page.

## Assembler text

One instruction a line, `mnemonic field=value ...`, and `#` starts a comment. Values are decimal or 0x; enumerations are
written by name; a field that is not named is 0, `unit` the first of the instruction's kind. `npusim asm` and `npusim
disasm` are inverse to each other. This text, as `example.s`,

```text
{EXAMPLE}```

becomes a program whose only buffer is the DRAM that it reaches; it can be checked, run on random numbers by both
executors, and explained:

```sh
{chr(10).join(EXAMPLE_COMMANDS)}
```

## Instructions

An instruction is *undefined* outside the conditions listed with it: loading, verifying and timing refuse it. An
executor *stops* at what only the contents of memory can break. *Cycles* is how long its unit is busy; the cycle model
adds the waiting. *Error* is against float64 and stands where an instruction approximates a real function.
"""


def table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    """Lines of a Markdown table."""
    yield f"| {' | '.join(header)} |"
    yield f"|{'---|' * len(header)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def field_table(fields: Iterable[Field]) -> Iterator[str]:
    """Where each field lies, its type and its meaning."""
    rows = []
    for f in fields:
        place = f"{f.word}" if f.bits == 32 else f"{f.word}, {f.word + 1}" if f.bits == 64 else ""
        place = place or f"{f.word}: {f.lo + f.bits - 1}..{f.lo}"
        kind = ", ".join(f.names) if f.names else f"{'i' if f.signed else 'u'}{f.bits}"
        rows.append((f"`{f.name}`", place, kind, f.doc))
    return table(("field", "word: bits", "type", "meaning"), rows)


def type_table() -> Iterator[str]:
    """The element types."""
    rows = (
        (str(i), f"`{name}`", str(ELEMENT_BITS[name]), f"{low}..{high}")
        for i, (name, (_, low, high)) in enumerate(DTYPES.items())
    )
    return table(("number", "type", "bits", "values"), rows)


def record_table() -> Iterator[str]:
    """What lies in memory for an instruction beside its operands."""
    rows = []
    for name, (kind, meaning) in RECORDS.items():
        parts: Mapping[str, Any] = kind.fields or {}
        layout = "; ".join(f"{offset}: `{part}` {t.kind}{8 * t.itemsize}" for part, (t, offset, *_) in parts.items())
        rows.append((f"`{name}`", str(kind.itemsize), layout, meaning))
    return table(("record", "bytes", "byte offset: field", "meaning"), rows)


def section(spec: Instruction, errors: dict[str, str]) -> Iterator[str]:
    """One instruction."""
    units = "any unit" if spec.units == KINDS else f"unit `{spec.units[0]}`"
    yield f"#### {spec.mnemonic}"
    yield ""
    yield f"{spec.summary[0].upper()}{spec.summary[1:]}. Opcode {spec.opcode:#04x}, {units}."
    if spec.fields:
        yield ""
        yield from field_table(spec.fields)
    for title, lines in (
        (
            "Undefined unless",
            [f"{', '.join(f'`{name}`' for name in rule.fields)}: {rule.allowed}" for rule in spec.rules],
        ),
        ("Stops at", list(spec.stops)),
    ):
        if lines:
            yield ""
            yield f"{title}:"
            yield ""
            yield from (f"* {line}" for line in lines)
    yield ""
    yield f"Cycles: {inspect.cleandoc(spec.cycles.__doc__ or '')}"
    if errors:
        yield ""
        yield from table(("error of", "against float64"), errors.items())
    yield ""


def manual() -> str:
    """The whole of ISA.md."""
    accuracy = json.loads(ACCURACY.read_text(encoding="utf-8"))
    text = INTRODUCTION.replace("HEADER_TABLE", "\n".join(field_table(HEADER)))
    text = text.replace("RECORD_TABLE", "\n".join(record_table()))
    lines = text.replace("TYPE_TABLE", "\n".join(type_table())).splitlines()
    family = None
    for spec in ALL:
        if spec.doc != family:
            family = spec.doc
            title, _, body = inspect.cleandoc(spec.doc).partition("\n")
            lines += ["", f"### {title.rstrip('.')}", "", body.strip(), ""]
        lines += section(spec, accuracy.get(spec.mnemonic, {}))
    lines += ["", "## Functions", "", "As the reference executor has them; values are int64 arrays.", "", "```python"]
    lines += "\n\n\n".join(inspect.getsource(function).rstrip() for function in FUNCTIONS).splitlines()
    return "\n".join([*lines, "```"]) + "\n"


def main() -> None:
    """Write the file."""
    write_atomically(FILE, manual().encode())
    print(f"{FILE}: written")


if __name__ == "__main__":
    main()
