"""An artifact made in a folder by the calibrator's own jobs, one tensor after the other, without a daemon."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
from msgspec.structs import replace

from actors.codec.artifact import MANIFEST, extra_files, manifest_of
from actors.codec.base import Phase
from actors.codec.calibration import TensorOrder, calibrate_tensor
from actors.codec.checkpoints.source import open_source
from actors.codec.store import tensor_key
from schemas.codec import Checkpoint, CodecParams, Manifest, Override, StoredFile


def make_artifact(
    source: Path, params: CodecParams, folder: Path, overrides: Sequence[Override] = (), activations: Path | None = None
) -> Manifest:
    """Of a checkpoint."""
    rows = []
    for item in open_source(source, overrides).items:
        out = folder / tensor_key(item.number)
        out.parent.mkdir(parents=True, exist_ok=True)
        order = TensorOrder(source, item.number, params, overrides, activations, out)
        (row,) = [said for said in calibrate_tensor(order) if not isinstance(said, Phase)]
        if row.file is not None:
            row = replace(row, file=replace(row.file, key=tensor_key(item.number)))
        rows.append(row)
    extra = []
    for file in extra_files(source):
        kept = folder / "extra" / file.relative_to(source)
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_bytes(file.read_bytes())
        extra.append(StoredFile(kept.relative_to(folder).as_posix(), "0" * 64, kept.stat().st_size))
    manifest = manifest_of(
        artifact="benchmark", target=Checkpoint(str(source)), params=params, overrides=overrides, rows=rows, extra=extra
    )
    (folder / MANIFEST).write_bytes(msgspec.json.encode(manifest))
    return manifest


@contextmanager
def artifact(source: Path, params: CodecParams, activations: Path | None = None) -> Iterator[tuple[Path, Manifest]]:
    """In a folder that goes afterwards."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        yield folder, make_artifact(source, params, folder, activations=activations)
