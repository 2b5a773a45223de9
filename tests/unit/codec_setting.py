"""The codec actors on a real registry and buckets, for their tests: small checkpoints, a column, and an executor that
carries a job's chain of commands through, as the bus would."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from actors.base import Origin
from actors.codec.codecs import Codecs
from actors.codec.store import ArtifactStore
from actors.codec.targets import Targets
from actors.ports import Snapshot
from actors.tensors.shard_writer import write_arrays
from daemon.bus.heads import MemoryHeads
from daemon.storage.buckets import ObjectBuckets
from daemon.storage.codec_journal import TableCodecJournal
from daemon.storage.registry import DocumentRegistry
from daemon.storage.tables import DeltaTables
from schemas.certificate import Certificate, ColumnFunction, ColumnGate, Control, Estimate
from schemas.codec import Checkpoint, CodecParams, Manifest, VectorColumn, Versions
from schemas.config import HnswConfig
from schemas.documents.codec import CodecDocument
from schemas.documents.dataset import DatasetDocument
from schemas.documents.index import IndexDocument
from schemas.events.base import Message
from schemas.events.index import EmbedderSpec
from tests.unit.tuning_play import HandClock

ROWS, COLUMNS = 600, 32
COLUMN = VectorColumn("notes", "text")
VERSIONS = Versions("0", "2")


def origin(id: str, delivery: int = 1, time: float = 1.0) -> Origin:
    return Origin(id, id, time, delivery)


def write_checkpoint(folder: Path, seed: int = 0) -> Path:
    """Two layers' projections, a norm and an embedding, with their config.json."""
    rng = np.random.default_rng(seed)
    arrays = {
        "model.embed_tokens.weight": rng.normal(size=(300, COLUMNS)).astype(np.float32),
        "model.layers.0.mlp.up_proj.weight": rng.normal(size=(ROWS, COLUMNS)).astype(np.float32),
        "model.layers.1.mlp.up_proj.weight": rng.normal(size=(ROWS, COLUMNS)).astype(np.float32),
        "model.norm.weight": np.ones(COLUMNS, np.float32),
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_arrays(folder / "model.safetensors", arrays)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": COLUMNS,
        "num_hidden_layers": 2,
        "vocab_size": 300,
        "torch_dtype": "float32",
    }
    (folder / "config.json").write_bytes(msgspec.json.encode(config))
    return folder


class OneSnapshot:
    """The vectors of an index as they are."""

    def __init__(self, folder: Path, vectors: np.ndarray) -> None:
        rows, path = folder / "rows.npy", folder / "vectors.npy"
        np.save(rows, np.arange(len(vectors), dtype=np.int64))
        np.save(path, vectors)
        self.snapshot = Snapshot(7, len(vectors), vectors.shape[1], rows, path)

    @asynccontextmanager
    async def held(self, index: str, version: int | None = None) -> AsyncIterator[Snapshot]:
        if version not in (None, self.snapshot.version):
            raise FileNotFoundError(f"version {version}")
        yield self.snapshot

    async def covered(self, index: str) -> int:
        return self.snapshot.version

    async def forget(self, index: str) -> None:
        return None


class Setting:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        url = (folder / "bucket").absolute().as_uri()
        (folder / "bucket").mkdir(parents=True, exist_ok=True)
        self.buckets = ObjectBuckets({"primary": url}, folder / "cache")
        self.heads = MemoryHeads()
        self.registry = DocumentRegistry(self.buckets, self.heads)
        self.tables = DeltaTables(self.buckets, folder / "cache")
        self.clock = HandClock()
        self.journal = TableCodecJournal(self.tables)
        vectors = np.random.default_rng(3).normal(size=(ROWS, COLUMNS)).astype(np.float32)
        self.vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        self.snapshots = OneSnapshot(folder, self.vectors)
        self.targets = Targets(
            self.buckets, self.registry, self.tables, self.snapshots, folder / "cache" / "codec", [str(folder)]
        )
        self.codecs = Codecs(self.registry, self.buckets, self.targets, self.journal, self.clock)

    @property
    def checkpoint(self) -> Checkpoint:
        return Checkpoint(str(write_checkpoint(self.folder / "model")))

    async def with_index(self, name: str = "docs") -> None:
        """An index over notes.text, whose vectors are `self.vectors`."""
        if await self.registry.load(DatasetDocument, "notes") is None:
            dataset = DatasetDocument(
                dataset="notes", bucket="primary", path="datasets/notes", id_column="id", generated_id=False,
                columns=[], created=5.0,
            )  # fmt: skip
            await self.registry.save("notes", dataset, expected=None)
        index = IndexDocument(
            index=name, dataset="notes", column="text", metric="cosine", backend="hnsw", bucket="primary",
            target_recall=0.95, embedder=EmbedderSpec(), embedder_key=None, dim=COLUMNS, config=HnswConfig(),
            created=5.0,
        )  # fmt: skip
        await self.registry.save(name, index, expected=None)

    async def with_artifact(self, name: str = "small", target: Any = COLUMN, *, passed: bool | None = True) -> str:
        """An artifact of no tensors, with a certificate that passed or didn't (None: without one). Its manifest's
        sha256."""
        params = CodecParams(family="rotated", bits=4, rotation="hadamard")
        manifest = Manifest(
            artifact=name, target=target, target_sha256="a" * 64, params=params, tensors=[], bits_per_weight=4.0,
            total_bits_per_weight=4.0, versions=VERSIONS,
        )  # fmt: skip
        sha256 = await ArtifactStore(self.buckets, "primary", name).put_manifest(manifest)
        document = CodecDocument(
            artifact=name, bucket="primary", target=target, target_sha256="a" * 64, manifest_sha256=sha256,
            params=params, tensors=0, quantised=0, problems=0, bits_per_weight=4.0, total_bits_per_weight=4.0,
            metric="cosine", job="c1", created=6.0,
            certificate=None if passed is None else certificate(name, sha256, target, passed),
        )  # fmt: skip
        await self.registry.save(name, document, expected=None)
        return sha256

    async def document(self, name: str = "small") -> CodecDocument:
        found = await self.registry.load(CodecDocument, name)
        assert found is not None
        return found[0]

    async def ask(self, message: Any, id: str = "m1", time: float = 1.0) -> Sequence[Message]:
        """What the desk answers to a message that was published at `time`."""
        for route in Codecs.routes():
            if route.takes is type(message):
                method = getattr(self.codecs, route.method)
                return await (method(message, origin(id, time=time)) if route.wants_origin else method(message))
        raise AssertionError(f"nobody takes {message}")


def certificate(artifact: str, sha256: str, target: Any, passed: bool) -> Certificate:
    recall = Estimate(0.98, 0.97, 0.99, 0.97, 500)
    return Certificate(
        artifact=artifact, manifest_sha256=sha256, target=target, target_sha256="a" * 64, gate=ColumnGate(),
        function=ColumnFunction(
            rows=ROWS, queries=500, k=10, recall=recall, recall_codes=recall, oversample=10, code_bytes_share=0.13
        ),
        passed=passed, failures=[] if passed else ["recall@10 0.90 < 0.95"],
        self_test=[Control("noise", True, "recall 0.02 < 0.95")], text="notes.text", text_sha256="b" * 64, seed=42,
        versions=VERSIONS, took_s=1.0, time=7.0, host="h",
    )  # fmt: skip
