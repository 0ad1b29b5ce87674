"""The storage: how FETCH is split into requests, and when their bytes arrive. The DRAM then takes them as they come.

Cycles are NPU cycles. The rules, in full, for a FETCH whose set-up ends at ``r``:

* *Requests.* It reads its bytes in requests of ``request_bytes``, the last one of what is left. Request ``k`` is issued
  at ``r``, or from the ``queue_depth``-th on when request ``k - queue_depth`` is complete.
* *Delivery.* The device delivers requests one after the other, in order: request ``k`` from ``latency`` after its issue
  on, or from the end of the delivery before, whichever is later, and in ``ceil(bytes / rate)`` cycles. So the latencies
  of outstanding requests overlap each other and the deliveries.
* *Arrival.* Of a delivery of ``n`` bytes in ``c`` cycles from ``d`` on, byte ``i``, counted from 1, has arrived at
  ``d + ceil(i c / n)``. A request writes every burst of DRAM that it touches; a burst may enter the DRAM's queue from
  the clock on in which the last of its bytes that the request brings has arrived. There is room for all that is
  outstanding: the device never waits for the DRAM, but the next request may.
* *Completion.* A request is complete when the last of its bursts has passed the DRAM's bus and the interconnect, and
  the FETCH ends when all its requests are complete. The next FETCH begins then: latencies of two do not overlap.

What a FETCH takes with a DRAM that takes no time is its own time (``busy`` in the ledger, `alone`); the rest is
``wait_dram``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from npusim.config import Machine
from npusim.engine.cache import inlined, kernel
from npusim.isa.encoding import Decoded

Int64 = NDArray[np.int64]
LATENCY, HERTZ, RATE, REQUEST, DEPTH, CONSTANTS = range(6)
"""Indices of `constants`."""
ADDRESS, SIZE, REQUESTS = range(3)
"""Of a FETCH's geometry: first byte in DRAM, bytes, requests."""


def constants(machine: Machine) -> Int64:
    """Latency in cycles, the NPU's cycles per second, bytes per second, bytes of a request, queue depth."""
    device = machine.storage.device
    values = (
        machine.storage_latency_cycles, machine.clock_hz, device.bandwidth_bytes_per_second, device.request_bytes,
        device.queue_depth,
    )  # fmt: skip
    return np.array(values, np.int64)


def geometry(ins: Decoded, machine: Machine) -> list[int]:
    """What a FETCH brings, without its DRAM address, which is 0 here; padded to `npusim.timing.dram.GEOMETRY`."""
    return [0, ins.bytes, -(-ins.bytes // machine.storage.device.request_bytes), 0, 0, 0]


@inlined
def request_of(fetch: Int64, number: int, request_bytes: int) -> tuple[int, int]:
    """(first byte, bytes) of request ``number`` of a FETCH, relative to its beginning; ``fetch``: SIZE at 1."""
    first = number * request_bytes
    return first, min(request_bytes, fetch[SIZE] - first)


@inlined
def delivery_cycles(size: int, hertz: int, rate: int) -> int:
    """Cycles in which the device delivers a request of ``size`` bytes."""
    return -(-size * hertz // rate)


@kernel
def alone(fetches: Int64, consts: Int64, burst_bytes: int) -> tuple[Int64, Int64]:
    """(cycles from ``r`` on with a DRAM that takes no time, bursts written) of each of (count, dram.GEOMETRY)."""
    cycles, bursts = np.zeros(fetches.shape[0], np.int64), np.zeros(fetches.shape[0], np.int64)
    ends = np.zeros(consts[DEPTH], np.int64)
    for index in range(fetches.shape[0]):
        ends[:] = 0
        end = 0
        for number in range(fetches[index, REQUESTS]):
            first, size = request_of(fetches[index], number, consts[REQUEST])
            slot = number % consts[DEPTH]
            end = max(ends[slot] + consts[LATENCY], end) + delivery_cycles(size, consts[HERTZ], consts[RATE])
            ends[slot] = end
            start = fetches[index, ADDRESS] + first
            bursts[index] += (start + size - 1) // burst_bytes - start // burst_bytes + 1
        cycles[index] = end
    return cycles, bursts
