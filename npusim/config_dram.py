"""The DRAM of a machine: the device's table (`hwconfigs/dram/*.yaml`) and what the SoC makes of it."""

from math import ceil
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from npusim.config_base import Section, clash, need_power_of_two, text, whole

MIB, TIB = 1 << 20, 1 << 40


class DramDevice(Section):
    """One channel of a DRAM standard and speed: geometry and timing, in clocks of its command bus.

    ``npusim/timing/README.md`` says which commands each time keeps apart.
    """

    kind: Annotated[str, text("what it is, for reports")]
    clock_mhz: Annotated[int, whole(1, 10_000, "clock of the command bus; all `_clocks` are its cycles")]
    channel_bits: Annotated[int, whole(8, 1024, "width of a channel's data bus; a power of two")]
    burst_beats: Annotated[int, whole(1, 64, "transfers on the data bus for one column command; a power of two")]
    burst_clocks: Annotated[int, whole(1, 64, "how long a burst occupies the data bus")]
    bank_groups: Annotated[int, whole(1, 8, "bank groups of a channel; a power of two; 1: none")]
    banks_per_group: Annotated[int, whole(1, 32, "banks of a group; a power of two")]
    row_bytes: Annotated[int, whole(64, 65536, "bytes of a row (page) of one channel; a power of two")]
    trcd_clocks: Annotated[int, whole(1, 1000, "activate to column command")]
    trp_clocks: Annotated[int, whole(1, 1000, "precharge to activate or refresh")]
    cas_clocks: Annotated[int, whole(1, 1000, "read command to its first data (CL, RL)")]
    cwl_clocks: Annotated[int, whole(1, 1000, "write command to its first data (CWL, WL)")]
    tras_clocks: Annotated[int, whole(1, 1000, "activate to precharge")]
    trrd_s_clocks: Annotated[int, whole(1, 1000, "activate to activate, other bank group")]
    trrd_l_clocks: Annotated[int, whole(1, 1000, "activate to activate, same bank group")]
    tfaw_clocks: Annotated[int, whole(1, 1000, "window with at most four activates")]
    tccd_s_clocks: Annotated[int, whole(1, 1000, "column to column command, other bank group")]
    tccd_l_clocks: Annotated[int, whole(1, 1000, "column to column command, same bank group")]
    trtw_clocks: Annotated[int, whole(1, 1000, "read to write command")]
    twtr_s_clocks: Annotated[int, whole(1, 1000, "end of write data to read command, other bank group")]
    twtr_l_clocks: Annotated[int, whole(1, 1000, "end of write data to read command, same bank group")]
    twr_clocks: Annotated[int, whole(1, 1000, "end of write data to precharge")]
    trtp_clocks: Annotated[int, whole(1, 1000, "read command to precharge")]
    trefi_clocks: Annotated[int, whole(1, 1_000_000, "between refreshes of all banks")]
    trfc_clocks: Annotated[int, whole(1, 100_000, "refresh to activate")]

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        for field in ("channel_bits", "burst_beats", "bank_groups", "banks_per_group", "row_bytes"):
            need_power_of_two("device", field, getattr(self, field))
        if self.row_bytes < self.burst_bytes:
            raise clash("row_bytes", f"{self.row_bytes} is less than one burst of {self.burst_bytes} bytes")
        if self.tccd_s_clocks < self.burst_clocks:
            raise clash(
                "tccd_s_clocks",
                f"{self.tccd_s_clocks} is less than burst_clocks {self.burst_clocks}: two bursts would meet on the "
                f"data bus; allowed: at least {self.burst_clocks}",
            )
        if self.trtw_clocks + self.cwl_clocks < self.cas_clocks + self.burst_clocks:
            least = self.cas_clocks + self.burst_clocks - self.cwl_clocks
            raise clash(
                "trtw_clocks",
                f"{self.trtw_clocks} lets write data (cwl_clocks {self.cwl_clocks}) meet read data (cas_clocks "
                f"{self.cas_clocks}, burst_clocks {self.burst_clocks}) on the data bus; allowed: at least {least}",
            )
        for short in ("trrd_s_clocks", "tccd_s_clocks", "twtr_s_clocks"):
            long = short.replace("_s_", "_l_")
            if getattr(self, long) < getattr(self, short):
                raise clash(
                    long,
                    f"{getattr(self, long)} is less than {short} {getattr(self, short)}: the same bank group cannot be "
                    f"faster; allowed: at least {getattr(self, short)}",
                )
        if self.trefi_clocks < self.trfc_clocks + 2 * self.row_cycle_clocks:
            raise clash(
                "trefi_clocks",
                f"{self.trefi_clocks} leaves no time beside trfc_clocks {self.trfc_clocks} for opening, writing and "
                f"closing two rows; allowed: at least {self.trfc_clocks + 2 * self.row_cycle_clocks}",
            )
        return self

    @property
    def burst_bytes(self) -> int:
        """Bytes of one column command."""
        return self.channel_bits * self.burst_beats // 8

    @property
    def banks(self) -> int:
        """Banks of a channel."""
        return self.bank_groups * self.banks_per_group

    @property
    def recovery_clocks(self) -> int:
        """From the last write command to a precharged and refreshed device."""
        write = self.cwl_clocks + self.burst_clocks + self.twr_clocks
        return max(write, self.tras_clocks) + self.trp_clocks + self.trfc_clocks

    @property
    def row_cycle_clocks(self) -> int:
        """The longest that opening, writing and closing one row takes when nothing else happens."""
        write = self.cwl_clocks + self.burst_clocks + self.twr_clocks
        return max(self.trcd_clocks + write, self.tras_clocks) + self.trp_clocks


