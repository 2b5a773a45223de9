"""Which losses an export's manifest has, and of what; the model is a stand-in."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.gate import losses
from actors.gate.losses import Text, batches
from schemas.profile import Adapter
from tests.unit.gate_adapters import write_adapter_folder
from tests.unit.gate_setting import Setting, trained
from tests.unit.test_gate_uses import exported, manifest


class SumModel:
    """Its loss is the weighted number of the adapters; that of a merge, minus its rank."""

    tokenizer = None

    def __init__(self, base: Path, adapters: Any) -> None: ...

    @contextmanager
    def hooked(self) -> Iterator["SumModel"]:
        yield self

    def context(self, asked: int) -> int:
        return asked

    def loss(self, weights: Any, prompts: Any) -> float:
        return float(sum((place + 1) * weight for place, weight in enumerate(weights)))

    def merged_loss(self, merge: Any, prompts: Any) -> float:
        return -float(merge.rank)


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setting:
    monkeypatch.setattr(losses, "MixedModel", SumModel)
    monkeypatch.setattr(losses, "read_text", lambda *_: Text([np.arange(3)], [np.arange(4)], "0" * 64))
    house = Setting(tmp_path)
    (house.work / "text.txt").write_text("x")
    return house


async def measured(house: Setting, target: Any, **more: Any) -> dict[str, float]:
    options = {"base": house.with_base(), "text": str(house.work / "text.txt"), **more}
    _, folder = await exported(house, target, **options)
    told = manifest(folder).evaluation
    assert told is not None
    return {each.of: each.loss for each in told.losses}


async def test_what_is_measured_of_a_dynamic_export_is_its_mean(house: Setting) -> None:
    await house.with_profile()
    house.with_adapters()
    first, second = (await trained(house)).gate.mean_weights
    assert first is not None
    assert second is not None
    assert await measured(house, "llamacpp", weights="dynamic") == {
        "base": 0, "uniform": 1.5, "adapter code": 1, "adapter prose": 2,
        "static_mean": pytest.approx(first + 2 * second),
    }  # fmt: skip


async def test_what_is_measured_of_a_cut_is_the_cut(house: Setting) -> None:
    await house.with_profile()
    house.with_adapters()
    found = await measured(house, "peft", adapter_mix="code:1,prose:1", rank=5, max_error=1)
    assert (found["explicit"], found["adapter prose"]) == (-5, 2)


async def test_an_adapter_s_name_is_taken_for_no_mix(house: Setting) -> None:
    for seed, name in enumerate(("base", "uniform")):
        write_adapter_folder(house.work / f"of-{name}", seed)
    adapters = [Adapter(name, 1.0, str(house.work / f"of-{name}")) for name in ("base", "uniform")]
    await house.with_profile(adapters=adapters)
    found = await measured(house, "peft", adapter_mix="base:1,uniform:1")
    assert found == {"base": 0, "uniform": 1.5, "adapter base": 1, "adapter uniform": 2, "explicit": 3}


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 200))
def test_batches_hold_so_many_tokens_with_their_padding(lengths: list[int], most: int) -> None:
    prompts = [np.full(length, place) for place, length in enumerate(lengths)]
    found = list(batches(prompts, most))
    assert [int(one[0]) for batch in found for one in batch] == list(range(len(lengths)))
    assert all(len(batch) == 1 or len(batch) * max(map(len, batch)) <= most for batch in found)
    for batch, after in pairwise(found):  # none has room for the next
        assert (len(batch) + 1) * max(len(one) for one in [*batch, after[0]]) > most
