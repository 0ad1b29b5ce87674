"""Looks for floats where none may be: in sources of integer executors, and in programs."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from npusim.program import Program
from npusim.program_file import TENSORS, save_program

FLOAT_NAMES = {
    "float", "complex", "float16", "float32", "float64", "float128", "floating", "half", "single", "longdouble",
    "complex64", "complex128", "inexact", "true_divide", "divide", "sqrt", "exp", "exp2", "log", "log2", "power",
    "mean", "average", "std", "var", "linspace", "rint", "round", "floor", "ceil", "trunc", "Fraction", "Decimal",
    "HalfType", "FloatType", "DoubleType", "fadd", "fsub", "fmul", "fdiv", "frem", "fneg", "fcmp_ordered",
    "fcmp_unordered", "sitofp", "uitofp", "fptosi", "fptoui", "fptrunc", "fpext",
}  # fmt: skip
"""Names and attributes that stand for a float type or give floats, LLVM's too."""
FLOAT_TYPE = re.compile(r"^[<>=|]?[fc](2|4|8|16|32|64|128)$|^(float|complex)\d*$|^llvm\..*f(16|32|64)$")


def floats_in_source(source: str) -> list[str]:
    """Each float constant, float type, true division or function that gives floats, with its line."""
    found = []
    for node in ast.walk(ast.parse(source)):
        what = None
        if isinstance(node, ast.Constant):
            if isinstance(node.value, float | complex):
                what = f"constant {node.value}"
            elif isinstance(node.value, str) and FLOAT_TYPE.match(node.value):
                what = f"type {node.value!r}"
        elif isinstance(node, ast.BinOp | ast.AugAssign) and isinstance(node.op, ast.Div):
            what = "true division"
        elif isinstance(node, ast.BinOp | ast.AugAssign) and isinstance(node.op, ast.Pow):
            what = _power(node)
        elif isinstance(node, ast.Name) and node.id in FLOAT_NAMES:
            what = f"name {node.id}"
        elif isinstance(node, ast.Attribute) and node.attr in FLOAT_NAMES | {"double"} and not _is_llvm(node):
            what = f"attribute {node.attr}"
        elif isinstance(node, ast.alias) and node.name in FLOAT_NAMES:
            what = f"import of {node.name}"
        if what:
            found.append(f"line {node.lineno}: {what}")
    return found


def _is_llvm(node: ast.Attribute) -> bool:
    """``builder.trunc``, which cuts an integer of LLVM's."""
    return node.attr == "trunc" and isinstance(node.value, ast.Name) and node.value.id == "builder"


def _power(node: ast.BinOp | ast.AugAssign) -> str | None:
    """A power with a constant, non-negative integer exponent is an integer; any other may be a float."""
    exponent = node.right if isinstance(node, ast.BinOp) else node.value
    whole = isinstance(exponent, ast.Constant) and isinstance(exponent.value, int)
    return None if whole else "power with a variable or negative exponent"


def assert_no_floats(program: Program, folder: Path) -> None:
    """Every tensor of the program and of its file is an integer tensor, and so is every number outside ``machine``."""
    for name, kind in TENSORS.items():
        assert getattr(program, name).dtype == kind
        assert np.issubdtype(kind, np.unsignedinteger)
    path = folder / "scanned.npu"
    save_program(program, path)
    data = path.read_bytes()
    outer = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    types = {entry["dtype"] for name, entry in outer.items() if name != "__metadata__"}
    assert types <= {"U8", "U32"}, types
    header = json.loads(outer["__metadata__"]["header"])
    del header["machine"]
    assert not list(_floats(header)), list(_floats(header))


def _floats(value: Any) -> list[Any]:
    if isinstance(value, dict):
        value = [*value.keys(), *value.values()]
    if isinstance(value, list):
        return [found for item in value for found in _floats(item)]
    return [value] if isinstance(value, float) else []
