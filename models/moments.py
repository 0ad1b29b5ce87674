"""Second moments X^T X of the block linears' inputs over the calibration clips: what GPTQ rounding needs.

They are as large as the weights themselves (38 MB for the small model), so they are not committed with the calibration
statistics. They are collected by one more streaming pass over the same clips when GPTQ first asks for them, and kept
in a file under build/calibration/ that is reused from then on (`models.workloads.Workload.load_moments`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.errors import ModelError
from models.store import check_array, load_arrays, save_arrays

FILE_KIND = "input moments"
FILE_VERSION = 1


@dataclass(frozen=True)
class InputMoments:
    """X^T X by block linear, (K, K) float32: the sum over clips, steps, branches and valid tokens.

    weights_sha256: of the float model that was run.
    """

    weights_sha256: str
    moments: dict[str, NDArray[np.float32]]

    def save(self, path: Path) -> None:
        """Write the moments as one safetensors file, atomically; raises ModelError if it cannot be written."""
        sizes = {name: len(values) for name, values in self.moments.items()}
        metadata = {"weights_sha256": self.weights_sha256, "sizes": sizes}
        save_arrays(path, FILE_KIND, FILE_VERSION, self.moments, metadata)

    @classmethod
    def load(cls, path: Path) -> InputMoments:
        """Read what `save` wrote.

        Raises:
            ModelError: the file is missing, truncated, of another kind or version, or inconsistent; names the layer.
        """
        arrays, metadata = load_arrays(path, FILE_KIND, FILE_VERSION)
        digest, sizes = metadata.get("weights_sha256"), metadata.get("sizes")
        if not isinstance(digest, str) or not isinstance(sizes, dict):
            raise ModelError(f"{path}: metadata lacks 'weights_sha256' or 'sizes'")
        return cls(digest, {name: check_array(path, arrays, name, (n, n), np.float32) for name, n in sizes.items()})
