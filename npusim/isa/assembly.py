"""Assembler text: one instruction a line, ``mnemonic field=value ...``; ``#`` starts a comment.

Disassembly assembles back to the same words.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from npusim.errors import UserError
from npusim.isa import BY_MNEMONIC, broken_rules, decode
from npusim.isa.encoding import HEADER, WORDS, Field, encode
from npusim.units import UNITS

MAX_LINES = 1_000_000


def _text(f: Field, value: int) -> str:
    if f.names:
        return f.names[value]
    return hex(value) if f.name.endswith("addr") else str(value)


def disassemble(code: NDArray[np.uint32]) -> str:
    """Text of (count, 32) words, one line each; header fields that are 0 and the opcode are left out."""
    lines = []
    for ins in decode(code):
        spec = BY_MNEMONIC[ins.op]
        shown = [f for f in HEADER[1:] if f.name == "unit" or getattr(ins, f.name)] + list(spec.fields)
        lines.append(" ".join([ins.op, *(f"{f.name}={_text(f, getattr(ins, f.name))}" for f in shown)]))
    return "\n".join(lines) + "\n"


def _value(f: Field, text: str) -> int:
    if f.names:
        if text not in f.names:
            raise UserError(f"{f.name} = {text[:40]!r}: allowed {', '.join(f.names)}")
        return f.names.index(text)
    try:
        return int(text, 0)
    except ValueError:
        raise UserError(f"{f.name} = {text[:40]!r} is not an integer") from None


def assemble(text: str, name: str = "<text>", machine: object | None = None) -> NDArray[np.uint32]:
    """Words (count, 32) of assembler text.

    With a ``machine``, every instruction must be defined on it, and none may stand behind HALT. Raises UserError with
    ``name``, line number, field and what is allowed.
    """
    rows, halted = [], False
    lines = text.splitlines()
    if len(lines) > MAX_LINES:
        raise UserError(f"{name}: {len(lines)} lines; allowed: at most {MAX_LINES}")
    for number, line in enumerate(lines, 1):
        words = line.split("#", 1)[0].split()
        if not words:
            continue
        try:
            spec = BY_MNEMONIC.get(words[0])
            if spec is None:
                raise UserError(f"no instruction {words[0][:40]!r}; allowed: {', '.join(BY_MNEMONIC)}")
            values = {"unit": UNITS.index(spec.units[0])}
            named: set[str] = set()
            for word in words[1:]:
                key, equals, value = word.partition("=")
                if key not in spec.by_name or key == "opcode":
                    raise UserError(
                        f"{spec.mnemonic}: no field {key[:40]!r}; allowed: {', '.join(list(spec.by_name)[1:])}"
                    )
                if not equals:
                    raise UserError(f"{spec.mnemonic}: field {key[:40]!r} has no value; write {key[:40]}=...")
                if key in named:
                    raise UserError(f"{spec.mnemonic}: field {key!r} stands twice")
                named.add(key)
                values[key] = _value(spec.by_name[key], value)
            rows.append(encode(spec, values))
            if machine is not None:
                rules = [rule for _, rule in broken_rules(decode(rows[-1][None]), machine)]
                if rules or halted:
                    raise UserError(f"{spec.mnemonic}: {(rules or ['stands behind halt, where nothing runs'])[0]}")
                halted = spec.mnemonic == "halt"
        except UserError as error:
            raise UserError(f"{name}:{number}: {error}") from None
    return np.stack(rows) if rows else np.zeros((0, WORDS), np.uint32)
