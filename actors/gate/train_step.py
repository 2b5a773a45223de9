"""A training: pairs found, prompts embedded, the gate trained in the worker process, and what came of it kept. Its
events are rows of `gate_events` before its document says that it is there.
"""

import math
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

import anyio.to_thread
import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from actors.base import Origin
from actors.gate import core
from actors.gate.adapters import CONFIG, read_small
from actors.gate.base_content import BaseContents
from actors.gate.config import GateConfig
from actors.gate.core_lora import Lora, Unmergeable, read_config
from actors.gate.core_mlp import HIDDEN, Recipe
from actors.gate.embedding import PromptEmbedders, check, embed_all
from actors.gate.keeping import NoGate, change, gate_of, home, profile_of
from actors.gate.paths import Paths
from actors.gate.phase import Phase
from actors.gate.store import GateStore
from actors.gate.training import train_job
from actors.gate.work import CACHE, Work, job_of, told_where
from actors.gate_ports import GateJournal
from actors.ports import Buckets, Bus, Clock, Embedder, Registry, TableRef, Tables
from schemas.documents.dataset import DatasetDocument
from schemas.documents.gate import GateDocument
from schemas.events.gate import MOST_EXAMPLES, GateTrained, TrainGate
from schemas.events.profile import GetSlot
from schemas.gate import Example, GateFiles, GateRun, GateRunId
from schemas.names import AdapterName, ProfileName
from schemas.profile import ModelProfile

CANNOT = "the gate can't be trained"