class Dram(Section):
    """The SoC's main memory, its controller, and what else uses it."""

    device: Annotated[DramDevice, Field(description="the device's table by name, or its fields")]
    channels: Annotated[int, whole(1, 128, "channels, each with a controller of its own; a power of two")]
    capacity_bytes: Annotated[int, whole(1 * MIB, 1 * TIB, "size of the whole memory")]
    npu_budget_bytes: Annotated[int, whole(1 * MIB, 1 * TIB, "share that the NPU may fill")]
    mapping: Annotated[
        Literal["row_bank_column_group_channel", "row_column_bank_group_channel"],
        Field(description="what the address above `interleave_bytes` selects, from the highest bits to the lowest"),
    ]
    interleave_bytes: Annotated[
        int, whole(8, 65536, "neighbouring bytes in one channel and bank group before the next; a power of two")
    ]
    queue_entries: Annotated[int, whole(1, 256, "bursts that wait in one channel's controller")]
    passed_limit: Annotated[int, whole(1, 65536, "younger bursts that may overtake the oldest one of a channel")]
    interconnect_ns: Annotated[int, whole(0, 100_000, "the way across the SoC, request and data together")]
    background_bytes_per_second: Annotated[
        int, whole(0, 100_000_000_000_000, "traffic of the rest of the SoC; 0: none")
    ]
    background_pattern: Annotated[
        Literal["sequential", "random"], Field(description="order of the background's burst addresses")
    ]
    background_write_percent: Annotated[int, whole(0, 100, "share of writes in the background traffic")]

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        device = self.device
        need_power_of_two("dram", "channels", self.channels)
        need_power_of_two("dram", "interleave_bytes", self.interleave_bytes)
        if not device.burst_bytes <= self.interleave_bytes <= device.row_bytes:
            raise clash(
                "interleave_bytes",
                f"{self.interleave_bytes} is not between one burst and one row of the device; allowed: "
                f"{device.burst_bytes} to {device.row_bytes}",
            )
        if self.npu_budget_bytes > self.capacity_bytes:
            raise clash(
                "npu_budget_bytes",
                f"{self.npu_budget_bytes} is more than dram.capacity_bytes {self.capacity_bytes}; "
                "allowed: at most that",
            )
        if self.background_bytes_per_second > self.bandwidth_bytes_per_second:
            raise clash(
                "background_bytes_per_second",
                f"{self.background_bytes_per_second} is more than all channels move at their peak; allowed: at most "
                f"{self.bandwidth_bytes_per_second}",
            )
        return self

    @property
    def bandwidth_bytes_per_second(self) -> int:
        """Peak rate of all channels, rounded down."""
        device = self.device
        return self.channels * device.clock_mhz * 1_000_000 * device.burst_bytes // device.burst_clocks

    @property
    def turn_bytes(self) -> int:
        """Bytes after which the address mapping returns to the same channel, bank and place in the row."""
        return self.channels * self.device.banks * self.device.row_bytes

    def recovery_cycles(self, clock_mhz: int) -> int:
        """Cycles at `clock_mhz` after which every row is closed and refreshed, whatever came before."""
        return ceil(self.device.recovery_clocks * clock_mhz / self.device.clock_mhz)
