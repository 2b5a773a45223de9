"""How fast are the codecs' kernels on one thread? Training and encoding of product quantisation beside faiss, and the
decoding of codecs without codebooks in float32 output a second.

    OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1 python -m benchmarks.codec_kernels [--rounds 5]

CPU time, best of the rounds, both in turn in one run. faiss' quantiser takes equal runs of columns only, so it gets
1,026 columns of which the last two are 0.
"""

import argparse
import time
from collections.abc import Callable

import faiss
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from actors.codec.family import FAMILIES
from schemas.codec import CodecParams
from tests.unit.codec_matrices import weights

ROWS, COLUMNS, SUBSPACES, CENTROIDS = 3072, 1024, 6, 256
GOAL_RATIO = 2.5
GOAL_GB_S = 1.0

SCALAR = {
    "int8, a scale a row": CodecParams(family="scalar", bits=8),
    "int8, groups of 64": CodecParams(family="scalar", bits=8, group=64),
    "int4, a scale a row": CodecParams(family="scalar", bits=4),
    "int4, groups of 64": CodecParams(family="scalar", bits=4, group=64),
    "int4, groups of 64, zero points": CodecParams(family="scalar", bits=4, group=64, zero_point=True),
    "int3, groups of 64": CodecParams(family="scalar", bits=3, group=64),
    "rotated, 8 bits": CodecParams(family="rotated", bits=8, rotation="hadamard"),
    "rotated, 4 bits": CodecParams(family="rotated", bits=4, rotation="hadamard"),
    "bf16": CodecParams(family="bf16"),
}


def cpu_s(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def best(rounds: int, *works: Callable[[], object]) -> list[float]:
    """Of each, in turn, so that what else the machine does meets all alike."""
    taken = [[cpu_s(work) for work in works] for _ in range(rounds)]
    return [min(times) for times in zip(*taken, strict=True)]


def product_quantisers(rows: NDArray[np.float32], rounds: int) -> Table:
    codec, params = FAMILIES["pq"], CodecParams(family="pq", subspaces=SUBSPACES, centroids=CENTROIDS)
    width = -(-COLUMNS // SUBSPACES) * SUBSPACES
    padded = np.zeros((len(rows), width), np.float32)
    padded[:, :COLUMNS] = rows
    theirs = faiss.ProductQuantizer(width, SUBSPACES, 8)
    theirs.train(padded)
    ours = codec.fit(rows, params, np.random.default_rng(42))
    times = best(
        rounds,
        lambda: codec.fit(rows, params, np.random.default_rng(42)),
        lambda: theirs.train(padded),
        lambda: codec.encode(ours, rows, params),
        lambda: theirs.compute_codes(padded),
    )
    decoded = codec.decode(ours, codec.encode(ours, rows, params), params)
    of_faiss = theirs.decode(theirs.compute_codes(padded))[:, :COLUMNS]
    table = Table(title=f"PQ {SUBSPACES}x{CENTROIDS} of {ROWS} x {COLUMNS}, one thread, CPU time")
    for heading in ("", "ours", "faiss", "ratio"):
        table.add_column(heading, justify="right" if heading else "left")
    for what, mine, other in (
        ("training", times[0], times[1]),
        ("encoding", times[2], times[3]),
        ("both", times[0] + times[2], times[1] + times[3]),
    ):
        table.add_row(what, f"{mine * 1e3:.0f} ms", f"{other * 1e3:.0f} ms", f"{mine / other:.2f}")
    table.add_row("relative L2 of those rows", *(f"{relative(rows, back):.4f}" for back in (decoded, of_faiss)), "")
    table.caption = f"goal: both <= {GOAL_RATIO} x faiss"
    return table


def decoding(rows: NDArray[np.float32], rounds: int) -> Table:
    table = Table(title=f"Decoding {ROWS} x {COLUMNS} to float32, one thread, CPU time")
    for heading in ("codec", "bits a weight", "GB/s"):
        table.add_column(heading, justify="left" if heading == "codec" else "right")
    for name, params in SCALAR.items():
        codec = FAMILIES[params.family]
        state = codec.fit(rows[:1024], params, np.random.default_rng(42))
        codes = codec.encode(state, rows, params)
        bits = codec.charge(state, codes, params).bits_per_weight(rows.size)
        (seconds,) = best(4 * rounds, lambda c=codec, s=state, k=codes, p=params: c.decode(s, k, p))
        table.add_row(name, f"{bits:.2f}", f"{rows.nbytes / seconds / 1e9:.2f}")
    table.caption = f"goal: >= {GOAL_GB_S:g} GB/s"
    return table


def relative(rows: NDArray[np.float32], decoded: NDArray[np.float32]) -> float:
    return float(np.linalg.norm(rows - decoded) / np.linalg.norm(rows))


def main() -> None:
    parser = argparse.ArgumentParser(description="codec kernels beside faiss")
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    faiss.omp_set_num_threads(1)
    rows = weights(ROWS, COLUMNS)
    console = Console()
    console.print(product_quantisers(rows, rounds))
    console.print(decoding(rows, rounds))


if __name__ == "__main__":
    main()