class Training:
    def __init__(
        self,
        registry: Registry,
        tables: Tables,
        buckets: Buckets,
        embedders: PromptEmbedders,
        journal: GateJournal,
        work: Work,
        bases: BaseContents,
        bus: Bus,
        clock: Clock,
        config: GateConfig,
    ) -> None:
        self._registry = registry
        self._tables = tables
        self._buckets = buckets
        self._embedders = embedders
        self._journal = journal
        self._work = work
        self._bases = bases
        self._bus = bus
        self._clock = clock
        self._paths = Paths(config.allowed_roots)

    async def train(self, command: TrainGate, origin: Origin) -> GateTrained:
        """Raises NoGate, NoMix."""
        profile = await profile_of(self._registry, command.profile)
        adapters = core.declared(profile)
        run = job_of(origin.id)
        there = await gate_of(self._registry, profile.id)
        if there is not None and (ended := await self._ended(there, run)) is not None:
            await self._journal.append(core.events_of(ended, ended.created))
            return _trained(there, ended, command)
        if command.examples and command.dataset is not None:
            raise NoGate("a gate learns from examples or from a dataset, and both are given", "leave one of them out")
        examples = command.examples or await self._examples(command)
        y = core.labels(examples, adapters)
        slot = await self._bus.ask(GetSlot(), cause=origin)
        if unready := self._embedders.unready(profile, slot):
            raise NoGate(unready.reason, unready.hint, unready.status)
        base = None if command.base is None else self._paths.folder(command.base)
        loras = await anyio.to_thread.run_sync(self._loras, profile)
        at_hand = await self._bases.at_hand(run, profile.id, base, (lora.base for _, lora in loras.values()))
        recorded = await self._bases.recorded({name: folder for name, (folder, _) in loras.items()})
        if other := core.other_base(at_hand and at_hand[1], recorded):
            raise NoGate(other, "name the base that the adapters were made for", "conflict")
        prompts = [example.prompt for example in examples]
        try:
            embedder, model = await self._embedders.fit(profile, prompts)
            revision = await embedder.revision()
        except ValueError as error:
            raise NoGate(f"the embedder of profile {profile.id!r} can't be used: {error}") from None
        gate = GateRun(
            run=run,
            profile=profile.id,
            mode="uniform",
            adapters=adapters,
            samples=[int((y == place).sum()) for place in range(len(adapters))],
            base_model=profile.model,
            base_revision=command.base_revision or _revision(lora for _, lora in loras.values()),
            base_sha256=at_hand[1] if at_hand else None,
            embedder=self._embedders.spec(profile),
            embedder_identity=embedder.identity,
            embedder_revision=revision,
            input_dim=embedder.dim,
            hidden_dim=HIDDEN,
            seed=command.seed,
            steps=0,
            corpus_sha256=await anyio.to_thread.run_sync(core.corpus_sha256, examples),
            train_loss=None,
            held_out_loss=None,
            uniform_loss=math.log(len(adapters)),
            mean_weights=[1 / len(adapters)] * len(adapters),
            created=self._clock.now(),
        )
        store = GateStore(self._buckets, await home(self._registry, self._buckets, profile), profile.id)
        with ExitStack() as stack:
            with told_where(CANNOT, CACHE):
                folder = stack.enter_context(self._work.folder())
            weights: Path | None = None
            if core.learnable(y, len(adapters)):
                embeddings = folder / "embeddings.npy"
                await self._embed(run, profile.id, embedder, prompts, embeddings)
                await check(embedder, gate)  # nobody put another in its place meanwhile
                steps = Recipe().steps
                await self._work.tell(run, profile.id, Phase("train", 0, steps, "steps"))
                weights = folder / "gate.safetensors"
                with told_where(CANNOT, CACHE):
                    (said,) = await self._work.run(
                        run, profile.id, train_job, embeddings, y, len(adapters), command.seed, weights
                    )
                await self._work.tell(run, profile.id, Phase("train", steps, steps, "steps"))
                gate = msgspec.structs.replace(
                    gate,
                    mode="diverged" if said.diverged else "trained",
                    steps=steps,
                    train_loss=_finite(said.train_loss),
                    held_out_loss=_finite(said.held_out_loss),
                    mean_weights=[_finite(weight) for weight in said.mean_weights],
                )
            await profile_of(self._registry, profile.id)  # which may have been deleted meanwhile
            files = await store.put(gate, weights, model)
        await self._journal.append(core.events_of(gate, gate.created))
        before, after = await change(self._registry, profile, lambda document: _with_run(document, gate, files))
        await store.forget(before, after)
        return _trained(after, gate, command)

    async def _ended(self, before: GateDocument, run: GateRunId) -> GateRun | None:
        """A training that has come again after its end, by its metadata; newer ones stay in its place. One that was
        killed before the document had it is newer than the document's last, and is done again."""
        if before.last is None or before.last.run == run:
            return before.last
        stored = await GateStore(self._buckets, before.bucket, before.profile).run(run)
        return stored if stored is not None and stored.created <= before.last.created else None

    async def _embed(
        self, run: GateRunId, about: ProfileName, embedder: Embedder, prompts: list[str], file: Path
    ) -> None:
        """Into a file, (n, d) float32, told batch by batch."""
        done = 0
        parts: list[NDArray[np.float32]] = []
        await self._work.tell(run, about, Phase("embed", 0, len(prompts), "prompts"))
        async for part in embed_all(embedder, prompts):
            parts.append(part)
            done += len(part)
            await self._work.tell(run, about, Phase("embed", done, len(prompts), "prompts"))
        with told_where(CANNOT, CACHE):
            await anyio.to_thread.run_sync(lambda: np.save(file, np.concatenate(parts)))

    async def _examples(self, command: TrainGate) -> list[Example]:
        """The pairs of a dataset. Raises NoGate."""
        if command.dataset is None:
            return []
        found = await self._registry.load(DatasetDocument, command.dataset)
        if found is None:
            raise NoGate(f"there is no dataset {command.dataset!r}", "lakehouse datasets", "not_found")
        table = TableRef(found[0].bucket, found[0].path)
        state = await self._tables.state(table)
        columns = [command.prompt_column, command.adapter_column]
        if columns[0] == columns[1]:
            raise NoGate(f"column {columns[0]!r} can't be both prompt and adapter", "prompt_column and adapter_column")
        missing = [column for column in columns if state is None or column not in state.schema.names]
        if state is None or missing:
            has = ", ".join(state.schema.names) if state else "no rows yet"
            raise NoGate(f"dataset {command.dataset!r} has no column {' and '.join(missing)}", f"it has {has}")
        if state.rows > MOST_EXAMPLES:
            raise NoGate(
                f"dataset {command.dataset!r} has {state.rows} rows; a gate learns from {MOST_EXAMPLES} at most"
            )
        rows = await self._tables.read(table, columns)
        try:
            return await anyio.to_thread.run_sync(_pairs, rows.select(columns))
        except msgspec.ValidationError as error:
            raise NoGate(f"dataset {command.dataset!r}: {error}", "a prompt and an adapter's name, both text") from None

    def _loras(self, profile: ModelProfile) -> dict[AdapterName, tuple[Path, Lora]]:
        """Folders and configurations of those adapters that can be read: a gate needs none."""
        found = {}
        for adapter in profile.adapters:
            try:
                folder = self._paths.folder(adapter.folder or "")
                found[adapter.name] = folder, read_config(read_small(folder / CONFIG), adapter.name)
            except (NoGate, OSError, Unmergeable):
                continue
        return found


def _pairs(rows: pa.Table) -> list[Example]:
    """rows: (prompt, adapter). Raises ValidationError."""
    prompts, adapters = (column.to_pylist() for column in rows.columns)
    pairs = [{"prompt": prompt, "adapter": adapter} for prompt, adapter in zip(prompts, adapters, strict=True)]
    return msgspec.convert(pairs, list[Example])


def _revision(loras: Iterable[Lora]) -> str:
    """As the adapters' configurations tell it, where they agree."""
    told = {lora.revision for lora in loras}
    return told.pop() if len(told) == 1 else ""


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _with_run(document: GateDocument, run: GateRun, files: GateFiles) -> GateDocument:
    """A run that diverged is remembered, and nothing uses it."""
    after = msgspec.structs.replace(document, last=run, last_files=files)
    return after if run.mode == "diverged" else msgspec.structs.replace(after, live=run, files=files)


def _trained(document: GateDocument, run: GateRun, command: TrainGate) -> GateTrained:
    live = document.live is not None and document.live.run == run.run
    return GateTrained(document.profile, document.bucket, run, live, command.asked_by)
