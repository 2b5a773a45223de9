"""What must hold of the slot, whatever happens: the witness hears every change of the GPU's truth,
every document and every answer, and notes what contradicts the truth in `broken`.
"""

import asyncio
from collections.abc import Callable, Iterable
from itertools import combinations, pairwise

from actors.profile.config import SlotConfig
from schemas.documents.base import Document
from schemas.documents.profile import SlotDocument
from schemas.events.base import Refusal
from schemas.events.profile import (
    ActivateProfile,
    DeactivateProfile,
    GetSlot,
    ModelRef,
    PreloadModel,
    ProfileActivated,
    SlotInfo,
    UnloadModel,
)
from schemas.profile import ModelProfile
from tests.unit.model_play import STALE_S, Moment, PlayGpu
from tests.unit.simulation import EPOCH
from tests.unit.slot_cast import Order, main_of, needs_of

SEEN_S = STALE_S + 0.7
"""What is said was true at a moment no longer ago: an old list, the questions' and the registry's time."""
SAID_S = 0.05
"""Between the look and the moment that a document gives for it."""
UNSEEN = 0.1
"""Of what leaves together, or of the GPU, so much may stay unseen: servers report estimates."""
SLACK_S = 1.5
"""Over the unload deadline, for the questions and the registry."""
TURN_S = 0.1
"""Answers of two orders may change places within this: they are published after their turn."""


