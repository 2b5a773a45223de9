"""The other half of the worlds of test_slot_simulation.py, where all is told: a worker takes a file as a whole."""

import pytest

from tests.unit.test_slot_simulation import chunks, keeps_its_word


@pytest.mark.parametrize("seeds", chunks(1))
def test_the_slot_keeps_its_word(seeds: range) -> None:
    keeps_its_word(seeds)
