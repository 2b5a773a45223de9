"""Gates (control): what a gate gives a prompt, what is put in where weights are fixed, and prompts routed to a model
server by it. Training and exports are the gate lab's.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import suppress

import numpy as np

from actors.base import Actor, Origin, concurrent, handles
from actors.errors import CorruptState, ModelServerError, Transient
from actors.gate import core
from actors.gate.core import Mix
from actors.gate.core_mlp import Mlp, probabilities
from actors.gate.embedding import PromptEmbedders, check
from actors.gate.keeping import NoGate, bucket_of, gate_of, profile_of
from actors.gate.store import GateStore
from actors.gate.training import read_gate
from actors.gate_ports import GateJournal
from actors.ports import Buckets, Bus, Embedder, ModelServer, Registry
from schemas.documents.gate import GateDocument
from schemas.documents.profile import ProfileDocument
from schemas.events.base import Refusal
from schemas.events.gate import GateDropped, GateInfo, Generate, Generated, GetGate, PromptWeights, Routed, WeighPrompt
from schemas.events.profile import GetSlot, ProfileDeleted, SlotInfo
from schemas.gate import AdapterWeight, GateFiles, GateRun
from schemas.names import ServerName
from schemas.profile import Adapter, ModelProfile

KEPT = 16
"""Gates in memory, those asked last; each a few hundred KB, and with a lexical embedder 1 MB more."""


class Gates(Actor):
    role = "control"

    def __init__(
        self,
        registry: Registry,
        buckets: Buckets,
        embedders: PromptEmbedders,
        journal: GateJournal,
        servers: Mapping[ServerName, ModelServer],
        bus: Bus,
    ) -> None:
        self._registry = registry
        self._buckets = buckets
        self._embedders = embedders
        self._journal = journal
        self._servers = servers
        self._bus = bus
        self._loaded: OrderedDict[tuple[str, str], tuple[Mlp, Embedder]] = OrderedDict()  # by run and embedder's spec

    @handles
    @concurrent(8)
    async def on_get(self, query: GetGate) -> Sequence[GateInfo | Refusal]:
        try:
            profile = self._embedders.settled(await profile_of(self._registry, query.profile))
        except NoGate as error:
            return [error.refusal]
        document = await gate_of(self._registry, query.profile)
        live = document.live if document else None
        events = await self._journal.run(live.run) if live else []
        found = core.resolve(profile, live, events)
        return [
            GateInfo(
                profile=profile.id,
                bucket=document.bucket if document else bucket_of(profile),
                live=live,
                last=document.last if document else None,
                stale=(core.misfit(profile, live) or "") if live else "",
                mix=found[0] if found else None,
                source=found[1] if found else None,
                banner=core.banner(*found, live) if found else "",
                exports=document.exports if document else [],
            )
        ]

    @handles
    @concurrent(16)
    async def on_weigh(self, query: WeighPrompt, origin: Origin) -> Sequence[PromptWeights | Refusal]:
        try:
            profile = self._embedders.settled(await profile_of(self._registry, query.profile))
            document = await gate_of(self._registry, query.profile)
            if document is None or document.live is None:
                raise NoGate(*_untrained(profile, document), "conflict")
            mix = await self._weigh(profile, document, query.prompt, origin)
        except NoGate as error:
            return [error.refusal]
        except core.NoMix as error:
            reason = f"the gate of profile {query.profile!r} can't be used: {error}"
            return [Refusal("conflict", reason, f"train it again: lakehouse gate train {query.profile}")]
        mode = "uniform" if document.live.mode == "uniform" else "trained"
        return [PromptWeights(profile.id, document.live.run, mode, mix)]  # type: ignore[arg-type]

    @handles
    @concurrent(16)
    async def on_generate(self, query: Generate, origin: Origin) -> Sequence[Generated | Refusal]:
        try:
            return [await self._generate(query, origin)]
        except NoGate as error:
            return [error.refusal]
        except core.NoMix as error:
            return [Refusal("invalid", str(error))]
        except ModelServerError as error:
            return [Refusal("unavailable", str(error))]

    @handles
    async def on_profile_deleted(self, event: ProfileDeleted) -> Sequence[GateDropped]:
        """One made later under the same name starts without a gate."""
        document = await gate_of(self._registry, event.profile)
        if document is None or await self._registry.load(ProfileDocument, event.profile) is not None:
            return ()
        await self._registry.delete(GateDocument, event.profile)
        with suppress(KeyError):  # its bucket may be gone too
            await GateStore(self._buckets, document.bucket, event.profile).remove()
        return [GateDropped(event.profile)]

    # --- a prompt -------------------------------------------------------------------------------

    async def _weigh(self, profile: ModelProfile, document: GateDocument, prompt: str, origin: Origin) -> Mix:
        """The live gate's output. Raises NoGate, NoMix where the gate isn't this profile's as it is now."""
        live, files = document.live, document.files
        assert live is not None
        assert files is not None
        if stale := core.misfit(profile, live):
            raise core.NoMix(stale)
        if live.mode == "uniform":
            return core.uniform(live.adapters)
        if unready := self._embedders.unready(profile, await self._slot(origin)):
            raise NoGate(unready.reason, unready.hint, unready.status)
        key = live.run, repr(self._embedders.spec(profile))
        if key not in self._loaded:
            self._loaded[key] = await self._load(profile, document, live, files)
            while len(self._loaded) > KEPT:
                self._loaded.popitem(last=False)
        self._loaded.move_to_end(key)
        mlp, embedder = self._loaded[key]
        await check(embedder, live)
        (output,) = probabilities(mlp, (await embedder.embed([prompt])).astype(np.float64))
        return [AdapterWeight(name, float(weight)) for name, weight in zip(live.adapters, output, strict=True)]

    async def _load(
        self, profile: ModelProfile, document: GateDocument, live: GateRun, files: GateFiles
    ) -> tuple[Mlp, Embedder]:
        """Raises NoMix, CorruptState, and Transient where another gate took its place meanwhile, and its files."""
        store = GateStore(self._buckets, document.bucket, profile.id)
        try:
            embedder = await self._embedders.load(profile, live, files, store)
            if files.weights is None:
                raise CorruptState(f"the gate of profile {profile.id!r} has lost its weights: train it again")
            return read_gate(await store.local(files.weights)), embedder
        except CorruptState:
            now = await gate_of(self._registry, profile.id)
            if now is not None and now.live is not None and now.live.run != live.run:
                raise Transient(f"the gate of profile {profile.id!r} is being replaced", 0.1) from None
            raise

    async def _generate(self, query: Generate, origin: Origin) -> Generated:
        profile = self._embedders.settled(await profile_of(self._registry, query.profile))
        slot = await self._slot(origin)
        if (slot.state, slot.profile) != ("ready", profile.id):
            raise NoGate(
                f"profile {profile.id!r} isn't active: the slot is {slot.state}",
                f"lakehouse profile activate {profile.id}",
                "conflict",
            )
        document = await gate_of(self._registry, profile.id)
        if profile.server != "llamacpp":
            return await self._frozen(query, profile, document)
        scales, gate, routing, note = await self._scales(query, profile, document, origin)
        adapters = [Adapter(one.adapter, one.weight) for one in scales]
        text = await self._said(query, profile, adapters or None)
        run = document.live.run if gate and document and document.live else None
        return Generated(text, profile.id, profile.server, profile.model, routing, scales, gate, run, note)

    async def _scales(
        self, query: Generate, profile: ModelProfile, document: GateDocument | None, origin: Origin
    ) -> tuple[Mix, Mix, Routed, str]:
        """Every adapter's scale for a prompt, the gate's output, how it was routed, and why so."""
        names = [adapter.name for adapter in profile.adapters]
        if query.adapter_mix is not None:
            return core.parse_mix(query.adapter_mix, names), [], "explicit", ""
        declared = [AdapterWeight(adapter.name, adapter.scale) for adapter in profile.adapters]
        if len(names) < 2:
            return declared, [], "declared", ""
        if document is None or document.live is None:
            return declared, [], "declared", _untrained(profile, document)[0]
        try:
            gate = await self._weigh(profile, document, query.prompt, origin)
        except core.NoMix as error:
            return declared, [], "declared", f"the gate can't be used: {error}"
        if document.live.mode == "uniform":
            mix = core.route(gate, profile.adapters, "floor", 0.0)
            return mix, gate, "floor", "the gate is uniform: it had too few prompts to learn from"
        return core.route(gate, profile.adapters, query.routing, query.floor), gate, query.routing, ""

    async def _frozen(self, query: Generate, profile: ModelProfile, document: GateDocument | None) -> Generated:
        """A server that takes no scales with a request: what its model was merged with holds."""
        if query.adapter_mix is not None:
            raise NoGate(
                f"{profile.server} takes no scales with a request: the mix of profile {profile.id!r} is frozen",
                f"export another: lakehouse gate export {profile.id} --as ollama --adapter-mix …",
            )
        text = await self._said(query, profile, None)
        exports = document.exports if document else []
        merged = next((one for one in exports if one.target in ("ollama", "base")), None)
        if merged is None:
            note = (
                f"{profile.server} can't route by prompt, and no mix was exported for it: the model is as it is there"
            )
        else:
            note = (
                f"{profile.server} can't route by prompt: the frozen mix is served, if its model was made of the "
                f"newest export ({merged.place})"
            )
        weights = core.strengths(merged) if merged else []
        return Generated(text, profile.id, profile.server, profile.model, "frozen", weights, [], None, note)

    async def _said(self, query: Generate, profile: ModelProfile, adapters: list[Adapter] | None) -> str:
        """What the profile's model goes on with. Raises NoGate where the server hasn't the model, or an adapter."""
        server = self._servers[profile.server]
        try:
            return await server.generate(profile.model, query.prompt, max_tokens=query.max_tokens, adapters=adapters)
        except LookupError as error:
            raise NoGate(str(error), status="not_found") from None

    async def _slot(self, origin: Origin) -> SlotInfo:
        return await self._bus.ask(GetSlot(), cause=origin)


def _untrained(profile: ModelProfile, document: GateDocument | None) -> tuple[str, str]:
    hint = f"lakehouse gate train {profile.id} --file PAIRS.jsonl"
    if document is not None and document.last is not None:
        return f"the gate of profile {profile.id!r} diverged in its training: nothing uses it", hint
    return f"profile {profile.id!r} has no trained gate", hint
