"""A file, read once into a cleaned copy on disk, so that everything is known before anything
is visible: how many rows are bad, which ids repeat, which stored rows are replaced.

Memory is bounded by the batch, not by the file: rows lie in an Arrow stream (LZ4), refused rows
in another, ids in partitions (keyspill.py, which says what a row takes). All of it is in one
folder, which goes when the stage is closed; after a crash `Ingest.start` removes it.
"""

import math
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from actors.ingest.core import LINE, REJECTS, BadFile, Plan, ordered_batch
from actors.ingest.ids import content_ids, keys_of
from actors.ingest.keyspill import KeySpill, Repeats, partitions_for, repeats
from actors.ingest.pii.detect import detect
from actors.ingest.pii.masking import masked, masked_content, masked_reason
from actors.ingest.pii.policy import Protection
from actors.ingest.pii.sampling import Sampler
from actors.ingest.readers.base import SHOWN, Chunk, Reader, Reject
from schemas.events.dataset import PiiFinding, RejectedRow

MOST_UNFOLDED = 200
"""A file may unfold to so many times its size …"""
ALWAYS_UNFOLDED = 2 * 1024**3
"""… or to so many bytes, whichever is more."""
FIRST = 20
"""Refused rows that a report shows."""
_LZ4 = pa.ipc.IpcWriteOptions(compression="lz4")
_STAGED_REJECTS = REJECTS.append(pa.field("delimiter", pa.string()))
"""Refused rows as they came; what of them is personal data is known when all rows are in."""


class Stopped(Exception):
    """The handler was cancelled; its thread gives up at the next batch."""


@dataclass
class Meter:
    """How far the work in a thread is; read by the event loop."""

    phase: str = "survey"
    done: int = 0
    total: int | None = None
    unit: str = "bytes"
    stopped: bool = False

    def move(self, done: int) -> None:
        self.done = done
        if self.stopped:
            raise Stopped