class Witness:
    """`gpu` is the truth; times are the loop's."""

    def __init__(self, profiles: dict[str, ModelProfile], gpu: PlayGpu, config: SlotConfig) -> None:
        self.profiles, self.gpu, self.config = profiles, gpu, config
        self.pinned = frozenset(ref for p in profiles.values() if p.persistent for ref in needs_of(p))
        self.documents: list[tuple[float, SlotDocument]] = [(0.0, SlotDocument())]
        self.orders: list[Order] = []
        self.broken: list[str] = []
        self.loads: list[tuple[float, ModelRef]] = []
        self.unsaved = -1.0  # when the registry last failed
        self.activated = self.unknown = self.ready = 0
        gpu.on_change = self.held

    @property
    def document(self) -> SlotDocument:
        return self.documents[-1][1]

    def violated(self, what: str) -> None:
        self.broken.append(f"at {_now():.3f} {what}")

    # --- at every change -----------------------------------------------------------------------

    def held(self, moment: Moment) -> None:
        """Never two exclusive profiles in memory; but what left by itself and is listed no longer
        may still hold some for a moment."""
        held = moment.held - moment.adrift
        there = [p for p in self.profiles.values() if p.exclusive and main_of(p) in held]
        for one, other in combinations(there, 2):
            if main_of(one) not in needs_of(other) and main_of(other) not in needs_of(one):
                self.violated(f"two exclusive profiles are in memory: {one.id} and {other.id}")

    def saved(self, document: Document) -> None:
        """A stored state is true: `ready` by what is loaded, and not `empty` before a model that was
        told to leave has left."""
        if not isinstance(document, SlotDocument):
            return
        before = self.document
        self.documents.append((_now(), document))
        self.unknown += document.state == "unknown"
        if document.state == "ready":
            self.said_ready("the document", document.profile, document.since - EPOCH)
        if document.state == "empty" and before.profile in self.profiles:
            main = main_of(self.profiles[before.profile])
            seen = self._since(_now() - SEEN_S)
            if all(main in moment.leaving - moment.adrift for moment in seen) and not self._muddied():
                self.violated(f"the document says empty, and {main} of {before.profile} hasn't left")

    def said_ready(self, who: str, name: str | None, at: float, since: float | None = None) -> None:
        """At a moment of the observation, which ended at `at`, the profile's models were loaded,
        whole, and no list showed another beside an exclusive one's."""
        self.ready += 1
        if name is None:
            self.violated(f"{who} says ready, for no profile")
            return
        profile, moments = self.profiles[name], self.gpu.between(at - SEEN_S if since is None else since, at + SAID_S)
        needs = needs_of(profile)
        seen = [moment for moment in moments if needs <= moment.whole]
        if not seen:
            self.violated(f"{who} says that {name} is ready, and loaded are {_names(self.gpu.history[-1].whole)}")
        elif profile.exclusive and not any(moment.held <= needs | self.pinned | moment.unlisted for moment in seen):
            self.violated(f"{who} says that exclusive {name} is ready, beside {_names(seen[-1].held - needs)}")

    def unloading(self, order: Order | None, ref: ModelRef, alive: Callable[[], bool]) -> None:
        """A model is asked to leave: it does, or the slot is `unknown` in time."""
        since = _now()
        holder = self.profiles.get(self.document.profile or "")
        request = order.request if order is not None else None
        by_hand = request is None or isinstance(request, UnloadModel | PreloadModel | DeactivateProfile)
        of_nobody = by_hand and (holder is None or ref not in needs_of(holder))

        def check() -> None:
            if not alive() or not all(ref in moment.held for moment in self._since(since)):
                return
            if any(at >= since and loaded == ref for at, loaded in self.loads):
                return  # it was on its way out, with a rest that is lost in the estimates, and is back
            if of_nobody:
                if order is not None and order.answered_at is None:
                    self.violated(f"{ref} doesn't leave, and who asked for it waits since {since:.3f}")
            elif self.unsaved >= since:
                pass  # `unknown` couldn't be stored in time
            elif all(document.state != "unknown" for _, document in self._documents_since(since)):
                self.violated(f"{ref} is asked to leave since {since:.3f}, and the slot is {self.document.state}")

        asyncio.get_running_loop().call_later(self.config.unload_deadline_s + SLACK_S, check)

    def answered(self, order: Order) -> None:
        match order.answer:
            case ProfileActivated(profile=profile, kept=kept, unloaded=unloaded):
                self.activated += 1
                self.said_ready("an activation", profile, _now())
                if moved := {*kept} & order.touched("unload"):
                    self.violated(f"{_names(moved)} was unloaded and is said to have stayed: {order}")
                still = {ref for ref in unloaded if all(ref in m.held for m in self._since(order.asked_at))}
                held = sum(resident.vram for resident in self.gpu.residents if resident.ref in still)
                if held > UNSEEN * sum(self.gpu.sizes.get(ref, 0) for ref in unloaded):
                    self.violated(f"{_names(still)} is said to be unloaded, and is in memory: {order}")
            case SlotInfo(state="ready", profile=ready) if isinstance(order.request, GetSlot):
                self.said_ready("a look", ready, _now(), order.asked_at - STALE_S)
            case Refusal(status="invalid" | "not_found") if self._moved(order):
                self.violated(f"refused by admission, and yet models were moved: {order}")

    # --- at the end ----------------------------------------------------------------------------

    def at_rest(self) -> None:
        """Two reconciles after the last fault the slot knows the truth, or knew it before a keep-alive
        ran out just now."""
        document, truth = self.document, self.gpu.history[-1]
        if document.state == "ready" and document.profile:
            needs = needs_of(self.profiles[document.profile])
            if not any(needs <= moment.whole for moment in self._since(_now() - 2 * self.config.reconcile_s)):
                self.violated(f"at rest {document.profile} is ready, and loaded are {_names(truth.whole)}")
        elif document.state == "unknown" and (truth.held - truth.whole - truth.leaving):
            pass  # a daemon died while it loaded something that is partly on the CPU now
        elif document.state != "empty":
            why = f"({document.profile}: {document.reason})"
            self.violated(f"at rest the slot is {document.state} {why}, and held are {_names(truth.held)}")

    def in_turn(self) -> None:
        """Activations that wait are answered first come, first served."""
        waited = [order for order in self.orders if isinstance(order.request, ActivateProfile) and order.request.wait]
        for first, second in pairwise(order for order in waited if order.answer is not None):
            ready_at = getattr(first.process, "ready_at", 0.0)  # until then all wait, and then run for it
            if first.process is second.process and second.asked_at > max(ready_at, first.asked_at + TURN_S):
                assert first.answered_at is not None
                assert second.answered_at is not None
                if second.answered_at < first.answered_at - TURN_S:
                    self.violated(f"{first} was overtaken by {second}")

    def at_once(self) -> None:
        """Who won't wait isn't kept waiting, and moves nothing."""
        for hasty in self.orders:
            if not getattr(hasty.request, "wait", True):
                for other in self.orders:
                    if other.process is hasty.process and _surrounds(other, hasty):
                        assert hasty.answered_at is not None
                        late = hasty.answered_at > hasty.asked_at + TURN_S
                        refused = isinstance(hasty.answer, Refusal) and hasty.answer.status == "conflict"
                        if late or not refused or hasty.calls:
                            self.violated(f"{other} was under way, and yet {hasty}")

    def looked(self, slot: SlotInfo) -> None:
        """A look and the document say the same, when nothing has changed for a while."""
        quiet = self.gpu.history[-1].time < _now() - 2 * self.config.reconcile_s
        if quiet and (slot.state, slot.profile) != (self.document.state, self.document.profile):
            self.violated(f"a look sees {slot}, the document says {self.document}")

    # --- private -------------------------------------------------------------------------------

    def _moved(self, order: Order) -> bool:
        """It loaded something, or unloaded what wasn't on its way out already."""
        before = next(iter(self._since(order.calls[0][0] - SEEN_S))) if order.calls else None
        return before is not None and bool(order.touched("load") or order.touched("unload") - before.leaving)

    def _since(self, since: float) -> list[Moment]:
        return list(self.gpu.between(since, _now()))

    def _muddied(self) -> bool:
        """Memory came free of late by itself, and can't be told from what was asked for."""
        return any(moment.adrift for moment in self._since(_now() - self.config.unload_deadline_s))

    def _documents_since(self, since: float) -> list[tuple[float, SlotDocument]]:
        """Those saved since, and the one that held then."""
        first = max(n for n, (time, _) in enumerate(self.documents) if time <= since)
        return self.documents[first:]


def _now() -> float:
    return asyncio.get_running_loop().time()


def _surrounds(order: Order, other: Order) -> bool:
    """It was at work when the other was asked, and for a while after."""
    if not order.calls or order.answered_at is None or order is other:
        return False
    begun, ended = order.calls[0][0], order.answered_at
    return begun < other.asked_at and other.asked_at + TURN_S < ended


def _names(refs: Iterable[ModelRef]) -> str:
    return ", ".join(sorted(map(str, refs))) or "none"
