"""The builder: makes a graph, one operation at a time, of the STDiT or of any small network."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from compiler.arguments import checked
from compiler.graph import Op, Value
from compiler.operations import ELEMENTS, SHIFT_BITS, faults
from compiler.values import Factor, Values
from npusim.errors import UserError
from npusim.isa.encoding import DTYPES, MAX_SHIFT
from npusim.isa.matmul import FACTORED, SCALARS
from npusim.memory import packed

Out = str | Value
"""Where an operation's result goes: an element type, a new value, or the name of a view."""


@checked(Out=(lambda out: isinstance(out, str | Value), "an element type, a Value, or the name of a view"))
class Builder(Values):
    """Makes a graph, one operation at a time.

        net = Builder()
        x = net.input("x", (16, 32), "u8", zero_point=128)
        h = net.linear("fc1", x, weights, "i16", multiplier=m, shift=s, bias=b)
        net.output(net.table("gelu", h, entries, "u8", multiplier=1 << 14, shift=21))
        graph = net.graph()

    There is one method for each operation; ``layer`` names it in messages and reports. Operands are names, as `input`,
    `const` and the operations return them. ``out`` is where the result goes: an element type ("i16") for a new tensor
    named like the layer; a `Value` for a new tensor with a name, scale and zero point of its own; or a view's name.
    Zero points of inputs and results are those of their values. Every method raises UserError naming the layer, the
    operand and what is allowed.

    A network of one pass needs no more. ``steps``, ``branches``, ``frames``, ``positions`` and ``range_of_step`` are
    those of a denoiser, see `Graph`: step constants hold one array for each of ``steps``, range constants one for each
    time range; spatial and temporal attention cut rows by the others. Operations are added to ``phase``: "step", or
    "prologue" for what runs once. An input named "noise" holds one plane for each step; an output named "state.next"
    overwrites the input "state".
    Without ``contents`` the graph keeps of constants their shapes only, and is compiled for its time.
    """

    def linear(
        self, layer: str, x: str, weight: NDArray[Any], out: Out, *, multiplier: ArrayLike, shift: ArrayLike,
        bias: ArrayLike = 0, weight_zp: ArrayLike = 0, weight_bits: int = 8, x_zp: ArrayLike | None = None,
        x_shift: ArrayLike = 0,
    ) -> str:  # fmt: skip
        """``((x - x_zp) 2^x_shift (w - weight_zp)^T + bias) * multiplier / 2^shift``, rounded, plus out's zero point.

        ``x`` (rows, k) is u4, u6, u8, i8 or i16; ``weight`` is an array (n, k) of NumPy type uint8 or int8, whose
        values have ``weight_bits`` bits (4, 6, 8). ``multiplier`` (up to 2^15 - 1, or 2^31 - 1 on a machine with 32-bit
        multipliers), ``shift`` (1 to 62), ``bias`` (in units of the sum, 48 bits) and ``weight_zp`` (in the range of
        the weights) are one number, or one for each of the n channels. ``x_zp`` is x's own zero point unless given;
        ``x_shift`` (0 to 3, on a machine with ``input_shift``) is one number for each of the k input channels.

        All arrays may have the time ranges in front.
        """
        source = self._value(layer, "x", x)
        self._weights(layer, weight, weight_bits, ("uint8", "int8"), (2, 3))
        # The graph's weights are unsigned; the array's are signed again.
        up, top = (1 << (weight_bits - 1)) * (weight.dtype == np.int8), (1 << weight_bits) - 1
        unsigned = (weight.astype(np.int16) + up).astype(np.uint8) if up else weight
        if self.contents and unsigned.max() > top:
            raise UserError(f"{layer}: linear: weight {weight.min()}..{weight.max()}; allowed: {weight_bits} bits")
        n, k = weight.shape[-2:]
        per = "range" if weight.ndim == 3 else ""
        roles = {"x": x, "weight": self.const(f"{layer}.weight", unsigned, f"u{weight_bits}", per=per)}
        for role, numbers, count, dtype, low, high, offset in (
            ("in_zp", source.zero_point if x_zp is None else x_zp, 1, "i32", -(1 << 31), (1 << 31) - 1, 0),
            ("weight_zp", weight_zp, n, "i16", -up, top - up, up),
            ("bias", bias, n, "i64", -(1 << 47), (1 << 47) - 1, 0),
            ("multiplier", multiplier, n, "i32", 0, (1 << 31) - 1, 0),
            ("shift", shift, n, "u8", 1, MAX_SHIFT, 0),
        ):
            vector, per = self._integers(layer, role, numbers, count)
            self._demand(layer, "linear", role, vector, low, high)
            roles[role] = self.const(f"{layer}.{role}", vector + offset, dtype, per=per)
        self._shifts(layer, roles, x_shift, k)
        target = self._target(layer, out, (source.shape[0], n))
        return self._op("linear_centred", layer, roles, target)

    def linear_factored(
        self, layer: str, x: str, weight: NDArray[np.uint8], out: Out, *, multiplier: ArrayLike, shift: ArrayLike,
        bias: ArrayLike, weight_zp: ArrayLike, weight_bits: int, x_zp: ArrayLike, scale: tuple[ArrayLike, ArrayLike],
        fraction_bits: int, x_shift: ArrayLike = 0,
    ) -> str:  # fmt: skip
        """As `linear`, requantized in two factors: per channel, and ``scale`` (multiplier, shift) per time range.

        Only ``scale`` and ``x_zp``, (ranges, 1), and ``x_shift`` may change with the range: eight bytes a layer instead
        of twelve a channel. ``bias`` has ``fraction_bits`` fractional bits of the result's step. For machines with
        factored requantization only; see the ISA's page of MATMUL.
        """
        roles = {"x": x, **self._factored(layer, weight, multiplier, shift, bias, weight_zp, weight_bits)}
        _, least, most = DTYPES[self._value(layer, "x", x).dtype]
        scalars = np.zeros((self.ranges, 1), SCALARS)
        for name, numbers, low, high in (
            ("zero_point", x_zp, least, most), ("multiplier", scale[0], 0, (1 << 15) - 1),
            ("shift", scale[1], 1, MAX_SHIFT),
        ):  # fmt: skip
            scalar, _ = self._integers(layer, name, numbers, 1)
            self._demand(layer, "linear", name, scalar, low, high)
            scalars[name] = scalar
        roles["scalars"] = self.const(f"{layer}.scalars", scalars, "scalars", per="range")
        self._shifts(layer, roles, x_shift, weight.shape[1])
        target = self._target(layer, out, (self._value(layer, "x", x).shape[0], len(weight)))
        return self._op("linear_factored", layer, roles, target, fraction_bits=fraction_bits)

    def _factored(
        self, layer: str, weight: NDArray[np.uint8], multiplier: ArrayLike, shift: ArrayLike, bias: ArrayLike,
        weight_zp: ArrayLike, weight_bits: int,
    ) -> dict[str, str]:  # fmt: skip
        """Signed weights and FACTORED records as constants, by role."""
        self._weights(layer, weight, weight_bits, ("uint8",), (2,))
        records, half = np.zeros(len(weight), FACTORED), 1 << (weight_bits - 1)
        for name, numbers, low, high in (
            ("bias", bias, -(1 << 31), (1 << 31) - 1), ("multiplier", multiplier, 0, (1 << 15) - 1),
            ("shift", shift, 1, MAX_SHIFT), ("zero_point", np.asarray(weight_zp) - half, -half, half - 1),
        ):  # fmt: skip
            vector, _ = self._integers(layer, name, numbers, len(weight))
            self._demand(layer, "linear", name, vector, low, high)
            records[name] = vector
        signed = (weight - np.uint8(half)).view(np.int8) if self.contents else weight
        return {
            "weight": self.const(f"{layer}.weight", signed, f"i{weight_bits}"),
            "records": self.const(f"{layer}.records", records, "factored"),
        }

    @staticmethod
    def _weights(
        layer: str, weight: NDArray[Any], weight_bits: int, types: tuple[str, ...], ranks: tuple[int, ...]
    ) -> None:
        """Raise UserError unless a linear's weights are such an array."""
        if weight.dtype not in types or weight.ndim not in ranks or not weight.size:
            given, allowed = f"{weight.dtype}{list(weight.shape)}", " or ".join(types)
            raise UserError(f"{layer}: linear: weight is {given}; allowed: a matrix (n, k) of NumPy type {allowed}")
        if weight_bits not in (4, 6, 8):
            raise UserError(f"{layer}: linear: weight_bits = {weight_bits}; allowed: 4, 6, 8")

    def _shifts(self, layer: str, roles: dict[str, str], x_shift: ArrayLike, k: int) -> None:
        """Add the table of input shifts to a linear's ``roles``, unless none is given: one shift of 0 for all."""
        if np.ndim(x_shift) == 0 and x_shift == 0:
            return
        shifts, per = self._integers(layer, "x_shift", x_shift, k)
        self._demand(layer, "linear", "x_shift", shifts, 0, 3)
        roles["shifts"] = self.const(f"{layer}.shifts", packed(shifts, SHIFT_BITS), "u8", per=per)

    def linear_dynamic(
        self, layer: str, x: str, weight: NDArray[np.uint8], out: Out, *, bits: int, row: tuple[int, int],
        multiplier: ArrayLike, shift: ArrayLike, bias: ArrayLike, weight_zp: ArrayLike, weight_bits: int,
        fraction_bits: int,
    ) -> str:  # fmt: skip
        """A linear whose input is quantized to ``bits`` bits at run time, each row by its own range (RTQUANT).

        ``x`` (rows, k) is i16 with zero point 0, ``weight`` (n, k) unsigned. For machines with run-time quantization
        only. ``row`` is (multiplier, shift) of what all rows share; ``bias`` has ``fraction_bits`` fractional bits of
        the result's step. See the ISA's pages of RTQUANT and MATMUL (``factored_row``).
        """
        self._symmetric(layer, "linear_dynamic", "x", x)
        roles = {"x": x, **self._factored(layer, weight, multiplier, shift, bias, weight_zp, weight_bits)}
        target = self._target(layer, out, (self.values[x].shape[0], len(weight)))
        attrs = {"bits": bits, "row_multiplier": row[0], "row_shift": row[1], "fraction_bits": fraction_bits}
        return self._op("linear_dynamic", layer, roles, target, **attrs)

    def rescale(self, layer: str, a: str, out: Out, *, multiplier: Factor, shift: int, bias: Factor = 0) -> str:
        """``(a * multiplier + bias) / 2^shift``: another scale or type. See `sum`."""
        return self.sum(layer, a, "", out, a_mul=multiplier, b_mul=0, shift=shift, bias=bias)

    def sum(
        self, layer: str, a: str, b: str, out: Out, *, a_mul: Factor, b_mul: Factor, shift: int, bias: Factor = 0,
        b_rows: str = "",
    ) -> str:  # fmt: skip
        """``(a * a_mul + b * b_mul + bias) / 2^shift``, one rounding, plus out's zero point.

        Factors are one integer, or one for each column: an array, or a constant's name. Arrays of factors become i16,
        or i32 where one of them needs it or an operand has type i32 (at most 2^30 then); the bias is i32. They may have
        the time ranges in front, and then one number for all columns: (ranges, 1). ``b_rows`` "position" or "frame": b
        is a table of rows, repeated by position or frame. Operands have zero point 0: EWLIN subtracts none.
        """
        roles = {"a": a} | ({"b": b} if b else {})
        columns = self._value(layer, "a", a).shape[-1]
        for role in roles:
            self._symmetric(layer, "sum", role, roles[role])
        factors = {"a_mul": a_mul, "bias": bias} | ({"b_mul": b_mul} if b else {})
        target = self._target(layer, out, self.values[a].shape)
        inputs, attrs = dict(roles), dict[str, Any]()
        arrays = [np.asarray(f) for role, f in factors.items() if role != "bias" and not isinstance(f, int | str)]
        large = any(array.size and array.dtype.kind in "iu" and np.abs(array).max() > 32767 for array in arrays)
        for role, factor in factors.items():
            wide = large or role == "bias" or self.values[roles[role[0]]].dtype == "i32"
            if isinstance(factor, int | np.integer) and role != "bias":
                attrs[role] = int(factor)
            elif not (isinstance(factor, int | np.integer) and factor == 0):
                dtype, owner = "i32" if wide else "i16", target if isinstance(target, str) else target.name
                inputs[role] = self._vector(layer, role, factor, dtype, columns, owner)
        if b:
            attrs["b_rows"] = b_rows
        return self._op("elementwise", layer, inputs, target, **attrs, shift=shift)

    def product(self, layer: str, a: str, b: str, out: Out, *, shift: int) -> str:
        """Element-wise ``a * b / 2^shift``, one rounding, plus out's zero point. Operands have zero point 0."""
        for role, name in (("a", a), ("b", b)):
            self._symmetric(layer, "product", role, name)
        target = self._target(layer, out, self.values[a].shape)
        return self._op("product", layer, {"a": a, "b": b}, target, shift=shift)

    def table(
        self, layer: str, x: str, entries: Factor, out: Out, *, multiplier: int, shift: int, offset: int = 0
    ) -> str:
        """A function of an i16 tensor by 513 entries: ``lookup * multiplier / 2^shift`` plus out's zero point.

        ``entries`` (an array, or a constant's name) are i16, entry i for input ``128 i - 32768``; between two of them
        is a straight line. The lookup has 7 fractional bits: entry * 128. ``offset`` is added to out's zero point.
        """
        source = self._value(layer, "x", x)
        name = self._vector(layer, "table", entries, "i16", None)
        target = self._target(layer, out, source.shape)
        zero_point = self._zero_point(target) + offset
        roles = {"x": x, "table": name}
        return self._op("table", layer, roles, target, multiplier=multiplier, shift=shift, out_zp=zero_point)

    def layernorm(
        self, layer: str, x: str, g: Factor, b: Factor, out: Out, *, epsilon: int, fraction_bits: int, shift: int
    ) -> str:
        """LayerNorm of each row, then ``(n * g + b) / 2^shift``, one rounding, plus out's zero point.

        ``x`` is i16. The norm n is i16 with ``fraction_bits`` fractional bits, ``epsilon`` counts in squares of
        columns * x's step. ``g`` (i16) and ``b`` (i32) are one integer for each column: an array, or a constant's name.
        """
        source = self._value(layer, "x", x)
        columns = source.shape[-1]
        roles = {"g": self._vector(layer, "g", g, "i16", columns), "b": self._vector(layer, "b", b, "i32", columns)}
        target = self._target(layer, out, source.shape)
        name = target if isinstance(target, str) else target.name
        normed = Value(f"{name}.n", source.shape, "i16", scale=2.0**-fraction_bits)
        self._op("layernorm", layer, {"x": x}, normed, epsilon=epsilon, fraction_bits=fraction_bits)
        return self._op("modulate", layer, {"x": normed.name, **roles}, target, shift=shift)

    def attention(
        self, layer: str, q: str, k: str, v: str, out: Out, *, heads: int, logit: tuple[int, int],
        output: tuple[int, int], fraction_bits: int, p_bits: int = 15, valid: str = "", over: str = "cross",
    ) -> str:  # fmt: skip
        """``softmax(q k^T) v`` for each of ``heads`` heads of columns, with a power of two as exponential's base.

        ``q`` (rows, columns), ``k`` and ``v`` (keys, columns) are i8 or i16. ``logit`` and ``output`` are (multiplier,
        shift): of q k^T to base-2 logits with ``fraction_bits`` fractional bits (multiplier below 2^15), and of v to
        the output (2^30 <= multiplier < 2^31). ``p_bits`` is the width of the unnormalised probabilities: 15, or 8 with
        v of type i8. ``valid``: an i32 input (1, 1), how many keys count. ``over``: "cross" (every row attends to every
        key), or within "spatial" or "temporal" groups of rows.
        """
        inputs = {"q": q, "k": k, "v": v}
        for role, name in inputs.items():
            self._symmetric(layer, "attention", role, name)
        if valid:
            inputs["valid"] = valid
        target = self._target(layer, out, self.values[q].shape)
        return self._op(
            "attention", layer, inputs, target, over=over, heads=heads, fraction_bits=fraction_bits, p_bits=p_bits,
            logit_multiplier=logit[0], logit_shift=logit[1], out_multiplier=output[0], out_shift=output[1],
        )  # fmt: skip

    def op(self, kind: str, layer: str, inputs: dict[str, str], output: str | Value, **attrs: Any) -> str:
        """Add any operation of ``compiler/semantics.py`` as it is; `verify_graph` checks the finished graph."""
        name = output if isinstance(output, str) else self.add(output)
        self.ops[self.phase].append(Op(kind, layer, inputs, name, attrs))
        return name

    def _op(self, kind: str, layer: str, inputs: dict[str, str], target: str | Value, **attrs: Any) -> str:
        """Add an operation after checking its operands and integers."""
        for role, name in inputs.items():
            self._value(layer, role, name)
        name = target if isinstance(target, str) else self.add(target)
        attrs = {"out_zp": self.values[name].zero_point, **attrs} if kind != "layernorm" else attrs
        for rule in faults(self._so_far(), Op(kind, layer, inputs, name, attrs)):
            raise UserError(f"{layer}: {kind}: {rule}")
        return self.op(kind, layer, inputs, name, **attrs)

    def _target(self, layer: str, out: Out, shape: tuple[int, ...]) -> str | Value:
        if isinstance(out, Value) or out in self.values:
            return out
        if out not in ELEMENTS:
            raise UserError(f"{layer}: out = {out!r}; allowed: {', '.join(ELEMENTS)}, a Value, or the name of a view")
        return Value(layer, shape, out)

    def _zero_point(self, target: str | Value) -> int:
        return (self.values[target] if isinstance(target, str) else target).zero_point
