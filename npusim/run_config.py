"""The settings of a run: checked before anything is drawn or computed, and read back from run.json."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from compiler.swap import IN_DRAM, POLICIES
from models.quantize import Override
from models.quantize.structure import checked_settings
from models.stats import BRANCHES
from models.workloads import Workload
from npusim.config import Machine
from npusim.errors import UserError

ATTENTION_BITS = (8, 16)


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides a run's results, as it was asked for.

    ``seed`` is the noise's; ``ranges`` and ``alpha`` are None for the method's own; ``overrides`` are the fields of
    each `models.quantize.Override`; the machine stands in full. A timing-only run has no prompt, seed and verify.
    ``steps``, ``blocks``, ``branch``: the part that is run, None for all of them. ``integer_only``: without the float
    and the fake-quantized clip. ``verify_sample``: the share of instructions that the reference computes again.
    ``policy``: how parameter sets come from storage (`compiler.swap.POLICIES`), or that they lie in DRAM.
    """

    workload: str
    prompt: str | None
    seed: int | None
    method: str
    weight_bits: int
    act_bits: int
    attention_bits: int
    ranges: int | tuple[int, ...] | None
    alpha: float | None
    overrides: tuple[Mapping[str, Any], ...]
    factored: bool
    num_steps: int
    cfg_scale: float
    cfg_channels: int
    verify: str | None
    machine: Machine
    timing_only: bool = False
    steps: int | None = None
    blocks: int | None = None
    branch: str | None = None
    integer_only: bool = False
    verify_sample: float = 0.0
    policy: str = IN_DRAM

    @property
    def part(self) -> str:
        """The part of the video that is run, in words; "" for all of it."""
        parts = [f"the first {self.steps} of {self.num_steps} steps"] if self.steps is not None else []
        parts += [f"the first {self.blocks} blocks of the network"] if self.blocks is not None else []
        parts += [f"the {self.branch} guidance branch"] if self.branch is not None else []
        return ", ".join(parts)


def config_of(
    work: Workload,
    machine: Machine,
    ranges: int | Sequence[int] | None,
    overrides: Sequence[Override],
    **asked: Any,
) -> RunConfig:
    """What was asked for, with what the workload says.

    Raises:
        UserError, ModelError: settings that no method, network or machine takes: before weights are drawn or read.
    """
    config = RunConfig(
        workload=work.name, machine=machine, num_steps=work.num_steps, cfg_scale=work.cfg_scale,
        cfg_channels=work.cfg_channels,
        ranges=ranges if ranges is None or isinstance(ranges, int) else tuple(ranges),
        overrides=tuple(dataclasses.asdict(override) for override in overrides), **asked,
    )  # fmt: skip
    bits = config.weight_bits, config.act_bits
    checked_settings(config.method, bits, config.ranges, config.alpha, overrides, work.num_steps)
    if config.attention_bits not in ATTENTION_BITS:
        raise UserError(f"attention_bits = {config.attention_bits}: allowed {', '.join(map(str, ATTENTION_BITS))}")
    check_policy(config.policy)
    if not 0.0 <= config.verify_sample <= 1.0:
        raise UserError(f"verify_sample = {config.verify_sample}: allowed a share 0..1")
    return config


def check_policy(policy: str) -> None:
    """Raise UserError unless it is one that `compiler.swap` knows."""
    allowed = (IN_DRAM, *POLICIES)
    if policy not in allowed:
        near = difflib.get_close_matches(str(policy), allowed, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UserError(f"policy = {policy!r}: allowed {', '.join(allowed)}{hint}")


def part_of(work: Workload, steps: int | None, blocks: int | None, branch: str | None) -> Workload:
    """The workload with the blocks that are asked for. Raises UserError or ModelError for a part that is not there."""
    if steps is not None and not 1 <= steps <= work.num_steps:
        raise UserError(f"steps = {steps}: allowed 1..{work.num_steps}")
    if branch not in (None, *BRANCHES):
        near = difflib.get_close_matches(str(branch), BRANCHES, n=1, cutoff=0.0)
        raise UserError(f"branch = {branch!r}: allowed {' or '.join(BRANCHES)}; did you mean {near[0]!r}?")
    return work.with_files(blocks=blocks)


def recorded_config(record: Mapping[str, Any]) -> RunConfig:
    """The settings in a run.json. Raises UserError for such as no run has written."""
    fields = {field.name for field in dataclasses.fields(RunConfig)}
    try:
        given = {name: value for name, value in record["config"].items() if name in fields} | {"seed": None}
        if given["timing_only"]:
            given |= {"prompt": None, "verify": None}  # "n/a"
        config = TypeAdapter(RunConfig).validate_python(given)
        overrides = TypeAdapter(tuple[Override, ...]).validate_python(config.overrides)
    except (AttributeError, KeyError, TypeError, ValidationError) as error:
        text = " ".join(str(error).split())
        raise UserError(
            f"config: not the settings of a run ({text[:200]}); allowed: as `npusim run` wrote it"
        ) from None
    return dataclasses.replace(config, overrides=tuple(map(dataclasses.asdict, overrides)))
