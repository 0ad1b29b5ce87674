"""The code for differences between sets: exact round trips, and sizes that can be counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from npusim.delta import coded_share, decode, encode
from npusim.errors import UserError
from npusim.isa.storage_dma import decoded


@given(st.integers(0, 700), st.integers(0, 2**32 - 1), st.sampled_from([0, 1, 2, 5, 20, 127]), st.floats(0, 1))
def test_round_trip(size: int, seed: int, spread: int, changed: float) -> None:
    rng = np.random.default_rng(seed)
    old = rng.integers(0, 256, size, np.uint8)
    difference = rng.integers(-spread, spread + 1, size) * (rng.random(-(-size // 64) or 1) < changed).repeat(64)[:size]
    new = (old + difference).astype(np.uint8)
    coded = encode(new, old)
    np.testing.assert_array_equal(decode(coded, old), new)
    assert coded.size <= size + -(-size // 64)
    if size:
        with pytest.raises(UserError, match="it ends too early"):
            decode(coded[:-1], old)
        with pytest.raises(ValueError, match="ends before the run"):
            decoded(coded[:-1], old)
        np.testing.assert_array_equal(decode(np.append(coded, np.uint8(99)), old), new)
    np.testing.assert_array_equal(decoded(coded, old), new)


def test_codes_by_hand() -> None:
    old = np.full(64, 250, np.uint8)
    assert encode(old, old).tolist() == [8]
    assert encode(np.tile(old, 300), np.tile(old, 300)).tolist() == [255, 8 + 51]
    one = old.copy()
    one[0] = 251  # the number 2 with no low bits: 110, then 63 zeros
    assert encode(one, old).tolist() == [0, 0b011, *[0] * 8]
    less = old - np.uint8(3)  # all 5: low bits 2 cost 1 + 1 + 2, as 1 (2 + 1 + 1), and the fewer low bits are taken
    assert encode(less, old).tolist() == [1, *[0b1011_1011] * 32]
    far = old + np.uint8(128)  # -128, the number 255: nothing is shorter than the byte itself
    assert encode(far, old).tolist() == [7, *[255] * 64]


def test_share_of_a_sequence_of_sets() -> None:
    sets = np.zeros((3, 128), np.uint8)
    assert coded_share(sets) == 1 / 128
    assert coded_share(sets[:1]) is None
    assert coded_share(sets[:, :0]) is None
