"""Runs inside the TOSA environment: Arm's test generator, then the reference model on every generated case.

``tosa_generate.py OUT.npz`` writes each case's inputs, constants and expected result as ``<number>/<tensor>``, and
``manifest``: a JSON list with the operator, types, shapes and attributes of each case.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import tosa_reference_model

PACKAGES = Path(tosa_reference_model.__file__).resolve().parents[1]
BINARIES = PACKAGES / "bin"
OPERATORS = "rescale|matmul|table|add|mul|cast|clamp|reduce_sum"


def generate(folder: Path) -> None:
    """The positive integer cases of two shapes; 48-bit tensors are the accumulators of RESCALE."""
    subprocess.run(
        [
            str(Path(sys.executable).parent / "tosa_verif_build_tests"), "--tosa-version", "1.0.0", "--seed", "7",
            "--generate-lib-path", str(PACKAGES / "tosa_reference_model" / "libtosa_reference_generate_lib.so"),
            "--filter", f"^({OPERATORS})$", "--profile", "tosa-pro-int",
            "--extension", "tosa-ext-int16", "tosa-ext-doubleround",
            "--target-dtype", "int8", "int16", "int32", "int48", "--target-shape", "2,9,40", "5,6,7",
            "--target-rank", "3", "--test-type", "positive", "--dump-const-tensors",
            "-o", str(folder),
        ],
        check=True,
    )  # fmt: skip


def attributes(case: Path) -> dict[str, Any]:
    """Attributes of the operator under test, from the serialized graph."""
    flatc = [str(BINARIES / "flatc"), "--json", "--raw-binary", "--strict-json", "--defaults-json"]
    subprocess.run([*flatc, "-o", str(case), str(BINARIES / "tosa.fbs"), "--", str(case / "test.tosa")], check=True)
    # flatc writes an empty vector as "[\n\n]" and no trailing commas with --strict-json: plain JSON.
    graph = json.loads((case / "test.json").read_text())
    operators = graph["regions"][0]["blocks"][0]["operators"]
    (operator,) = [o for o in operators if o["op"] not in ("CONST", "CONST_SHAPE")]
    return dict(operator["attribute"])


def main(out: Path) -> None:
    arrays: dict[str, np.ndarray] = {}
    manifest = []
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        for number, description in enumerate(sorted(Path(folder).glob("*/*/desc.json"))):
            case, desc = description.parent, json.loads(description.read_text())
            subprocess.run([str(BINARIES / "tosa_reference_model"), f"--test_desc={description}"], check=True)
            tensors = desc["meta"]["data_gen"]["tensors"]
            for name in tensors:
                arrays[f"{number}/{name}"] = np.load(case / f"{name}.npy")
            arrays[f"{number}/result"] = np.load(case / desc["ofm_file"][0])
            entry = {
                "name": case.name,
                "op": desc["test_details"]["operator"],
                "inputs": [[name, t["data_type"]] for name, t in tensors.items()],
                "result": desc["test_details"]["output_types"][0],
                "attributes": attributes(case),
            }
            if not re.fullmatch(r"\w+", entry["name"]):
                raise ValueError(entry["name"])
            manifest.append(entry)
    np.savez(out, manifest=np.frombuffer(json.dumps(manifest).encode(), np.uint8), **arrays)


main(Path(sys.argv[1]))
