"""The weighted sum of adapters as one: factors module by module, written as an adapter directory in PEFT's format.

An exact merge is never in memory: A' is written source by source, B' some rows at a time. One that is cut to a rank
takes a module's factors at once.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np

from actors.gate.adapters import CONFIG, WEIGHTS, SourceAdapter
from actors.gate.core_lora import F32, Module, Unmergeable, cut, merged_config
from actors.tensors.header import Planned
from actors.tensors.shard_writer import Chunks, write_shard
from schemas.gate import MergeReport, ModuleError

METADATA = {"format": "pt"}
CHUNK_BYTES = 1 << 19
"""Of factors in memory at once."""


class Weighted(msgspec.Struct, frozen=True):
    adapter: SourceAdapter
    weight: float


class Factors:
    """B' (out, R) and A' (R, in) of one module, without scales; R may be 0."""

    def __init__(self, module: str, sources: Sequence[Weighted], chunk_bytes: int = CHUNK_BYTES) -> None:
        """sources: those that count, each with the module."""
        self._module = module
        self._sources = sources
        self._chunk_bytes = chunk_bytes
        parts = [source.adapter.modules[module] for source in sources]
        self.outputs, self.inputs = parts[0].outputs, parts[0].inputs
        self.rank = sum(part.rank for part in parts)

    def b_rows(self, first: int, stop: int, rank: int | None = None) -> F32:
        """(stop - first, rank) rows of B', zeros after its own rank."""
        rows = np.zeros((stop - first, self.rank if rank is None else rank), np.float32)
        column = 0
        for source in self._sources:
            part = source.adapter.modules[self._module]
            values = source.adapter.b_rows(self._module, first, stop)
            scaled = rows[:, column : column + part.rank]
            with np.errstate(over="ignore", invalid="ignore"):
                np.multiply(values, source.weight * part.scale, out=scaled)
            if not np.isfinite(scaled).all():
                raise Unmergeable(
                    f"adapter {source.adapter.name}: lora_B of {self._module}, weighed by {source.weight:g} and scaled "
                    f"by {part.scale:g}, is beyond what float32 holds: give it a smaller weight"
                )
            column += part.rank
        return rows

    def b_chunks(self, rank: int) -> Iterator[F32]:
        at_once = max(1, self._chunk_bytes // (4 * rank))
        for first in range(0, self.outputs, at_once):
            yield self.b_rows(first, min(first + at_once, self.outputs), rank)

    def a_chunks(self, rank: int) -> Iterator[F32]:
        for source in self._sources:
            yield from source.adapter.a_chunks(self._module, self._chunk_bytes)
        if rank > self.rank:
            yield np.zeros((rank - self.rank, self.inputs), np.float32)

    def a(self) -> F32:
        """(R, in)"""
        found = np.empty((self.rank, self.inputs), np.float32)
        row = 0
        for values in self.a_chunks(self.rank):
            found[row : row + len(values)] = values
            row += len(values)
        return found


class CutFactors(Factors):
    """Those of another cut to a rank, in memory."""

    def __init__(self, whole: Factors, rank: int) -> None:
        self.outputs, self.inputs = whole.outputs, whole.inputs
        self._left, self._right, self.error = cut(whole.b_rows(0, whole.outputs), whole.a(), rank)
        self._chunk_bytes = CHUNK_BYTES
        self.rank = self._left.shape[1]

    def b_rows(self, first: int, stop: int, rank: int | None = None) -> F32:
        rows = np.zeros((stop - first, self.rank if rank is None else rank), np.float32)
        rows[:, : self.rank] = self._left[first:stop]
        return rows

    def a_chunks(self, rank: int) -> Iterator[F32]:
        yield self._right
        if rank > self.rank:
            yield np.zeros((rank - self.rank, self.inputs), np.float32)


class Merge:
    """A mix of adapters: which modules it has, and the factors of each."""

    def __init__(self, adapters: Sequence[Weighted], rank: int | None = None) -> None:
        """Adapters that weigh 0 aren't there. Raises Unmergeable where none is left."""
        self.sources = [each for each in adapters if each.weight != 0]
        if not self.sources:
            raise Unmergeable("every adapter weighs 0: there is nothing to merge")
        self.lora = self.sources[0].adapter.lora
        self._cut = rank
        self.modules: Mapping[str, Module] = {
            name: module for each in reversed(self.sources) for name, module in each.adapter.modules.items()
        }
        self.ranks = {
            name: sum(each.adapter.modules[name].rank for each in self._having(name)) for name in self.modules
        }
        most = max(self.ranks.values())
        self.rank = most if rank is None else min(rank, most)
        self.errors: dict[str, ModuleError] = {}
        self._last: tuple[str, Factors] | None = None

    def factors(self, module: str) -> Factors:
        """Of the module that was asked for last they are kept."""
        if self._last is not None and self._last[0] == module:
            return self._last[1]
        self._last = None  # the one before goes first
        if self._cut is not None and self.ranks[module] > self._cut:
            cut_factors = CutFactors(Factors(module, self._having(module)), self._cut)
            self.errors[module] = ModuleError(module, self.ranks[module], cut_factors.error)
            self._last = module, cut_factors
        else:
            self._last = module, Factors(module, self._having(module))
            if self._cut is not None:
                self.errors[module] = ModuleError(module, self.ranks[module], 0.0)
        return self._last[1]

    def report(self, max_error: float) -> MergeReport:
        """When all modules were asked for. Raises Unmergeable where a cut lost too much."""
        errors = [self.errors[name] for name in sorted(self.errors)]
        worst = max(errors, key=lambda each: each.error, default=None)
        if worst is not None and worst.error > max_error:
            over = sum(each.error > max_error for each in errors)
            raise Unmergeable(
                f"cut to rank {self._cut}, {worst.module} loses {worst.error:.4f} of its {worst.rank} ranks' norm, and "
                f"{over} of {len(errors)} modules lose more than max_error {max_error:g}: ask for a higher rank"
            )
        return MergeReport(
            mode="exact" if self._cut is None else "svd",
            rank=self.rank,
            modules=len(self.modules),
            error=worst.error if worst else 0.0,
            errors=errors,
        )

    def _having(self, module: str) -> list[Weighted]:
        return [each for each in self.sources if module in each.adapter.modules]


def write_adapter(merge: Merge, folder: Path, max_error: float = 1.0) -> MergeReport:
    """The merged adapter's two files. A module with fewer ranks than the others has zeros after its own, so that there
    is one rank and one alpha, which every reader understands. Raises Unmergeable."""
    planned: list[Planned] = []
    of: dict[str, tuple[str, str]] = {}
    for name, module in merge.modules.items():
        a = Planned(f"base_model.model.{name}.lora_A.weight", "F32", (merge.rank, module.inputs))
        b = Planned(f"base_model.model.{name}.lora_B.weight", "F32", (module.outputs, merge.rank))
        planned += [a, b]
        of |= {a.name: (name, "A"), b.name: (name, "B")}

    def chunks(tensor: Planned) -> Chunks:
        name, factor = of[tensor.name]
        found = merge.factors(name)
        for values in found.a_chunks(merge.rank) if factor == "A" else found.b_chunks(merge.rank):
            yield np.ascontiguousarray(values).reshape(-1).view(np.uint8).data

    write_shard(folder / WEIGHTS, planned, chunks, METADATA)
    report = merge.report(max_error)
    config = msgspec.json.encode(merged_config(merge.lora, merge.rank, sorted(merge.modules)))
    (folder / CONFIG).write_bytes(msgspec.json.format(config, indent=2) + b"\n")
    return report
