"""What each graph operation takes: element types, shapes and the range of its integers, as one table.

``Builder`` checks an operation when it is added, ``verify_graph`` a whole graph after every pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from npusim.isa.encoding import ELEMENT_BITS, MAX_SHIFT
from npusim.isa.layernorm import MAX_COLS
from npusim.isa.table import ENTRIES as TABLE_ENTRIES

if TYPE_CHECKING:
    from compiler.graph import Graph, Op, Value

Shape = tuple[int, ...]

INT32 = -(1 << 31), (1 << 31) - 1
LINEAR_INPUTS = ("u8", "i8", "i16", "u4", "u6")
HOST_TYPES = ("u8", "i8", "i16", "i32")
"""What the host reads and writes: whole bytes."""
ELEMENTS = (*HOST_TYPES, "u4", "u6")
SHIFT_BITS = 2
"""Bits of one input shift of a linear in their table."""
_SHIFT = {"shift": (1, MAX_SHIFT)}
_ZERO_POINT = {"out_zp": INT32}
_NORM = {"epsilon": (1, (1 << 58) - 1), "fraction_bits": (0, 15)}


@dataclass(frozen=True)
class Operation:
    """Element types allowed for each role (``output`` among them), and (least, greatest) of each integer attribute.

    Roles that an operation does not name here take any type. Attributes in ``optional`` may be absent.
    """

    types: dict[str, tuple[str, ...]]
    integers: dict[str, tuple[int, int]]
    optional: tuple[str, ...] = ()


OPERATIONS = {
    "linear_centred": Operation(
        {
            "x": LINEAR_INPUTS, "weight": ("u8", "u6", "u4"), "in_zp": ("i32",), "weight_zp": ("i16",),
            "bias": ("i64",), "multiplier": ("i32",), "shift": ("u8",), "shifts": ("u8",), "output": ELEMENTS,
        },
        _ZERO_POINT,
    ),
    "linear": Operation(
        {
            "x": LINEAR_INPUTS, "weight": ("i8", "i6", "i4", "i16"), "records": ("record",), "shifts": ("u8",),
            "output": ELEMENTS,
        },
        _ZERO_POINT,
    ),
    "linear_factored": Operation(
        {
            "x": LINEAR_INPUTS, "weight": ("i8", "i6", "i4"), "records": ("factored",), "scalars": ("scalars",),
            "shifts": ("u8",), "output": ELEMENTS,
        },
        {"fraction_bits": (1, 15), **_ZERO_POINT},
    ),
    "linear_dynamic": Operation(
        {"x": ("i16",), "weight": ("i8", "i6", "i4"), "records": ("factored",), "output": ELEMENTS},
        {
            "bits": (4, 8), "row_multiplier": (1 << 30, (1 << 31) - 1), "row_shift": (34, MAX_SHIFT),
            "fraction_bits": (1, 15), **_ZERO_POINT,
        },
    ),
    "layernorm": Operation({"x": ("i16",), "output": ("i16",)}, _NORM),
    "modulate": Operation({"x": ("i16",), "g": ("i16",), "b": ("i32",), "output": ELEMENTS}, _SHIFT | _ZERO_POINT),
    "layernorm_modulate": Operation(
        {"x": ("i16",), "g": ("i16",), "b": ("i32",), "output": ELEMENTS}, _NORM | _SHIFT | _ZERO_POINT
    ),
    "elementwise": Operation(
        {"a": ELEMENTS, "b": ELEMENTS, "a_mul": ("i16", "i32"), "b_mul": ("i16", "i32"), "bias": ("i32",),
         "output": ELEMENTS},
        {"a_mul": INT32, "b_mul": INT32, **_SHIFT, **_ZERO_POINT},
        ("a_mul", "b_mul"),
    ),
    "product": Operation({"a": ELEMENTS, "b": ELEMENTS, "output": ELEMENTS}, _SHIFT | _ZERO_POINT),
    "table": Operation(
        {"x": ("i16",), "table": ("i16",), "output": ELEMENTS},
        {"multiplier": (0, (1 << 16) - 1), **_SHIFT, **_ZERO_POINT},
    ),
    "attention": Operation(
        {"q": ("i8", "i16"), "k": ("i8", "i16"), "v": ("i8", "i16"), "valid": ("i32",), "output": ELEMENTS},
        {
            "heads": (1, 1 << 16), "fraction_bits": (0, 16), "p_bits": (8, 15), "logit_multiplier": (0, (1 << 15) - 1),
            "logit_shift": (1, MAX_SHIFT), "out_multiplier": (1 << 30, (1 << 31) - 1), "out_shift": (0, 63),
            **_ZERO_POINT,
        },
    ),
}  # fmt: skip
"""By kind."""


def faults(graph: Graph, op: Op) -> Iterator[str]:
    """Broken rules of one operation whose operands exist: shapes first, then element types, then integers."""
    operands = {role: graph.values[name] for role, name in [*op.inputs.items(), ("output", op.output)]}
    for role, value in operands.items():
        if role in ("x", "a", "q", "k", "v", "weight", "output") and len(value.shape) != 2:
            yield f"{role} has shape {value.shape}; allowed: a matrix (rows, columns)"
            return
    shapes = {role: value.shape for role, value in operands.items() if role != "output"}
    for role, expected in expected_shapes(graph, op, shapes).items():
        if operands[role].shape != expected:
            yield f"{role} has shape {operands[role].shape}; allowed: {expected}"
    rules = OPERATIONS[op.kind]
    for role, value in operands.items():
        allowed = rules.types.get(role, (value.dtype,))
        if value.dtype not in allowed:
            yield f"{role} %{value.name} has type {value.dtype}; allowed: {', '.join(allowed)}"
    for name, (low, high) in rules.integers.items():
        number = op.attrs.get(name)
        if number is None:
            if name not in rules.optional:
                yield f"{name} is missing; allowed: {low}..{high}"
        elif not low <= number <= high:
            yield f"{name} = {number}; allowed: {low}..{high}"
    yield from _further_rules(graph, op, operands)


def _further_rules(graph: Graph, op: Op, operands: dict[str, Value]) -> Iterator[str]:
    """Rules that tie two operands or attributes together."""
    if op.kind == "attention":
        yield from _attention_rules(graph, op, operands)
    if op.kind in ("layernorm", "layernorm_modulate") and operands["x"].shape[1] > MAX_COLS:
        yield f"x has {operands['x'].shape[1]} columns; allowed: at most {MAX_COLS}"
    if op.kind == "linear" and operands["weight"].dtype == "i16" and operands["x"].dtype != "i16":
        yield f"weight has type i16 and x {operands['x'].dtype}; allowed: x of type i16 with it"
    pattern = op.attrs.get("b_rows", "")
    unit = {"": 1, "position": graph.positions, "frame": graph.positions * graph.frames}.get(pattern)
    if unit is None:
        yield f"b_rows = {pattern!r}; allowed: '', position, frame"
    elif operands["output"].shape[0] % unit:
        yield f"{operands['output'].shape[0]} rows; allowed with b_rows = {pattern!r}: a multiple of {unit}"
    if op.kind == "elementwise":
        for role in ("a", "b"):
            wide = role in operands and operands[role].dtype == "i32"
            limit = 1 << 30 if wide else (1 << 31) - 1
            if abs(op.attrs.get(f"{role}_mul", 0)) > limit:
                yield f"{role}_mul = {op.attrs[f'{role}_mul']}; allowed: -{limit}..{limit}"
            vector = operands.get(f"{role}_mul")
            if vector is not None and wide and vector.dtype != "i32":
                yield f"{role}_mul has type {vector.dtype}; allowed: i32 with {role} of type {operands[role].dtype}"
        narrow = {
            operands[f"{r}_mul"].dtype for r in ("a", "b") if f"{r}_mul" in operands and operands[r].dtype != "i32"
        }
        if len({operands[role].shape for role in ("a_mul", "b_mul") if role in operands}) > 1:
            yield "a_mul and b_mul have one number and one for each column; allowed: the same for both"
        if len(narrow) > 1:
            yield "a_mul and b_mul have types i16 and i32; allowed: one type, but for an operand of type i32"


def _attention_rules(graph: Graph, op: Op, operands: dict[str, Value]) -> Iterator[str]:
    q, k, v = (operands[role] for role in "qkv")
    heads, over, p_bits = op.attrs["heads"], op.attrs.get("over"), op.attrs["p_bits"]
    if q.shape[1] % heads:
        yield f"heads = {heads} does not divide the {q.shape[1]} columns of q"
    elif q.shape[1] // heads * ELEMENT_BITS[operands["output"].dtype] % 8:
        yield f"a head of {q.shape[1] // heads} columns of {operands['output'].dtype} ends inside a byte of the output"
    if (q.dtype, k.dtype) == ("i8", "i16"):
        yield "k has type i16 and q i8; allowed: k no wider than q"
    if p_bits == 8 and v.dtype != "i8":
        yield f"p_bits = 8 with v of type {v.dtype}; allowed: 9..15, or v of type i8"
    rows = graph.branches * graph.frames * graph.positions
    if over not in ("spatial", "temporal", "cross"):
        yield f"over = {over!r}; allowed: spatial, temporal, cross"
    elif over != "cross" and (q.shape[0], k.shape[0]) != (rows, rows):
        product = f"branches x frames x positions = {rows}"
        yield f"{over}: q and k have {q.shape[0]} and {k.shape[0]} rows; allowed: {product}"
    elif q.shape[0] % graph.branches or k.shape[0] % graph.branches:
        yield f"q and k have {q.shape[0]} and {k.shape[0]} rows; allowed: multiples of the {graph.branches} branches"


def expected_shapes(graph: Graph, op: Op, given: dict[str, Shape]) -> dict[str, Shape]:
    """What an operation demands of its operands, by role; from its first operand on."""
    if op.kind.startswith("linear"):
        rows, (channels, k) = given["x"][0], given["weight"]
        shapes: dict[str, Shape] = dict.fromkeys(given, (channels,))
        shapes |= {
            "x": (rows, k),
            "weight": (channels, k),
            "in_zp": (1,),
            "scalars": (1,),
            "shifts": (-(-k * SHIFT_BITS // 8),),
        }
        return {role: shape for role, shape in shapes.items() if role in given} | {"output": (rows, channels)}
    if op.kind == "attention":
        keys = {"k": (given["k"][0], given["q"][1]), "v": (given["k"][0], given["q"][1]), "valid": (1, 1)}
        return {role: shape for role, shape in keys.items() if role in given} | {"output": given["q"]}
    first = "a" if "a" in given else "x"
    tables = {"position": (graph.positions, given[first][1]), "frame": (graph.frames, given[first][1])}
    expected: dict[str, Shape] = {"output": given[first]}
    for role in given:
        if role == "b" and op.kind in ("elementwise", "product"):
            expected[role] = tables.get(op.attrs.get("b_rows", ""), given[first])
        elif role == "table":
            expected[role] = (TABLE_ENTRIES,)
        elif role != first:
            shared = op.kind == "elementwise" and given[role] == (1,)  # one number for all columns
            expected[role] = (1,) if shared else (given[first][1],)
    return expected
