"""Orders to unload: a profile is deactivated, or one model leaves."""

from collections.abc import Sequence

from actors.base import Origin
from actors.errors import ModelServerError, Transient, Unavailable
from actors.profile.core import member
from actors.profile.core_eviction import unshared
from actors.profile.core_settle import owed
from actors.profile.desk import Desk, Fact, deactivated
from actors.profile.look import BELIEVED_S
from actors.profile.swap import Effects, Trouble
from schemas.documents.profile import SlotDocument
from schemas.events.base import Refusal
from schemas.events.profile import (
    DeactivateProfile,
    GpuReading,
    LoadedModel,
    ModelRef,
    ModelReport,
    ProfileDeactivated,
    SlotFailed,
    SlotInfo,
    UnloadModel,
)
from schemas.names import ModelName, ProfileName, ServerName


class Unloading:
    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def deactivate(self, command: DeactivateProfile, origin: Origin) -> Sequence[Fact | Refusal | SlotInfo]:
        desk, before, name = self._desk, self._desk.slot, command.profile
        if origin.delivery > 1 and origin.id in before.done:
            return [desk.info()]
        profile = await desk.profile(name)
        holds = before.profile == name and before.state != "empty"
        if profile is None and not holds:
            return [Refusal("not_found", f"there is no profile {name!r}", "lakehouse profile list")]
        if holds:
            refs = before.models
        else:
            assert profile is not None
            if profile.server not in desk.servers:
                return [desk.info()]
            refs = list(member(profile, desk.servers).needs)
        effects = desk.effects(name)
        view, gpus = await effects.both({ref.server for ref in refs})
        ended = desk.lookout.ended(view)
        waiting = [ref for ref in refs if ref.server not in ended]
        silent = desk.withheld(view) if holds else desk.silent(view, waiting)
        if silent is not None:
            return [silent]
        away = "".join(f"; {view.reasons[name]}, for {BELIEVED_S:g} s or more" for name in ended if waiting != refs)
        if not holds and not view.of([ref for ref in refs[:1] if ref not in before.models]):
            return [desk.info()]  # its own model isn't there, or is there for the active one
        others = [each for each in await desk.members() if each.profile != name] if view.running else []
        out = unshared(refs, view.running, others, before.profile)
        if not out and not holds:
            return [desk.info()]
        if (refused := _fixed(out)) is not None:
            return [refused]
        doubtful = refs if before.state == "empty" else None
        stuck = await self._leave(effects, out, gpus, "asked", name, doubtful, origin, away.removeprefix("; "))
        said: list[Fact | Refusal] = [*effects.facts, *desk.changed(before)]
        if stuck is not None:
            said += [SlotFailed(name, desk.slot.state, stuck.reason), desk.stuck(stuck)]
        else:
            said.append(ProfileDeactivated(name, f"asked{away}", [model.ref for model in out]))
        return await desk.conclude(said, ProfileDeactivated)

    async def unload(self, command: UnloadModel, origin: Origin) -> Sequence[Fact | Refusal | ModelReport]:
        desk, before, began = self._desk, self._desk.slot, self._desk.clock.monotonic()
        effects = desk.effects(command.model)
        _, gpus = await effects.both({command.server} if command.server is not None else ())
        ref = await find_model(desk, effects, command.model, command.server, "lakehouse vram shows what is loaded")
        if isinstance(ref, Refusal):
            return [ref]
        found = effects.view.of([ref])
        carried_out = origin.delivery > 1 and origin.id in before.done  # what is there now came later
        if not found or carried_out:
            return [ModelReport(ref.server, ref.model, loaded=bool(found), changed=False, took_ms=self._ms(began))]
        if ref in before.models and before.state == "ready":
            found += await self._left_of(effects, ref)
        if (refused := _fixed(found)) is not None:
            return [refused]
        stuck = await self._leave(
            effects, found, gpus, "asked", None, [ref] if before.state == "empty" else None, origin
        )
        said: list[Fact | Refusal | ModelReport] = [*effects.facts, *desk.changed(before)]
        gone = deactivated(before, desk.slot, f"its model {ref} was unloaded", [model.ref for model in found])
        said += gone
        if stuck is not None:
            said += [SlotFailed(before.profile, desk.slot.state, stuck.reason), desk.stuck(stuck)]
        else:
            name = gone[0].profile if gone else None
            took = self._ms(began)
            said.append(ModelReport(ref.server, ref.model, False, changed=True, took_ms=took, deactivated=name))
        return await desk.conclude(said)

    async def _left_of(self, effects: Effects, ref: ModelRef) -> list[LoadedModel]:
        """What else the active profile has in memory, and nobody needs without it."""
        desk, slot = self._desk, self._desk.slot
        view = await effects.insist({own.server for own in slot.models})
        others = [each for each in await desk.members() if each.profile != slot.profile]
        rest = [own for own in slot.models if own != ref]
        return list(unshared(rest, view.running, others, None))

    async def _leave(
        self,
        effects: Effects,
        out: Sequence[LoadedModel],
        gpus: GpuReading,
        reason: str,
        profile: ProfileName | None,
        doubtful: list[ModelRef] | None,
        origin: Origin,
        note: str = "",
    ) -> Trouble | None:
        """Through the slot's states when its own models go, or when it is empty (`doubtful` are then
        in doubt); beside them when another profile holds the slot, which stays what it is."""
        desk, before = self._desk, self._desk.slot
        holds = profile is not None and before.profile == profile
        own = holds or bool({model.ref for model in out} & set(before.models))
        if not own and doubtful is None:
            debt = owed(gpus, out)
            stuck = await effects.unload(out, debt, reason)
            if stuck is not None and profile is not None and before.state == "ready":
                # What is in memory beside the active profile isn't known; a reconcile looks again.
                desk.store.happen(
                    "in doubt",
                    profile=before.profile,
                    models=before.models,
                    reason=stuck.reason,
                    awaits_free=effects.awaited(debt),
                )
            return stuck
        stuck = await desk.depart(
            effects,
            out,
            owed(gpus, out),
            reason,
            profile=before.profile if doubtful is None else profile,
            models=before.models if doubtful is None else doubtful,
            note=note,
        )
        if stuck is None and before.state in ("ready", "unknown"):
            await self._rest(effects, before, {model.ref for model in out})
        desk.store.note([], origin)
        return stuck

    async def _rest(self, effects: Effects, before: SlotDocument, out: set[ModelRef]) -> None:
        """One model of a profile in doubt is gone; the others may still be."""
        desk = self._desk
        rest = [ref for ref in before.models if ref not in out]
        if not rest:
            return
        found = effects.presences(rest, await effects.look({ref.server for ref in rest}))
        ended = desk.lookout.ended(effects.view)  # of what they had nothing is left
        if {"stopping", "unseen"} & {kind for ref, kind in found.items() if ref.server not in ended}:
            desk.store.happen("unload begun", profile=before.profile, models=rest)
            desk.store.happen("in doubt", profile=before.profile, models=rest, reason=before.reason)

    def _ms(self, began: float) -> float:
        return (self._desk.clock.monotonic() - began) * 1000


