"""Codes come back exactly, and take the bytes that they're said to."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.codec.kernels.packing import order, pack, packed_width, spread, unpack


@given(st.integers(1, 8), st.integers(0, 9), st.integers(1, 70), st.integers(0, 2**32))
def test_codes_come_back(bits: int, n: int, columns: int, seed: int) -> None:
    codes = np.random.default_rng(seed).integers(0, 2**bits, (n, columns), dtype=np.uint8)
    packed = pack(codes, bits)
    assert packed.shape == (n, packed_width(columns, bits))
    assert np.array_equal(unpack(packed, bits, columns), codes)


@given(st.integers(1, 8), st.integers(0, 9), st.integers(1, 70), st.integers(0, 2**32))
def test_values_of_codes_in_the_order_of_their_bytes(bits: int, n: int, columns: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 2**bits, (n, columns), dtype=np.uint8)
    values = rng.standard_normal(2**bits, np.float32)
    places = order(bits, columns)
    assert sorted(places) == list(range(columns))
    assert np.array_equal(spread(pack(codes, bits), values, bits, columns), values[codes][:, places])


@pytest.mark.parametrize("bits", range(1, 9))
def test_whole_groups_of_eight_codes_waste_no_bit(bits: int) -> None:
    assert packed_width(384, bits) * 8 == 384 * bits
    assert packed_width(385, bits) - packed_width(384, bits) == bits


@pytest.mark.parametrize("bits", range(1, 9))
def test_the_layout_is_the_number_that_eight_codes_make(bits: int) -> None:
    """The oracle: Python's integers."""
    codes = np.random.default_rng(bits).integers(0, 2**bits, (3, 40), dtype=np.uint8)
    packed = pack(codes, bits).reshape(3, bits, 5)
    for row in range(3):
        for place in range(5):
            number = sum(int(codes[row, run * 5 + place]) << (run * bits) for run in range(8))
            assert packed[row, :, place].tobytes() == number.to_bytes(bits, "little")


@pytest.mark.parametrize("bits", range(1, 9))
def test_a_flipped_bit_changes_one_code(bits: int) -> None:
    packed = pack(np.zeros((1, 16), np.uint8), bits)
    for byte in range(packed.shape[1]):
        for bit in range(8):
            flipped = packed.copy()
            flipped[0, byte] ^= np.uint8(1 << bit)
            assert np.count_nonzero(unpack(flipped, bits, 16)) == 1
