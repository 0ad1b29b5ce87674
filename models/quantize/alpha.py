"""The smoothing exponents that a search has found (`python -m models.alpha`), and which of them a request uses."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.errors import ModelError
from models.quantize.methods import get_method
from models.store import write_atomically

ALPHAS = tuple(round(0.1 * step, 1) for step in range(1, 11))
_FIELDS: dict[str, type] = {"method": str, "weight_bits": int, "act_bits": int, "alpha": float, "value": float}


@dataclass(frozen=True)
class Trial:
    """One evaluated exponent; `method` has no suffixes, `value` is the metric's, the more the better."""

    method: str
    weight_bits: int
    act_bits: int
    alpha: float
    value: float


@dataclass(frozen=True)
class AlphaTable:
    """All trials of a search with one model and one metric."""

    weights_sha256: str
    metric: str
    trials: tuple[Trial, ...]

    def best(self, method: str, weight_bits: int, act_bits: int) -> float | None:
        """The exponent with the greatest value for a method (suffixes do not matter) at these bits.

        Where these bits were not searched, that of the same weights with 8-bit activations, else that of W8A8; None
        where the method was not searched at all.
        """
        base = get_method(method).base
        for bits in ((weight_bits, act_bits), (weight_bits, 8), (8, 8)):
            found = [t for t in self.trials if (t.method, t.weight_bits, t.act_bits) == (base, *bits)]
            if found:
                return max(found, key=lambda trial: trial.value).alpha
        return None

    def save(self, path: Path) -> None:
        """Write the table as JSON, one trial a line, atomically; raises ModelError if it cannot be written."""
        head = {"weights_sha256": self.weights_sha256, "metric": self.metric}
        lines = ",\n".join("  " + json.dumps(vars(trial)) for trial in self.trials)
        text = json.dumps(head)[:-1] + ', "trials": [\n' + lines + "\n]}\n"
        write_atomically(path, text.encode())

    @classmethod
    def load(cls, path: Path) -> AlphaTable:
        """Read what `save` wrote.

        Raises:
            ModelError: the file is missing, damaged or of another shape; names it and the field.
        """
        try:
            data: Any = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise ModelError(f"{path}: not a readable file of smoothing exponents ({error})") from None
        if not isinstance(data, dict) or {k: type(v) for k, v in data.items()} != {
            "weights_sha256": str, "metric": str, "trials": list,
        }:  # fmt: skip
            raise ModelError(f"{path}: allowed are the fields weights_sha256, metric, trials")
        trials = []
        for index, entry in enumerate(data["trials"]):
            if not isinstance(entry, dict) or {k: type(v) for k, v in entry.items()} != _FIELDS:
                raise ModelError(f"{path}: trials.{index}: allowed are the fields {', '.join(_FIELDS)}")
            trials.append(Trial(**entry))
        return cls(data["weights_sha256"], data["metric"], tuple(trials))
