"""The contract of the port `CodecJournal`: over real tables, and its frontier against brute force."""

from pathlib import Path
from typing import get_args

import msgspec
import numpy as np
import pytest

from daemon.storage.buckets import ObjectBuckets
from daemon.storage.codec_journal import CODEC_TRIALS, TableCodecJournal
from daemon.storage.tables import DeltaTables
from schemas.codec import CodecParams
from schemas.documents.codec_trial import CodecTrial
from schemas.events.codec import FrontierPoint, Measure


def tables_in(folder: Path, cache: str = "cache") -> DeltaTables:
    return DeltaTables(ObjectBuckets({"primary": (folder / "primary").as_uri()}, folder / cache), folder / cache)


@pytest.fixture
def journal(tmp_path: Path) -> TableCodecJournal:
    return TableCodecJournal(tables_in(tmp_path))


def trial(job: str = "j1", group: int = 0, point: int = 0, bits: int = 4, **fields: object) -> CodecTrial:
    known: dict[str, object] = {
        "job": job, "group": group, "point": point, "target": "/models/a", "target_sha256": "0" * 64,
        "tensor": "w", "rows": 100, "columns": 10,
        "signature": CodecParams(family="scalar", bits=bits).signature,
        "family": "scalar", "centroids": 256, "bits": bits, "clip": "absmax", "zero_point": False,
        "rotation": "identity", "distance": "adc_u8", "lane_width": "f32x16", "seed": 42,
        "bits_per_weight": bits + 0.25, "codes_bytes": 500, "codebooks_bytes": 0, "scales_bytes": 200,
        "rotation_bytes": 0, "measured_rows": 50, "icc_3_1": 0.99, "icc_1_1": 0.98, "relative_l2": 0.1,
        "row_cosine": 0.995, "norm_error": 0.01, "pairs": 1225, "calibration_rows": 50,
        "icc_3_1_calibration": 0.99, "relative_l2_calibration": 0.1, "icc_3_1_all": 0.99, "relative_l2_all": 0.1,
        "memorisation": 0.0, "memorised": False, "fit_s": 0.5, "fit_shared": False, "encode_s": 0.1,
        "decode_s": 0.1, "versions": "{}", "asked_by": "test", "host": "here", "time": 1.0,
    }  # fmt: skip
    return msgspec.convert(known | fields, CodecTrial)


async def test_an_empty_journal_has_neither_trials_nor_a_frontier(journal: TableCodecJournal) -> None:
    assert await journal.trials() == ([], 0)
    assert (await journal.frontier("icc_3_1"))[0] == []


async def test_trials_come_back_as_they_were_written_the_newest_first(
    journal: TableCodecJournal, tmp_path: Path
) -> None:
    first = [trial(point=0, refused="too few rows"), trial(point=1, bits=8, residual_depth=2, group_size=64)]
    second = [trial(group=1, point=2, tensor="v", time=0.5)]
    other = [trial("j2", target="docs.vector", point=0)]
    for group in (first, second, other):
        await journal.append(group)
    everything = [*other, *second, *first[::-1]]
    for reader in (journal, TableCodecJournal(tables_in(tmp_path, "other cache"))):
        assert await reader.trials() == (everything, 4)
        assert await reader.trials(limit=2) == (everything[:2], 4)
        assert await reader.trials(job="j1") == (everything[1:], 3)
        assert await reader.trials(job="j1", tensor="w", limit=1) == ([first[1]], 2)
        assert await reader.trials(target="docs.vector") == (other, 1)
        assert await reader.trials(job="j2", tensor="v") == ([], 0)
        assert await reader.trials(job="j3") == ([], 0)


async def test_a_group_of_a_job_is_written_once(journal: TableCodecJournal, tmp_path: Path) -> None:
    await journal.append([trial(point=0), trial(point=1, bits=5)])
    again = TableCodecJournal(tables_in(tmp_path, "other cache"))
    await again.append([trial(point=0, host="elsewhere"), trial(group=1, point=2), trial("j2")])
    trials, total = await again.trials()
    assert total == 4
    assert [(row.job, row.group, row.point, row.host) for row in trials[::-1]] == [
        ("j1", 0, 0, "here"),
        ("j1", 0, 1, "here"),
        ("j1", 1, 2, "here"),
        ("j2", 0, 0, "here"),
    ]


async def test_the_trials_are_plain_columns_of_a_table(journal: TableCodecJournal, tmp_path: Path) -> None:
    await journal.append([trial(point=0), trial(point=1, bits=8, memorised=True)])
    found = await tables_in(tmp_path).match(CODEC_TRIALS, 'bits > 4 AND memorised AND "matrix" = 0')
    assert list(found) == [1]


