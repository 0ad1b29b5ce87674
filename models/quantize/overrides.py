"""Bits of single layer classes and steps, as data: what a YAML file says about the exceptions to a method's bits.

    overrides:
      - layers: [mlp.fc1, mlp.fc2]    # layer classes, in every block
        steps: [0, 4]                 # first and last executed step, both included; all steps where left out
        weight_bits: 8
      - layers: [attn_temp.qkv]
        act_bits: 16

A later entry wins over an earlier one. The file is read strictly: one mapping, no unknown or repeated field, no anchors
or tags.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent, NodeEvent

from models.errors import ModelError

LAYER_CLASSES = (
    "attn.qkv", "attn.proj", "attn_temp.qkv", "attn_temp.proj", "cross_attn.q_linear", "cross_attn.kv_linear",
    "cross_attn.proj", "mlp.fc1", "mlp.fc2",
)  # fmt: skip
PROMPT_CLASS = "cross_attn.kv_linear"
WEIGHT_BITS = (4, 6, 8)
ACT_BITS = (4, 6, 8, 16)
MAX_FILE_BYTES = 64 * 1024
MAX_DEPTH = 8


@dataclass(frozen=True)
class Override:
    """Other bits for some layer classes at some steps.

    layers: of `LAYER_CLASSES`; steps: (first, last) executed step, both included, or None for all;
    weight_bits, act_bits: None leaves them as they are.
    """

    layers: tuple[str, ...]
    steps: tuple[int, int] | None = None
    weight_bits: int | None = None
    act_bits: int | None = None

    def covers(self, layer_class: str, step: int) -> bool:
        """Whether it speaks of this layer class at this executed step."""
        return layer_class in self.layers and (self.steps is None or self.steps[0] <= step <= self.steps[1])


def check_bits(name: str, bits: object, allowed: Sequence[int]) -> int:
    """The bits, if allowed; raises ModelError naming them and the nearest allowed otherwise."""
    if type(bits) is int and bits in allowed:
        return bits
    nearest = f"; nearest: {min(allowed, key=lambda n: abs(n - bits))}" if isinstance(bits, int) else ""
    raise ModelError(f"{name}={bits!r}: allowed: {', '.join(map(str, allowed))}{nearest}")


def load_overrides(path: Path) -> tuple[Override, ...]:
    """Read an overrides file.

    Raises:
        ModelError: the file is missing, too large, no plain YAML, or a field is unknown, missing or out of range; names
            the file, the entry and the field.
    """
    data = _read(path)
    if not isinstance(data, dict) or list(data) != ["overrides"] or not isinstance(data["overrides"], list):
        raise ModelError(f"{path}: allowed is one field 'overrides' with a list of entries")
    found = []
    for index, entry in enumerate(data["overrides"]):
        try:
            found.append(_entry(entry))
        except ModelError as error:
            raise ModelError(f"{path}: overrides.{index}: {error}") from None
    return tuple(found)


def _read(path: Path) -> object:
    try:
        if path.exists() and not path.is_file():
            raise ModelError(f"{path}: not a readable text file (no plain file)")
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise ModelError(f"{path}: larger than {MAX_FILE_BYTES} bytes")
        text = data.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{path}: not a readable text file ({error})") from None
    try:
        depth = 0
        for event in YAML(typ="safe", pure=True).parse(text):
            depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
            if depth > MAX_DEPTH:  # before anything is built, which takes long where it goes deep
                raise ModelError(f"{path}: nested deeper than {MAX_DEPTH} levels")
            if isinstance(event, AliasEvent) or (isinstance(event, NodeEvent) and event.anchor):
                raise ModelError(f"{path}: anchors and aliases are not allowed")
            if getattr(event, "tag", None) or getattr(event, "version", None):
                raise ModelError(f"{path}: tags and directives are not allowed")
        return YAML(typ="safe", pure=True).load(text)
    except (YAMLError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: not readable as YAML ({' '.join(str(error).split())[:200]})") from None


def _entry(entry: object) -> Override:
    fields = ("layers", "steps", "weight_bits", "act_bits")
    if not isinstance(entry, dict):
        raise ModelError(f"an entry is a mapping of {', '.join(fields)}")
    for name in entry:
        if name not in fields:
            nearest = difflib.get_close_matches(str(name), fields, n=1, cutoff=0.0)[0]
            raise ModelError(f"unknown field '{str(name)[:40]}'; allowed: {', '.join(fields)}; nearest: {nearest}")
    bits = {name: check_bits(name, entry[name], allowed) for name, allowed in _BITS.items() if name in entry}
    if not bits:
        raise ModelError("gives neither weight_bits nor act_bits")
    layers = _layers(entry.get("layers"))
    steps = _steps(entry["steps"]) if "steps" in entry else None
    if steps is not None and PROMPT_CLASS in layers:
        raise ModelError(
            f"steps: '{PROMPT_CLASS}' runs once per prompt, before the steps; give it an entry without steps"
        )
    return Override(layers, steps, **bits)


_BITS: Mapping[str, Sequence[int]] = {"weight_bits": WEIGHT_BITS, "act_bits": ACT_BITS}


def _layers(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        raise ModelError(f"layers={value!r}: allowed is a list of {', '.join(LAYER_CLASSES)}")
    for name in value:
        if name not in LAYER_CLASSES:
            nearest = difflib.get_close_matches(str(name), LAYER_CLASSES, n=1, cutoff=0.0)[0]
            raise ModelError(
                f"layers: '{str(name)[:40]}' is unknown; allowed: {', '.join(LAYER_CLASSES)}; nearest: {nearest}"
            )
    return tuple(value)


def _steps(value: Any) -> tuple[int, int]:
    good = isinstance(value, list) and len(value) == 2 and all(type(step) is int for step in value)
    if not good or not 0 <= value[0] <= value[1]:
        raise ModelError(f"steps={value!r}: allowed is [first, last], executed steps from 0")
    return value[0], value[1]


def check_overrides(overrides: Sequence[Override], steps: int) -> None:
    """Check that the overrides speak of steps that exist; raises ModelError otherwise."""
    for override in overrides:
        if override.steps is not None and override.steps[1] >= steps:
            raise ModelError(f"overrides: steps {list(override.steps)}: allowed are executed steps 0..{steps - 1}")
