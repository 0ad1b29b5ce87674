"""Chooses how operations share blocks of rows: which form a group, how many rows a block has, how wide a chunk is.

Every run of operations is cut where the sum of its groups' costs is least; a group's cost is the least of all cuts that
fit. Equal groups (the blocks of a network) are searched once.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil, lcm

from compiler.graph import BITS, Op
from compiler.schedule.alone import alone_once, alone_zones, attention_cost, quantize_cost, signature, vector_cost
from compiler.schedule.blocks import Plan, replaceable, vector_roles
from compiler.schedule.cost_model import Cost, matmul_cycles, transfer
from compiler.schedule.emitter import Emitter
from compiler.schedule.fuse import LINEARS, Group, Stage, group_of, matrices, uses_of
from compiler.schedule.place import ALIGN, Home, Zones, aligned, row_bytes, value_bytes
from compiler.schedule.tile_attention import Shape
from compiler.schedule.tile_linear import Accumulators, parameter_tables, quantized_bytes
from npusim.errors import UserError
from npusim.isa.layernorm import STATISTICS
from npusim.isa.matmul import SCALARS

LONGEST = 9
"""Operations of a group: those between two tensors that others read."""

Choice = tuple[Cost, Plan | None, tuple[Op, ...]]
"""Cost, plan and operations of one group; no plan: the operation by itself, as its tiler does it."""


def plan_phase(emitter: Emitter, ops: tuple[Op, ...], resident: int) -> list[Choice]:
    """Groups in order, with the least total cost. ``resident``: bytes of SRAM that blocks must leave alone."""
    search = Search(emitter, resident)
    best: list[tuple[tuple[float, float], list[Choice]]] = [((0.0, 0.0), [])] * (len(ops) + 1)
    for start in reversed(range(len(ops))):
        options = []
        for end in range(start + 1, min(len(ops), start + LONGEST) + 1):
            choice = search.group(ops[start:end])
            if choice is not None:
                (cycles, size), rest = best[end]
                own = choice[0].key
                options.append(((own[0] + cycles, own[1] + size), [choice, *rest]))
        best[start] = min(options, key=lambda option: option[0])
    return best[0][1]


class Search:
    """Finds the cheapest plan of a group."""

    def __init__(self, emitter: Emitter, resident: int) -> None:
        self.emitter, self.graph, self.machine, self.resident = emitter, emitter.graph, emitter.machine, resident
        self.uses = uses_of(self.graph)
        emitter.local = {}
        self.known: dict[object, tuple[Cost, int, int] | None] = {}
        self.by_itself: dict[object, Cost] = {}

    def group(self, ops: tuple[Op, ...]) -> Choice | None:
        """The cheapest plan of these operations as one group, or None where there is none."""
        found = group_of(self.graph, ops, self.uses)
        single = (self._alone(ops[0]), None, ops) if len(ops) == 1 else None
        if found is None or not any(op.kind in LINEARS or op.kind == "attention" for op in ops):
            return single
        key = signature(self.emitter, found.ops)
        if key not in self.known:
            self.known[key] = self._best(found)
        self.emitter.local = {}
        cut = self.known[key]
        if cut is None:
            return single
        plan = self._plan(found, *cut[1:])
        assert plan is not None
        self.emitter.local = {}
        return cut[0], plan, ops

    def _alone(self, op: Op) -> Cost:
        return alone_once(self.by_itself, self.emitter, op, alone_zones(self.emitter, self.resident))

    def _best(self, group: Group) -> tuple[Cost, int, int] | None:
        best: tuple[Cost, int, int] | None = None
        for rows in self._rows(group):
            for columns in self._columns(group):
                plan = self._plan(group, rows, columns)
                if plan is not None:
                    cost = self._cost(plan)
                    if cost is not None and (best is None or cost.key < best[0].key):
                        best = cost, rows, columns
        return best

    def _rows(self, group: Group) -> Iterator[int]:
        """Rows of a block: whole frames, parts of one, or any where no operation knows frames."""
        graph, total = self.graph, self.graph.values[group.ops[0].output].shape[0]
        over = {op.attrs.get("over", "") for op in group.ops}
        frames = over & {"spatial", "cross"} or any(op.attrs.get("b_rows") for op in group.ops)
        if frames or total == graph.branches * graph.frames * graph.positions:
            if total != graph.branches * graph.frames * graph.positions:
                return
            yield from (graph.positions * f for f in range(graph.frames, 0, -1) if graph.frames % f == 0)
            if "spatial" not in over:
                yield from (p for p in range(graph.positions - 1, 0, -1) if graph.positions % p == 0)
            return
        rows = total
        while rows > 1:
            yield rows
            rows = -(-rows // 2)

    def _columns(self, group: Group) -> Iterator[int]:
        """Channels of a chunk: whole rounds of the array's columns."""
        widest = max(
            (self.graph.values[s.head.output].shape[1] for s in group.stages if s.head.kind in LINEARS), default=1
        )
        for rounds in (8, 4, 3, 2, 1):
            if rounds == 1 or self.machine.mac_array.cols * (rounds // 2) < widest:
                yield self.machine.mac_array.cols * rounds

    def _plan(self, group: Group, rows: int, columns: int) -> Plan | None:
        """Addresses and zones of a cut, or None where it does not fit."""
        linears = [stage for stage in group.stages if stage.linear]
        if not self._parameters_fit(linears, columns):
            return None
        brought = []
        self.emitter.local = {}
        for stage in linears:
            x = stage.head.inputs["x"]
            if stage.head.kind == "linear_dynamic":
                continue  # a stage of its own reads it, once
            if self.graph.base(x).name not in group.inner and not self.emitter.in_sram(x):
                if self.graph.values[x].base:
                    return None
                brought.append(x)
        self.emitter.local = standing(self.emitter, group, tuple(brought))
        arena = self.machine.sram.capacity_bytes // ALIGN * ALIGN - self.resident
        local, size = allocate(self.emitter, group, tuple(brought), rows)
        tiles = max(self._tile_bytes(stage, rows, columns) for stage in group.stages)
        # What is left is shared between weights and tiles, after what tiles need in any case.
        least_tiles = 2 * aligned(tiles)
        left = arena - size - least_tiles
        pieces, weights = self._pieces(linears, columns, rows, left)
        if weights < 0 or left < weights:
            return None
        keys = self._keys_bytes(group, rows, least_tiles + left - weights)
        weights = max(weights, keys if keys <= left else 0)
        spare = (left - weights) // ALIGN * ALIGN
        zones = Zones(self.resident, weights, least_tiles + spare)
        start = self.resident + weights + zones.tiles
        shifted = {name: tuple(start + a for a in addresses) for name, addresses in local.items()}
        return Plan(group, rows, columns, pieces, zones, shifted, tuple(brought))

    def _pieces(self, linears: list[Stage], columns: int, rows: int, left: int) -> tuple[dict[str, int], int]:
        """Values of K held at once, by linear, and the bytes of the weight ring; -1 bytes where nothing fits."""
        array, most = self.machine.mac_array, Accumulators.of(self.machine)
        unit = lcm(array.rows * array.a4w4_per_cell, 8)
        pieces, ring = {}, 4 * ALIGN
        for stage in linears:
            weight = self.graph.values[stage.head.inputs["weight"]]
            (n, k), bits = weight.shape, BITS[weight.dtype]
            width = min(n, columns)
            whole = 2 * aligned(width * -(-k * bits // 8))
            depth = k
            if whole > left:
                if rows > most.rows or width > most.columns:
                    return {}, -1
                depth = next((d for d in _shares(k, unit) if 2 * aligned(width * d * bits // 8) <= left), 0)
                if not depth:
                    return {}, -1
                whole = 2 * aligned(width * depth * bits // 8)
            pieces[stage.head.output] = depth
            ring = max(ring, whole)
        return pieces, ring

    def _keys_bytes(self, group: Group, rows: int, tiles: int) -> int:
        """Bytes of the weight ring for keys and values of a head whose query rows a tile ring of ``tiles`` would cut.

        0 where none are cut, or cannot stay there (`Shape.keys_need`).
        """
        for op in (op for op in group.ops if op.kind == "attention"):
            shape = Shape.of(self.emitter, op)
            if shape.need(self.emitter, op, 1, 1, min(rows, shape.query.tokens)) > tiles // 4:
                return 2 * shape.keys_need(self.emitter, op)
        return 0

    def _parameters_fit(self, linears: list[Stage], columns: int) -> bool:
        values = self.graph.values
        for stage in linears:
            n = min(columns, values[stage.head.output].shape[1])
            sizes = [row_bytes(values[stage.head.inputs["records"]], n)]
            sizes += [value_bytes(values[name]) for name in parameter_tables(stage.head)]
            for op in stage.tail:
                for role in vector_roles(op):
                    value = values[op.inputs[role]]
                    sizes.append(value_bytes(value) if role == "table" else row_bytes(value, n))
            if sum(map(aligned, sizes)) > self.emitter.params.half:
                return False
        return True

    def _tile_bytes(self, stage: Stage, rows: int, columns: int) -> int:
        """Bytes of the tile ring that buffers in use at the same time take."""
        values, emitter = self.graph.values, self.emitter
        head = stage.head
        if stage.quantizes:
            return 8 * emitter.row_bytes(head.inputs["x"]) + 8 * ALIGN
        if head.kind == "attention":
            shape = Shape.of(emitter, head)
            return shape.need(emitter, head, 1, 1, min(rows, shape.query.tokens, 64))
        if head.kind not in LINEARS:
            names = [*matrices(head), head.output, *([head.inputs["b"]] if head.attrs.get("b_rows") else [])]
            return 8 * (sum(emitter.row_bytes(name) for name in names) + STATISTICS.itemsize) + 8 * ALIGN
        width, size, before = min(columns, values[head.output].shape[1]), 0, ""
        for number, op in enumerate(stage.ops):
            others = [name for name in matrices(op) if number and name != before and not emitter.in_sram(name)]
            size += sum(aligned(rows * row_bytes(values[name], width)) for name in others)
            placed = number == len(stage.tail) and emitter.in_sram(op.output)
            if not placed and not any(replaceable(emitter, name, op) for name in [before, *others] if name):
                size += aligned(rows * row_bytes(values[op.output], width))
            before = op.output
        return size

    def _cost(self, plan: Plan) -> Cost | None:
        """Cost of all blocks, or None if a tile turns out not to fit."""
        graph, machine, emitter = self.graph, self.machine, self.emitter
        total = graph.values[plan.group.ops[0].output].shape[0]
        blocks, rows, cost = -(-total // plan.rows), plan.rows, Cost()
        emitter.divide(plan.zones)
        emitter.local = standing(emitter, plan.group, plan.brought)
        for stage in plan.group.stages:
            head = stage.head
            if stage.quantizes:
                cost += quantize_cost(machine, rows, graph.values[head.inputs["x"]].shape[1], blocks)
            elif stage.linear:
                cost += self._linear_cost(plan, stage, rows, blocks)
            elif head.kind == "attention":
                try:
                    cost += attention_cost(emitter, head, blocks, rows)
                except UserError:
                    return None
            else:
                cost += vector_cost(self.machine, head, rows, graph.values[head.output].shape[1], blocks)
            for op in stage.tail:
                width = min(plan.columns, graph.values[op.output].shape[1])
                cost += vector_cost(
                    self.machine, op, rows, width, blocks * -(-graph.values[op.output].shape[1] // width)
                )
        moved = {n for op in plan.group.ops for n in matrices(op) if op.kind != "attention"} | {
            plan.group.ops[-1].output
        }
        outside = [n for n in moved if graph.base(n).name not in plan.group.inner and not emitter.in_sram(n)]
        size = sum(value_bytes(graph.values[name]) for name in outside)
        cost += transfer(machine, size, blocks * len(outside))
        # Nothing overlaps the first block's way in and the last one's way out.
        first = transfer(machine, size / blocks, 2).dram
        return cost + Cost(exposed=first + (cost.vector / blocks if len(plan.group.stages) > 1 else 0))

    def _linear_cost(self, plan: Plan, stage: Stage, rows: int, blocks: int) -> Cost:
        values, head = self.graph.values, stage.head
        (n, k), depth = values[head.inputs["weight"]].shape, plan.pieces[head.output]
        x_dtype = f"u{head.attrs['bits']}" if head.kind == "linear_dynamic" else values[head.inputs["x"]].dtype
        types = x_dtype, values[head.inputs["weight"]].dtype
        cycles = 0
        for column in range(0, n, plan.columns):
            for first in range(0, k, depth):
                shape = rows, min(depth, k - first), min(plan.columns, n - column)
                cycles += matmul_cycles(self.machine, *shape, *types)
        chunks = -(-n // plan.columns)
        size = value_bytes(values[head.inputs["weight"]]) + value_bytes(values[head.inputs["records"]])
        copies = chunks * (-(-k // depth) + 1 + sum(len(vector_roles(op)) for op in stage.tail))
        return Cost(mac=cycles * blocks) + transfer(self.machine, size * blocks, copies * blocks)


def _shares(k: int, unit: int) -> Iterator[int]:
    """Values of K in each of 2, 3, .. pieces, rounded up to ``unit``."""
    for pieces in range(2, -(-k // unit) + 1):
        yield ceil(ceil(k / pieces) / unit) * unit


def standing(emitter: Emitter, group: Group, brought: tuple[str, ...]) -> dict[str, Home]:
    """Homes of a group's tensors while its blocks are made; addresses do not matter yet."""
    outputs = {stage.output for stage in group.stages}
    homes = {name: Home("sram" if name in outputs else "dram", 0) for name in group.inner}
    return homes | {name: Home("sram", 0) for name in brought}


def allocate(
    emitter: Emitter, group: Group, brought: tuple[str, ...], rows: int
) -> tuple[dict[str, tuple[int, ...]], int]:
    """Offsets of the tensors of a block, one or two each, and the bytes of all.

    Time is a circle of the stages in program order: the next block's first stage comes before the last one.
    """
    stages = len(group.stages) + bool(brought)
    first = 1 if brought else 0
    at = {stage: stage - 1 for stage in range(1, stages - 1)} | {0: stages - 2, stages - 1: stages - 1}
    made, quantized = dict.fromkeys(brought, 0), dict[str, Op]()
    last: dict[str, int] = {}
    for index, stage in enumerate(group.stages, first):
        if stage.output in group.inner or stage.quantizes:
            made[stage.output] = index
            quantized |= {stage.output: stage.head} if stage.quantizes else {}
        for name in stage.reads():
            last[name if name in quantized else emitter.graph.base(name).name] = index
    spans: list[tuple[int, int, str, tuple[int, ...]]] = []
    for name, maker in made.items():
        begin = at[maker] - (stages if maker == 0 and stages > 1 else 0)
        end = at[last[name]]
        if name in quantized:
            size = quantized_bytes(emitter, quantized[name], rows)[1] + aligned(rows * SCALARS.itemsize)
        else:
            size = aligned(rows * emitter.row_bytes(name))
        if end - begin + 1 > stages:
            spans.append((2 * size, (1 << stages) - 1, name, (0, size)))
        else:
            mask = sum(1 << (t % stages) for t in range(begin, end + 1))
            spans.append((size, mask, name, (0,)))
    placed: list[tuple[int, int, int]] = []
    found: dict[str, tuple[int, ...]] = {}
    for size, mask, name, copies in sorted(spans, key=lambda span: (-span[0], span[2])):
        address = 0
        for begin, end, other in sorted(placed):
            if other & mask and begin < address + size and end > address:
                address = end
        placed.append((address, address + size, mask))
        found[name] = tuple(address + copy for copy in copies)
    return found, max((end for _, end, _ in placed), default=0)