async def test_what_is_asked_for_is_a_value_and_never_sql(journal: TableCodecJournal) -> None:
    odd = "w' OR '1' = '1"
    await journal.append([trial(point=0), trial(point=1, bits=8, tensor=odd)])
    points, _ = await journal.frontier("icc_3_1", tensor=odd)
    assert [point.params.bits for point in points] == [8]
    assert (await journal.trials(tensor=odd))[1] == 1
    assert (await journal.frontier("icc_3_1", target="x' OR true --"))[0] == []


async def test_the_newest_measure_counts_and_refused_ones_do_not(journal: TableCodecJournal) -> None:
    await journal.append([trial(icc_3_1=0.5)])
    await journal.append([trial("j2", icc_3_1=0.75)])
    await journal.append([trial("j3", icc_3_1=1.0, refused="256 centroids, 128 rows")])
    (point,), _ = await journal.frontier("icc_3_1")
    assert point.value == 0.75
    assert point.params == CodecParams(family="scalar", bits=4)
    (old,), _ = await journal.frontier("icc_3_1", job="j1")
    assert old.value == 0.5
    assert (await journal.frontier("icc_3_1", job="j3"))[0] == []


async def test_tensors_weigh_as_much_as_they_have_weights(journal: TableCodecJournal) -> None:
    rows = [
        trial(point=0, rows=100, relative_l2=0.1, bits_per_weight=4.0),
        trial(point=0, tensor="v", rows=300, relative_l2=0.5, bits_per_weight=6.0, memorised=True),
    ]
    await journal.append(rows)
    (point,), _ = await journal.frontier("relative_l2")
    assert point.value == pytest.approx(0.4)
    assert point.bits_per_weight == pytest.approx(5.5)
    assert (point.tensors, point.weights, point.worst, point.memorised) == (2, 4000, 0.5, 1)


def dominated(one: FrontierPoint, others: list[FrontierPoint], sign: int) -> bool:
    return one.weights < max(other.weights for other in others) or any(
        other.weights == one.weights
        and other.bits_per_weight <= one.bits_per_weight
        and sign * other.value >= sign * one.value
        and (other.bits_per_weight, other.value) != (one.bits_per_weight, one.value)
        for other in others
    )


@pytest.mark.slow
@pytest.mark.parametrize("measure", get_args(Measure))
async def test_the_frontier_is_that_of_brute_force(journal: TableCodecJournal, measure: Measure) -> None:
    rng = np.random.default_rng(3)
    rows = []
    for number in range(150):  # values from few levels, so that there are ties
        tensor = f"t{rng.integers(2)}"
        rows.append(
            trial(
                f"j{number}", bits=int(rng.integers(1, 9)), clip=str(rng.choice(["absmax", "mse"])), tensor=tensor,
                rows=[100, 200][tensor == "t1"], bits_per_weight=float(rng.integers(8, 17) / 2),
                signature=CodecParams(family="scalar", bits=1 + number % 8, group=1 + number % 5).signature,
                target=f"m{rng.integers(2)}", refused="" if rng.random() < 0.8 else "overfitted",
                **{measure: float(rng.integers(1, 10) / 10)},
            )
        )  # fmt: skip
        await journal.append(rows[-1:]) if number % 50 == 49 else None
    await journal.append(rows)
    sign = -1 if measure in ("relative_l2", "norm_error") else 1
    for target in (None, "m0"):
        written = [row for row in (await journal.trials())[0][::-1] if not row.refused and target in (None, row.target)]
        newest = {(row.target, row.tensor, row.signature): row for row in written}
        points, sql = await journal.frontier(measure, target=target)
        assert "codec_trials" in sql
        assert {point.signature for point in points} == {signature for _, _, signature in newest}
        for point in points:
            mine = [row for row in newest.values() if row.signature == point.signature]
            weights = [row.rows * row.columns for row in mine]
            values = [getattr(row, measure) for row in mine]
            assert point.tensors == len(mine)
            assert point.weights == sum(weights)
            assert point.value == pytest.approx(np.average(values, weights=weights))
            assert point.bits_per_weight == pytest.approx(
                np.average([r.bits_per_weight for r in mine], weights=weights)
            )
            assert point.worst == (min if sign > 0 else max)(values)
            assert point.frontier == (not dominated(point, points, sign))
        assert 0 < sum(point.frontier for point in points) < len(points)
        assert points == sorted(points, key=lambda point: (point.bits_per_weight, point.value, point.signature))
