"""The array container: exact round trips, identical bytes, and one clear message for each kind of damage."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from models.errors import ModelError
from models.store import ArrayWriter, check_array, load_arrays, save_arrays, write_atomically

ARRAYS = {"b": np.arange(6, dtype=np.int64).reshape(2, 3).T, "a": np.array([0.1, -2.5])}


def _write(path: Path, version: int = 1) -> Path:
    save_arrays(path, "thing", version, ARRAYS, {"names": ["x"], "count": 3})
    return path


def test_round_trip_is_exact(tmp_path: Path) -> None:
    arrays, metadata = load_arrays(_write(tmp_path / "new" / "thing.safetensors"), "thing", 1)
    assert metadata == {"names": ["x"], "count": 3}
    assert set(arrays) == set(ARRAYS)
    for name, values in ARRAYS.items():
        np.testing.assert_array_equal(arrays[name], values)
        assert arrays[name].dtype == values.dtype


def test_equal_contents_give_equal_bytes_and_no_leftovers(tmp_path: Path) -> None:
    first, second = _write(tmp_path / "1"), _write(tmp_path / "2")
    assert first.read_bytes() == second.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    (target / "inside").mkdir(parents=True)
    with pytest.raises(ModelError, match="folder: cannot be written"):
        write_atomically(target, b"data")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder"]
    with pytest.raises(ModelError, match="cannot be written"):
        write_atomically(_write(tmp_path / "file") / "below", b"data")


def test_damage_is_named(tmp_path: Path) -> None:
    path = _write(tmp_path / "thing.safetensors")
    content = path.read_bytes()
    for damaged in (b"", content[:7], content[:60], content[:-1], b"\xff" * 40):
        path.write_bytes(damaged)
        with pytest.raises(ModelError, match=r"thing\.safetensors: not a readable safetensors file"):
            load_arrays(path, "thing", 1)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such thing file"):
        load_arrays(tmp_path / "absent", "thing", 1)
    with pytest.raises(ModelError, match="this is no other file"):
        load_arrays(_write(tmp_path / "thing"), "other", 1)
    with pytest.raises(ModelError, match="file version 1, this program reads version 2"):
        load_arrays(tmp_path / "thing", "thing", 2)
    for metadata in (None, {"npusim": "{"}, {"npusim": "[]"}):
        save_file(ARRAYS, tmp_path / "foreign", metadata=metadata)
        with pytest.raises(ModelError, match="this is no thing file"):
            load_arrays(tmp_path / "foreign", "thing", 1)


def test_check_array(tmp_path: Path) -> None:
    assert check_array(tmp_path, ARRAYS, "a", (2,), np.float64) is ARRAYS["a"]
    for name, shape, dtype, message in (
        ("c", (2,), np.float64, "tensor 'c' is missing"),
        ("a", (3,), np.float64, r"tensor 'a' is float64\[2\], allowed is float64\[3\]"),
        ("a", (2,), np.int64, "allowed is int64"),
    ):
        with pytest.raises(ModelError, match=message):
            check_array(tmp_path, ARRAYS, name, shape, dtype)
    with pytest.raises(ModelError, match="holds NaN or infinity"):
        check_array(tmp_path, {"a": np.array([np.nan])}, "a", (1,), np.float64)


def test_arrays_written_one_by_one_are_the_same_file_to_readers(tmp_path: Path) -> None:
    arrays = {"a": np.arange(5, dtype=np.uint8), "f": np.array([0.5, -1.0]), "i": np.arange(6).reshape(2, 3)}
    layout = {name: (values.shape, values.dtype.type) for name, values in arrays.items()}
    path = tmp_path / "new" / "thing"
    with ArrayWriter(path, "thing", 2, layout, {"count": 3}) as writer:
        for name in ("a", "i", "f"):
            writer.put(name, arrays[name])
            assert not path.exists()
    assert [file.name for file in path.parent.iterdir()] == ["thing"]
    for mapped in (False, True):
        found, metadata = load_arrays(path, "thing", 2, mapped=mapped)
        assert metadata == {"count": 3}
        for values in (found, load_file(path)):
            assert set(values) == set(arrays)
            for name, expected in arrays.items():
                np.testing.assert_array_equal(values[name], expected)
                assert values[name].dtype == expected.dtype
    assert not found["i"].flags.writeable
    assert found["i"].flags.aligned


def test_writing_one_by_one_leaves_nothing_behind_when_it_fails(tmp_path: Path) -> None:
    layout = {"a": ((2,), np.float64)}
    with pytest.raises(KeyboardInterrupt), ArrayWriter(tmp_path / "thing", "thing", 1, layout, {}):
        raise KeyboardInterrupt
    with pytest.raises(AssertionError), ArrayWriter(tmp_path / "thing", "thing", 1, layout, {}):
        pass  # an array is missing
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match=r"thing: cannot be written"):
        ArrayWriter(tmp_path / "file" / "thing", "thing", 1, layout, {}).__enter__()


def test_mapping_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = _write(tmp_path / "thing")
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ModelError, match="thing: not a readable safetensors file"):
        load_arrays(path, "thing", 1, mapped=True)
