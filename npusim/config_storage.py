"""The storage of a machine: the device's table (`hwconfigs/storage/*.yaml`) that holds all parameter sets."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from npusim.config_base import Section, clash, text, whole

MIB, TIB = 1 << 20, 1 << 40


class StorageDevice(Section):
    """UFS, eMMC or NVMe as reads see it.

    ``npusim/timing/storage.py`` says how a FETCH is split into requests and when their bytes arrive.
    """

    kind: Annotated[str, text("what it is, for reports")]
    bandwidth_bytes_per_second: Annotated[int, whole(1_000_000, 1_000_000_000_000, "sequential read rate")]
    latency_us: Annotated[int, whole(1, 1_000_000, "from a request to its first byte")]
    request_bytes: Annotated[int, whole(512, 1 * MIB, "the most that one request reads")]
    queue_depth: Annotated[int, whole(1, 256, "requests outstanding at once, whose latencies overlap")]
    capacity_bytes: Annotated[int, whole(1 * MIB, 256 * TIB, "size of the storage")]

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.request_bytes > self.capacity_bytes:
            raise clash(
                "request_bytes",
                f"{self.request_bytes} is more than capacity_bytes {self.capacity_bytes}; allowed: at most that",
            )
        return self


class Storage(Section):
    """Where all parameter sets lie before they are needed."""

    device: Annotated[StorageDevice, Field(description="the device's table by name, or its fields")]
