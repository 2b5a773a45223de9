"""A step of a calibration: one tensor into the artifact's folder in its bucket; after the last, the manifest, which
makes the artifact, and its document."""

from contextlib import suppress
from pathlib import Path

from msgspec.structs import replace

from actors.codec.artifact import extra_files, manifest_of
from actors.codec.calibration import TensorOrder, calibrate_tensor
from actors.codec.certify.activations import ActivationsOrder, collect_activations
from actors.codec.checkpoints.source import COLUMN_SUFFIX
from actors.codec.steps.work import Work
from actors.codec.store import ArtifactStore, tensor_key
from actors.codec.targets import Local, Targets
from actors.errors import Conflict
from actors.ports import Buckets, Clock, Registry
from actors.tensors.shard_writer import Written
from schemas.codec import Manifest, TensorRow
from schemas.documents.codec import CodecDocument, CodecJobDocument
from schemas.events.codec import CalibrateTensor, CodecCalibrated, TensorCalibrated
from schemas.names import Sha256

SAFETENSORS = ".safetensors"

TOKENS = 128
"""Of a prompt that activations are collected on."""


class JobOver(Exception):
    """A job was cancelled while its step was at work; nothing of the step is kept, and nothing is said."""


class Calibrating:
    """Does each step once: one that comes again finds its row, or the document."""

    def __init__(self, registry: Registry, buckets: Buckets, targets: Targets, work: Work, clock: Clock) -> None:
        self._registry = registry
        self._buckets = buckets
        self._targets = targets
        self._work = work
        self._clock = clock

    async def step(self, command: CalibrateTensor) -> list[TensorCalibrated | CalibrateTensor | CodecCalibrated]:
        """Raises NoTarget, CodecError, JobOver and what the job raises."""
        store = ArtifactStore(self._buckets, command.order.bucket, command.artifact)
        last = command.number + 1 == command.tensors
        async with self._targets.held(command.order.target) as local:
            row = await store.row(command.job, command.number) or await self._tensor(command, store, local.path)
            said = TensorCalibrated(command.job, command.artifact, command.tensors, row)
            if not last:
                return [said, replace(command, number=command.number + 1)]
            return [said, await self._finish(command, store, local)]

    async def remove_unfinished(self, command: CalibrateTensor) -> None:
        """An artifact's files, unless it is whole."""
        if await self._registry.load(CodecDocument, command.artifact) is None:
            await ArtifactStore(self._buckets, command.order.bucket, command.artifact).remove()

    async def _tensor(self, command: CalibrateTensor, store: ArtifactStore, source: Path) -> TensorRow:
        """Its row is in the bucket after its file."""
        order = command.order
        activations = await self._activations(command, store, source)
        with self._work.folder() as folder:
            out = folder / "tensor.safetensors"
            asked = TensorOrder(source, command.number, order.params, order.overrides, activations, out)
            row = await self._work.one(TensorRow, command.job, command.artifact, calibrate_tensor, asked)
            if await self._registry.load(CodecJobDocument, command.job) is None:
                raise JobOver  # its name may be another job's by now
            if row.file is not None:
                row = replace(row, file=await store.put_file(tensor_key(command.number), out))
            await store.put_row(command.job, row)
        return row

    async def _activations(self, command: CalibrateTensor, store: ArtifactStore, source: Path) -> Path | None:
        """A file of them; made by the job's first step where the order names a text to run the model on."""
        order = command.order
        if order.activations is None:
            return None
        given = await self._targets.path(order.activations, "file")
        if given.suffix == SAFETENSORS:
            return given
        made = await store.activations(command.job)
        if made is None:
            with self._work.folder() as folder:
                out = folder / "activations.safetensors"
                asked = ActivationsOrder(source, given, TOKENS, order.params.seed, out)
                await self._work.one(Written, command.job, command.artifact, collect_activations, asked)
                made = await store.put_activations(command.job, out)
        return made

    async def _finish(self, command: CalibrateTensor, store: ArtifactStore, local: Local) -> CodecCalibrated:
        found = await self._registry.load(CodecDocument, command.artifact)
        if found is None:
            manifest = await self._manifest(command, store, local)
            document = self._document(command, manifest, await store.put_manifest(manifest), local)
            with suppress(Conflict):  # this same step, by another worker
                await self._registry.save(command.artifact, document, expected=None)
            await store.forget_rows()
        else:
            document = found[0]
        return CodecCalibrated(
            job=command.job,
            artifact=command.artifact,
            bucket=document.bucket,
            target=document.target,
            target_sha256=document.target_sha256,
            manifest_sha256=document.manifest_sha256,
            params=document.params,
            tensors=document.tensors,
            quantised=document.quantised,
            problems=document.problems,
            bits_per_weight=document.bits_per_weight,
            total_bits_per_weight=document.total_bits_per_weight,
            asked_by=command.order.asked_by,
        )

    async def _manifest(self, command: CalibrateTensor, store: ArtifactStore, local: Local) -> Manifest:
        rows = await store.rows(command.job, command.tensors)
        extra = []
        if local.path.suffix == COLUMN_SUFFIX:
            if local.rows is not None:
                extra.append(await store.put_file("extra/rows.npy", local.rows))
        else:
            folder = local.path if local.path.is_dir() else local.path.parent
            for file in extra_files(folder):
                extra.append(await store.put_file(f"extra/{file.relative_to(folder).as_posix()}", file))
        order = command.order
        return manifest_of(
            artifact=command.artifact,
            target=order.target,
            params=order.params,
            overrides=order.overrides,
            rows=rows,
            extra=extra,
            dataset_version=local.version,
        )

    def _document(self, command: CalibrateTensor, manifest: Manifest, sha256: Sha256, local: Local) -> CodecDocument:
        return CodecDocument(
            artifact=command.artifact,
            bucket=command.order.bucket,
            target=command.order.target,
            target_sha256=manifest.target_sha256,
            manifest_sha256=sha256,
            params=command.order.params,
            tensors=len(manifest.tensors),
            quantised=sum(row.matrices > 0 for row in manifest.tensors),
            problems=sum(bool(row.problem) for row in manifest.tensors),
            bits_per_weight=manifest.bits_per_weight,
            total_bits_per_weight=manifest.total_bits_per_weight,
            metric=local.metric,
            job=command.job,
            created=self._clock.now(),
        )