class Stage:
    """Rows of one ingest on their way into a table. Use it in one thread at a time."""

    def __init__(
        self,
        parent: Path,
        plan: Plan,
        ingest: str,
        file: str,
        keys: int,
        cells: Sequence[str] = (),
        id_key: bytes = b"",
    ) -> None:
        """keys: how many ids there are, stored and staged, about; cells: the file's columns, in its
        order; id_key: secret that content ids are made with."""
        self.plan = plan
        self.rows = 0  # staged, repeated ids included
        self.seen = 0  # rows of the file, good and bad
        self.rejected = 0
        self.repeats: Repeats | None = None
        self.protection = Protection("flag", [])
        self._first: list[RejectedRow] = []
        self._ingest = ingest
        self._file = file
        self._cells = cells
        self._id_key = id_key
        self._sampler = Sampler(ingest, [c.name for c in plan.read if c.role != "vector" and c.name not in plan.hidden])
        self._folder = Path(tempfile.mkdtemp(prefix="stage-", dir=parent))
        partitions = partitions_for(keys)
        self._staged = KeySpill(self._folder, "staged", partitions)
        self._stored = KeySpill(self._folder, "stored", partitions)
        self._schema = plan.schema.append(pa.field(LINE, pa.int64()))
        self._rows_out = pa.ipc.new_stream(str(self._folder / "rows"), self._schema, options=_LZ4)
        self._rejects_out = pa.ipc.new_stream(str(self._folder / "rejects"), _STAGED_REJECTS, options=_LZ4)

    def fill(self, reader: Reader, meter: Meter) -> None:
        """Take in a whole file. Raises BadFile, Stopped."""
        meter.phase, meter.total, meter.unit = "read", reader.size, reader.unit
        limit = max(ALWAYS_UNFOLDED, MOST_UNFOLDED * reader.size) if reader.unit == "bytes" else math.inf
        unfolded = 0
        for chunk in reader.chunks(self.plan.read):
            unfolded += sum(array.nbytes for array in chunk.arrays.values())
            if unfolded > limit:
                raise BadFile(
                    f"{self._file} has {reader.size} bytes and unfolds to over {limit}",
                    "is it a decompression bomb? Split it if it is not",
                    "too_large",
                )
            self._add(chunk)
            meter.move(chunk.read)
        self._rows_out.close()

    def inspect(self, meter: Meter) -> list[PiiFinding]:
        """Personal data in the columns, from a sample of all rows that were taken in. Raises Stopped."""
        meter.phase, meter.unit, meter.total = "inspect", "columns", len(self._sampler.columns)
        found = []
        for done, name in enumerate(self._sampler.columns):
            meter.move(done)
            found += detect(name, self._sampler.sample(name))
        return found

    def protect(self, protection: Protection) -> None:
        """What comes out from here on, rows and refused rows, is protected so."""
        self.protection = protection

    @property
    def schema(self) -> pa.Schema:
        """Of the rows that come out."""
        return pa.schema([field for field in self.plan.schema if field.name not in self.protection.left_out])

    @property
    def first(self) -> list[RejectedRow]:
        """The first refused rows, without personal data."""
        return [msgspec.structs.replace(row, reason=self._reason(row.column, row.reason)) for row in self._first]

    def add_stored(self, ids: pa.Array, rows: NDArray[np.int64]) -> None:
        """Ids (n,) of stored rows, and their _row (n,)."""
        valid = ids.is_valid()
        self._stored.add(keys_of(ids.filter(valid)), rows[valid.to_numpy(zero_copy_only=False)])

    def settle(self, *, rewrite: bool, allowed: float) -> None:
        """Decide what becomes of ids that occur more than once. Those that the file brought
        and that can't be stored are refused rows; a generated id just is the same row.
        allowed: share of refused rows above which the file is refused anyway, so that only the
        first of them need be told."""
        refuses = not rewrite and not self.plan.generated_id
        found = repeats(self._staged, self._stored, self.rows, rewrite=rewrite, explain=refuses)
        if refuses and found.dropped:
            hopeless = self.rejected + found.dropped > allowed * self.seen
            self._reject_repeated(found, FIRST if hopeless else found.dropped)
        self._rejects_out.close()
        self.repeats = found

    @property
    def stored_rows(self) -> int:
        """Rows that will be added."""
        return self.rows - (self.repeats.dropped if self.repeats else 0)

    def ids(self) -> pa.Array:
        """Ids of all staged rows. For small stages only."""
        with self._read("rows") as stream:
            parts = [batch.column(self.plan.id_column) for batch in stream]
        return pa.concat_arrays(parts) if parts else pa.array([], self._schema.field(self.plan.id_column).type)

    def batches(self, meter: Meter) -> Iterator[pa.RecordBatch]:
        """The rows to store. Raises Stopped."""
        meter.phase, meter.unit, meter.done, meter.total = "commit", "rows", 0, self.stored_rows
        written = 0
        for batch, _, keep in self._kept():
            kept = self._protected(batch.drop_columns([LINE]))
            if not keep.all():
                kept = kept.filter(pa.array(keep))
            if kept.num_rows:
                yield kept
            written += kept.num_rows
            meter.move(written)

    def refused(self) -> Iterator[pa.RecordBatch]:
        """The refused rows, as the rejects table holds them: without personal data."""
        kinds = self.protection.kinds
        with self._read("rejects") as stream:
            for batch in stream:
                if not kinds:
                    yield batch.drop_columns(["delimiter"])
                    continue
                rows = batch.to_pylist()
                for row in rows:
                    row["content"] = masked_content(row["content"], kinds, self._cells, row.pop("delimiter"))
                    row["reason"] = self._reason(row["column"], row["reason"])
                yield pa.RecordBatch.from_pylist(rows, REJECTS)

    def close(self) -> None:
        for out in (self._rows_out, self._rejects_out, self._staged, self._stored):
            out.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> "Stage":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def _read(self, name: str) -> Iterator[pa.RecordBatchReader]:
        # Not by path: that would map the file, and its pages would count as memory.
        with pa.OSFile(str(self._folder / name)) as file, pa.ipc.open_stream(file) as stream:
            yield stream

    def _add(self, chunk: Chunk) -> None:
        self._reject(sorted(chunk.rejects, key=lambda reject: reject.line))
        count = len(chunk.lines)
        self.seen += count + len(chunk.rejects)
        if not count:
            return
        lines = chunk.lines
        self._sampler.see(chunk.arrays, count)
        hidden = {n: a for n, a in chunk.arrays.items() if n in self.plan.hidden}
        columns = ordered_batch(self.plan, {n: a for n, a in chunk.arrays.items() if n not in hidden}, count)
        name = self.plan.id_column
        if self.plan.generated_id:
            content = {n: a for n, a in columns.items() if n != name} | hidden
            columns[name] = content_ids(content, count, self._id_key)
        else:
            named = _named(columns[name])
            if not named.all():
                self._reject(
                    Reject(int(lines[row]), name, "the id is empty", _content(columns, int(row)))
                    for row in np.flatnonzero(~named)
                )
                columns = {n: array.filter(pa.array(named)) for n, array in columns.items()}
                lines = lines[named]
        batch = pa.RecordBatch.from_arrays([*columns.values(), pa.array(lines)], schema=self._schema)
        self._staged.add(keys_of(columns[name]), np.arange(self.rows, self.rows + len(lines), dtype=np.int64))
        self._rows_out.write_batch(batch)
        self.rows += len(lines)

    def _reject_repeated(self, found: Repeats, told: int) -> None:
        """Refuse the dropped rows, telling the first `told` of them."""
        assert found.earlier is not None
        dropped = np.flatnonzero(~found.kept)[:told]
        wanted = np.unique(found.earlier[dropped])  # ordinals; -1 among them
        line_of = np.zeros(len(wanted), dtype=np.int64)
        for batch, first, _ in self._kept():
            end = first + batch.num_rows
            lines = batch.column(LINE).to_numpy()
            inside = slice(*np.searchsorted(wanted, [first, end]))
            line_of[inside] = lines[wanted[inside] - first]
            rejects = []
            columns = dict(zip(self.plan.schema.names, batch.columns, strict=False))
            for ordinal in dropped[slice(*np.searchsorted(dropped, [first, end]))]:
                row, earlier = int(ordinal - first), found.earlier[ordinal]
                where = "in the dataset" if earlier < 0 else f"on line {line_of[np.searchsorted(wanted, earlier)]}"
                reason = f"id {columns[self.plan.id_column][row].as_py()!r} is already {where}"
                rejects.append(Reject(int(lines[row]), self.plan.id_column, reason, _content(columns, row)))
            self._reject(rejects)
        self.rejected += found.dropped - len(dropped)

    def _kept(self) -> Iterator[tuple[pa.RecordBatch, int, NDArray[np.bool_]]]:
        """Staged batches, the ordinal of their first row, and which rows stay (n,)."""
        first = 0
        with self._read("rows") as stream:
            for batch in stream:
                everything = np.ones(batch.num_rows, dtype=bool)
                yield batch, first, self.repeats.kept[first : first + batch.num_rows] if self.repeats else everything
                first += batch.num_rows

    def _reject(self, rejects: Iterator[Reject] | list[Reject]) -> None:
        taken = list(rejects)
        if not taken:
            return
        self.rejected += len(taken)
        self._first += [RejectedRow(self._file, r.line, r.column, r.reason) for r in taken[: FIRST - len(self._first)]]
        columns = [
            [self._ingest] * len(taken),
            [self._file] * len(taken),
            [reject.line for reject in taken],
            [reject.column for reject in taken],
            [reject.reason for reject in taken],
            [reject.content for reject in taken],
            [reject.delimiter for reject in taken],
        ]
        self._rejects_out.write_batch(
            pa.RecordBatch.from_pydict(dict(zip(_STAGED_REJECTS.names, columns, strict=True)), _STAGED_REJECTS)
        )

    def _protected(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        kinds = self.protection.kinds
        arrays = []
        for name, values in zip(batch.schema.names, batch.columns, strict=True):
            if name in self.protection.left_out:
                continue
            if name in self.protection.emptied:
                values = pa.nulls(len(values), values.type)
            elif name in self.protection.masked:
                values = masked(values, kinds[name])
            arrays.append(values)
        return pa.RecordBatch.from_arrays(arrays, schema=self.schema)

    def _reason(self, column: str, reason: str) -> str:
        kinds = self.protection.kinds
        return masked_reason(reason) if column in kinds or (kinds and not column) else reason


def _named(ids: pa.Array) -> NDArray[np.bool_]:
    """Which ids are neither null nor empty (n,)."""
    valid: NDArray[np.bool_] = ids.is_valid().to_numpy(zero_copy_only=False)
    if pa.types.is_string(ids.type):
        valid &= pc.fill_null(pc.binary_length(ids), 0).to_numpy(zero_copy_only=False) > 0
    return valid


def _content(columns: dict[str, pa.Array], row: int) -> str:
    values = {name: array[row].as_py() for name, array in columns.items()}
    return msgspec.json.encode(values, enc_hook=str).decode()[:SHOWN]
