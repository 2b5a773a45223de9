"""An export: weights found, folders looked up, files made in the worker process and put where they are to be, whole or
not at all."""

import hashlib
import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import anyio
import anyio.to_thread
import msgspec

from actors.base import Origin
from actors.gate import core
from actors.gate.adapters import opened_job, read_small
from actors.gate.base_content import BaseContents
from actors.gate.config import GateConfig
from actors.gate.embedding import PromptEmbedders
from actors.gate.exporting import MANIFEST, ExportOrder, export_job, sync
from actors.gate.keeping import NoGate, change, gate_of, home, profile_of
from actors.gate.paths import Paths
from actors.gate.store import GateStore
from actors.gate.work import CACHE, Work, job_of, told_where
from actors.gate_ports import GateJournal
from actors.ports import Buckets, Clock, Registry
from schemas.documents.gate import MOST_EXPORTS, GateDocument
from schemas.events.gate import ExportGate, GateExported
from schemas.gate import AdapterWeight, ExportManifest, GateExport, GateRun, MixSource
from schemas.names import AdapterName, ProfileName, Sha256
from schemas.profile import ModelProfile


class Exports:
    def __init__(
        self,
        registry: Registry,
        buckets: Buckets,
        embedders: PromptEmbedders,
        journal: GateJournal,
        work: Work,
        bases: BaseContents,
        clock: Clock,
        config: GateConfig,
    ) -> None:
        self._registry = registry
        self._buckets = buckets
        self._embedders = embedders
        self._journal = journal
        self._work = work
        self._bases = bases
        self._clock = clock
        self._paths = Paths(config.allowed_roots)

    async def export(self, command: ExportGate, origin: Origin) -> GateExported:
        """Raises NoGate, NoMix, and what the job raises."""
        profile = self._embedders.settled(await profile_of(self._registry, command.profile))
        core.exportable(profile)
        if idle := core.idle_option(command):
            raise NoGate(idle, "leave it out")
        job = job_of(origin.id)
        name = f"{command.target}-{job}"
        target = None
        if command.folder is not None:
            target = self._paths.path(command.folder)
            if target.exists():
                if await anyio.to_thread.run_sync(_made_by, target / MANIFEST) == job:  # come again after its end
                    return await self._exported(command, profile, target / MANIFEST, str(target))
                raise NoGate(f"{command.folder} is there already", "name a folder that isn't", "conflict")
        if command.target == "base" and command.base is None:
            raise NoGate(
                "nothing says where the base checkpoint is", "`base`: its folder on the machine that does the work"
            )
        if command.text is not None and command.base is None:
            raise NoGate(
                "losses on a text are a model's, and nothing says which",
                "`base`, a causal model's folder, or no `text`",
            )
        document = await gate_of(self._registry, profile.id)
        mix, source = await self._mix(command, profile, document)
        gate = document.live if document else None
        own = source in ("static_mean", "dynamic") or (source == "uniform" and command.weights != "uniform")
        used = gate if own else None
        folders = self._folders(profile)
        base = None if command.base is None else self._paths.folder(command.base)
        text = None if command.text is None else self._paths.file(command.text)
        order = ExportOrder(
            asked=command,
            folders=folders,
            mix=mix,
            source=source,
            scales=core.scales(profile, source),
            run=used.run if used else None,
            model=profile.model,
            base=base,
            base_sha256=await self._base_sha256(job, profile.id, base, folders, used),
            text=text,
            created=self._clock.now(),
            job=job,
            banner=core.banner(mix, source, used),
        )
        with ExitStack() as stack:
            with told_where("the export can't be made", command.folder or CACHE):
                folder = stack.enter_context(self._work.folder(target))
                await self._work.run(job, profile.id, export_job, order, folder)
                if target is not None:
                    await anyio.to_thread.run_sync(_put, folder, target)
            if target is not None:
                return await self._exported(command, profile, target / MANIFEST, str(target))
            manifest = folder / MANIFEST
            store = GateStore(self._buckets, await home(self._registry, self._buckets, profile), profile.id)
            files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path != manifest]
            place = await store.put_export(
                name, [(path.relative_to(folder).as_posix(), path) for path in [*files, manifest]]
            )
            try:
                return await self._exported(command, profile, manifest, place)
            except NoGate:  # the profile was deleted meanwhile
                await store.drop_export(name)
                raise

    async def _mix(
        self, command: ExportGate, profile: ModelProfile, document: GateDocument | None
    ) -> tuple[list[AdapterWeight], MixSource]:
        """The weights to start from. Raises NoGate, NoMix."""
        names = [adapter.name for adapter in profile.adapters]
        live = document.live if document else None
        events = await self._journal.run(live.run) if live else []
        found = core.resolve(profile, live, events, command.adapter_mix)
        if command.adapter_mix is not None and found is not None:
            return found
        match command.weights:
            case "explicit":
                raise NoGate("explicit weights are asked for and none are given", f"adapter_mix {core.MIX}")
            case "uniform":
                return core.uniform(core.declared(profile)), "uniform"
            case "static_loss":
                if command.base is None or command.text is None:
                    raise NoGate("static_loss needs `base`, a causal model's folder, and `text` that nobody trained on")
                if command.rank is not None:
                    raise NoGate(
                        "static_loss finds the weights of an exact merge, and `rank` would make another model of them",
                        f"find them without a rank first, then cut: rank {command.rank} with adapter_mix {core.MIX}",
                    )
                return found[0] if found else core.uniform(core.declared(profile)), "static_loss"
            case "dynamic" if command.target != "llamacpp":
                raise NoGate(f"{command.target} takes fixed weights: a gate is dynamic with llamacpp alone")
        if found is None:
            stale = core.misfit(profile, live) if live else None
            why = f": {stale}" if stale else ""
            raise NoGate(
                f"profile {profile.id!r} has no gate of use{why}, and no weights were given for {', '.join(names)}",
                f"train one (lakehouse gate train {profile.id}), or give --adapter-mix {core.MIX}",
                "conflict",
            )
        return (found[0], "dynamic") if command.weights == "dynamic" else found

    def _folders(self, profile: ModelProfile) -> dict[AdapterName, Path]:
        """Raises NoGate."""
        found = {}
        for adapter in profile.adapters:
            if adapter.folder is None:
                raise NoGate(
                    f"adapter {adapter.name!r} of profile {profile.id!r} has no folder, so its weights can't be merged",
                    f"lakehouse profile set {profile.id} --adapter {adapter.name}=1@/path/of/its/folder",
                )
            found[adapter.name] = self._paths.folder(adapter.folder)
        return found

    async def _base_sha256(
        self,
        job: str,
        about: ProfileName,
        base: Path | None,
        folders: Mapping[AdapterName, Path],
        run: GateRun | None,
    ) -> Sha256 | None:
        """Of the base at hand, which has to be what the gate and the adapters were made for. Raises NoGate,
        Unmergeable, CheckpointError."""
        with told_where("adapters can't be read", ", ".join(map(str, folders.values()))):
            (named,) = await self._work.run(job, about, opened_job, folders)
        at_hand = await self._bases.at_hand(job, about, base, named)
        recorded = await self._bases.recorded(folders)
        if run is not None:
            recorded[f"gate {run.run}"] = run.base_sha256
        found = at_hand[1] if at_hand else None
        if other := core.other_base(found, recorded):
            hint = f"name the base that they were made for, or train again: lakehouse gate train {about} --base …"
            raise NoGate(other, hint, "conflict")
        return found

    async def _exported(self, command: ExportGate, profile: ModelProfile, manifest: Path, place: str) -> GateExported:
        raw = await anyio.Path(manifest).read_bytes()
        told = msgspec.json.decode(raw, type=ExportManifest)
        export = GateExport(
            target=told.target,
            gate_mode=told.gate_mode,
            weights=told.weights,
            scales=[adapter.scale for adapter in told.adapters],
            place=place,
            manifest_sha256=hashlib.sha256(raw).hexdigest(),
            created=told.created,
        )
        bucket = await home(self._registry, self._buckets, profile)  # where the document is to lie
        before, after = await change(self._registry, profile, lambda document: _with_export(document, export))
        await GateStore(self._buckets, bucket, profile.id).forget(before, after)
        return GateExported(
            profile=profile.id,
            export=export,
            run=told.run,
            error=told.merge.error,
            rank=told.merge.rank,
            arguments=told.arguments,
            banner=told.banner,
            notes=told.notes,
            asked_by=command.asked_by,
        )


def _put(folder: Path, target: Path) -> None:
    os.rename(folder, target)
    sync(target.parent)


def _made_by(manifest: Path) -> str | None:
    """The job that made an export; None: it is none of ours."""
    try:
        return msgspec.json.decode(read_small(manifest), type=ExportManifest).job if manifest.is_file() else None
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _with_export(document: GateDocument, export: GateExport) -> GateDocument:
    others = [one for one in document.exports if one.place != export.place]
    newest = sorted([export, *others], key=lambda one: one.created, reverse=True)  # one may come again late
    return msgspec.structs.replace(document, exports=newest[:MOST_EXPORTS])
