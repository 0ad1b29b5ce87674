"""Parameter swap: when and where a program fetches the sets of steps and time ranges from storage. See README.md."""

from compiler.swap.build import IN_DRAM, POLICIES, swap_program, with_ranges, without_fetches

__all__ = ["IN_DRAM", "POLICIES", "swap_program", "with_ranges", "without_fetches"]
