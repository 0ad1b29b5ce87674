"""The storage: how FETCH is split into requests, and when their bytes arrive. The DRAM then takes them as they come.

Cycles are NPU cycles. The rules, in full, for a FETCH whose set-up ends at ``r``:

* *Requests.* It reads its bytes in requests of ``request_bytes``, the last one of what is left. Request ``k`` is issued
  at ``r``, or from the ``queue_depth``-th on when request ``k - queue_depth`` is complete. Of coded bytes the ``R``
  requests bring equal parts of the run: request ``k`` begins at its byte ``floor(k bytes / R)``.
* *Delivery.* The device delivers requests one after the other, in order: request ``k`` from ``latency`` after its issue
  on, or from the end of the delivery before, whichever is later, and in ``ceil(bytes / rate)`` cycles; of coded bytes
  in as many as the decoder takes, ``ceil(bytes of the run / decoder's bytes per cycle)``, if these are more. So the
  latencies of outstanding requests overlap each other and the deliveries.
* *Arrival.* Of a delivery of ``n`` bytes in ``c`` cycles from ``d`` on, byte ``i``, counted from 1, has arrived at
  ``d + ceil(i c / n)``. A request writes every burst of DRAM that it touches; a burst may enter the DRAM's queue from
  the clock on in which the last of its bytes that the request brings has arrived. There is room for all that is
  outstanding: the device never waits for the DRAM, but the next request may.
* *Old bytes.* Coded bytes are differences to a run in DRAM. In front of each burst that a request writes, when that
  has arrived, the burst of the old run enters that lies as far from its first one. Both are bursts of the request. The
  write does not wait for the data of that read: a decoder would read ahead.
* *Completion.* A request is complete when the last of its bursts has passed the DRAM's bus and the interconnect, and
  the FETCH ends when all its requests are complete. The next FETCH begins then: latencies of two do not overlap.
* *Two storage DMA units.* Each has a device of its own as described, with requests of its own; storage holds the same
  bytes on both.

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
LATENCY, HERTZ, RATE, REQUEST, DEPTH, DECODER, CONSTANTS = range(7)
"""Indices of `constants`."""
ADDRESS, SIZE, REQUESTS, STORED, OLD = range(5)
"""Of a FETCH's geometry: first byte in DRAM, bytes, requests, bytes in storage, first old byte or `PLAIN`."""
PLAIN = -1
"""Instead of old bytes: storage holds the run as it is."""


def constants(machine: Machine) -> Int64:
    """Latency in cycles, the NPU's cycles per second, bytes per second, of a request, queue depth, decoder's rate."""
    device = machine.storage.device
    values = (
        machine.storage_latency_cycles, machine.clock_hz, device.bandwidth_bytes_per_second, device.request_bytes,
        device.queue_depth, machine.dma.decoder_bytes_per_cycle,
    )  # fmt: skip
    return np.array(values, np.int64)


def geometry(ins: Decoded, machine: Machine) -> list[int]:
    """What a FETCH brings, without its addresses in DRAM, which are 0 here; padded to `npusim.timing.dram.GEOMETRY`."""
    stored = ins.coded_bytes or ins.bytes
    requests = -(-stored // machine.storage.device.request_bytes)
    return [0, ins.bytes, requests, stored, 0 if ins.coded_bytes else PLAIN, 0]


@inlined
def request_of(fetch: Int64, number: int, consts: Int64) -> tuple[int, int, int]:
    """(first byte of the run, bytes of it, cycles of delivery) of request ``number`` of a FETCH."""
    first = number * consts[REQUEST]
    stored = min(consts[REQUEST], fetch[STORED] - first)
    cycles = -(-stored * consts[HERTZ] // consts[RATE])
    if fetch[OLD] == PLAIN:
        return first, stored, cycles
    first = number * fetch[SIZE] // fetch[REQUESTS]
    size = (number + 1) * fetch[SIZE] // fetch[REQUESTS] - first
    return first, size, max(cycles, -(-size // consts[DECODER]))


@kernel
def alone(fetches: Int64, consts: Int64, burst_bytes: int) -> tuple[Int64, Int64]:
    """(cycles from ``r`` on with a DRAM that takes no time, bursts moved) of each of (count, dram.GEOMETRY)."""
    cycles, bursts = np.zeros(fetches.shape[0], np.int64), np.zeros(fetches.shape[0], np.int64)
    ends = np.zeros(consts[DEPTH], np.int64)
    for index in range(fetches.shape[0]):
        ends[:] = 0
        end = 0
        for number in range(fetches[index, REQUESTS]):
            first, size, delivery = request_of(fetches[index], number, consts)
            slot = number % consts[DEPTH]
            end = max(ends[slot] + consts[LATENCY], end) + delivery
            ends[slot] = end
            start = fetches[index, ADDRESS] + first
            written = (start + size - 1) // burst_bytes - start // burst_bytes + 1
            bursts[index] += written if fetches[index, OLD] == PLAIN else 2 * written
        cycles[index] = end
    return cycles, bursts