def _fixed(out: Sequence[LoadedModel]) -> Refusal | None:
    """A model that can't leave is said so at once: nothing is unloaded, and the slot stays what it is."""
    fixed = next((model for model in out if model.fixed), None)
    if fixed is None:
        return None
    return Refusal(
        "conflict",
        f"{fixed.ref} can't be unloaded: its server runs in single mode, and has it for as long as it runs",
        "stop that llama-server, or run it in router mode (`llama-server --models-dir …`)",
    )


async def find_model(
    desk: Desk, effects: Effects, model: ModelName, server: ServerName | None, hint: str = ""
) -> ModelRef | Refusal:
    """At the server that was named; else at the one that has it in memory; else at the one that knows it. Servers
    that were hurried are asked last, with time: `effects.view` is then another one. `hint`: where it is nowhere."""
    if server is not None and server not in desk.servers:
        return Refusal("not_found", f"no server {server} is configured", "see [models] in lakehouse.toml")
    names = list(desk.servers) if server is None else [server]
    refs = [ModelRef(name, desk.servers[name].canonical(model)) for name in names]
    listed = [found.ref for found in effects.view.of(refs)]
    if len(listed) > 1:
        both = " and ".join(ref.server for ref in listed)
        return Refusal("invalid", f"{model} is in memory at {both}", "say which with server")
    if listed:
        return listed[0]
    silent: dict[ServerName, Refusal] = {}
    hurried = effects.view.hurried
    for ref in sorted(refs, key=lambda ref: ref.server in hurried):
        view = await effects.insist({ref.server})
        refusal = desk.silent(view, [ref])
        if refusal is not None:
            silent[ref.server] = refusal
            continue
        if view.of([ref]):
            return ref
        try:
            with effects.watch:
                await desk.servers[ref.server].size(ref.model)
        except LookupError:
            continue
        except (Unavailable, Transient, ModelServerError) as error:
            silent[ref.server] = Refusal("unavailable", str(error), f"see that {ref.server} runs")
            continue
        return ref
    if len(silent) == len(refs):
        return next(iter(silent.values()))
    asked = " or ".join(ref.server for ref in refs if ref.server not in silent)
    beside = "".join(f"; {refusal.reason}" for refusal in silent.values())
    return Refusal(
        "not_found", f"{asked} has no model {model}{beside}", hint or f"ollama pull {model}, or add it to llama-server"
    )
