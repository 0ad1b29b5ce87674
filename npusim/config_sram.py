"""The on-chip buffer of a machine: its size, its banks and their ports."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from npusim.config_base import Section, clash, need_power_of_two, whole

KIB, GIB = 1 << 10, 1 << 30


class Sram(Section):
    """The on-chip buffer that activations and weight tiles are computed from.

    ``npusim/timing/sram.py`` says how units share the ports of its banks.
    """

    capacity_bytes: Annotated[int, whole(1 * KIB, 1 * GIB, "size of the buffer")]
    banks: Annotated[int, whole(1, 256, "banks of equal size, each with ports of its own; a power of two")]
    bytes_per_cycle: Annotated[int, whole(1, 65536, "width of one port of a bank; a power of two")]
    ports: Annotated[
        Literal["1rw", "1r1w", "2rw", "unlimited"],
        Field(description="of each bank: one or two that read or write, or one for each; unlimited: nobody waits"),
    ]
    mapping: Annotated[
        Literal["interleaved", "blocked"],
        Field(description="neighbouring words of `bytes_per_cycle` in neighbouring banks, or each bank a block"),
    ]

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        need_power_of_two("sram", "banks", self.banks)
        need_power_of_two("sram", "bytes_per_cycle", self.bytes_per_cycle)
        if self.capacity_bytes % (self.banks * self.bytes_per_cycle):
            raise clash(
                "capacity_bytes",
                f"{self.capacity_bytes} is not a multiple of sram.banks {self.banks} x sram.bytes_per_cycle "
                f"{self.bytes_per_cycle}; allowed: whole words of the port's width in every bank",
            )
        return self

    @property
    def bank_bytes(self) -> int:
        """Size of one bank."""
        return self.capacity_bytes // self.banks

    @property
    def peak_bytes_per_cycle(self) -> int:
        """What all ports move in a cycle, reads and writes together."""
        return self.banks * self.bytes_per_cycle * (1 if self.ports == "1rw" else 2)
