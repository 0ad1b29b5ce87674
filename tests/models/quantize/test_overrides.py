"""Overrides files: what is read, and one clear message for each fault."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.errors import ModelError
from models.quantize import Override, load_overrides
from models.quantize.overrides import LAYER_CLASSES
from models.stats import block_linears
from models.workloads import get_workload


def _written(path: Path, text: str) -> Path:
    (path / "o.yaml").write_text(text, encoding="utf-8")
    return path / "o.yaml"


def test_a_file_is_read(tmp_path: Path) -> None:
    text = """
        overrides:
          - layers: [mlp.fc1, mlp.fc2]   # all steps
            weight_bits: 8
          - {layers: [attn_temp.qkv], steps: [0, 4], weight_bits: 6, act_bits: 16}
    """
    assert load_overrides(_written(tmp_path, text)) == (
        Override(("mlp.fc1", "mlp.fc2"), None, 8, None),
        Override(("attn_temp.qkv",), (0, 4), 6, 16),
    )


def test_layer_classes_are_the_models() -> None:
    names = {name.split(".", 2)[2] for name in block_linears(get_workload("tiny").load_model())}
    assert names == set(LAYER_CLASSES)


ENTRY = "overrides: [{layers: [mlp.fc1], %s}]"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "allowed is one field 'overrides' with a list"),
        ("overrides: 3", "allowed is one field 'overrides' with a list"),
        ("overrides: []\nother: 1", "allowed is one field 'overrides' with a list"),
        ("overrides: [3]", r"overrides\.0: an entry is a mapping of layers, steps, weight_bits, act_bits"),
        ("overrides: []\noverrides: []", "not readable as YAML"),
        ("overrides: [", "not readable as YAML"),
        ("overrides: &a []", "anchors and aliases are not allowed"),
        ("overrides: !!python/name:os.system []", "tags and directives are not allowed"),
        ("%YAML 1.1\n---\noverrides: []", "tags and directives are not allowed"),
        (
            ENTRY % "weight_bit: 4",
            r"overrides\.0: unknown field 'weight_bit'; allowed: layers, .*; nearest: weight_bits",
        ),
        (ENTRY % "weight_bits: 5", r"weight_bits=5: allowed: 4, 6, 8; nearest: 4"),
        (ENTRY % "weight_bits: 8.0", r"weight_bits=8\.0: allowed: 4, 6, 8"),
        (ENTRY % "weight_bits: true", "weight_bits=True: allowed: 4, 6, 8"),
        (ENTRY % "act_bits: '8'", "act_bits='8': allowed: 4, 6, 8, 16"),
        (ENTRY % "steps: [0, 1]", "gives neither weight_bits nor act_bits"),
        (ENTRY % "act_bits: 8, steps: [3, 1]", r"steps=\[3, 1\]: allowed is \[first, last\]"),
        (ENTRY % "act_bits: 8, steps: [-1, 1]", r"steps=\[-1, 1\]: allowed is \[first, last\]"),
        (ENTRY % "act_bits: 8, steps: 4", r"steps=4: allowed is \[first, last\]"),
        ("overrides: [{act_bits: 8}]", "layers=None: allowed is a list of attn.qkv"),
        ("overrides: [{layers: [mlp.fc3], act_bits: 8}]", r"layers: 'mlp\.fc3' is unknown; .*; nearest: mlp\.fc2"),
        (
            "overrides: [{layers: [cross_attn.kv_linear], steps: [0, 1], act_bits: 8}]",
            r"steps: 'cross_attn\.kv_linear' runs once per prompt",
        ),
        ("#" * 70_000, "larger than 65536 bytes"),
        ("[" * 5_000, "nested deeper than 8 levels"),
    ],
)
def test_faults_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ModelError, match=rf"o\.yaml: .*{message}"):
        load_overrides(_written(tmp_path, text))


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "o.yaml").write_bytes(b"\xff\xfe")
    for path in (tmp_path / "o.yaml", tmp_path / "absent.yaml"):
        with pytest.raises(ModelError, match=rf"{path.name}: not a readable text file"):
            load_overrides(path)
