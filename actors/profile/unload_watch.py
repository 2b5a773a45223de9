"""Models on their way out: after each look, whether they are gone and their memory is free, and if
they aren't, why.
"""

from collections.abc import Sequence, Set

from actors.profile.core import gib
from actors.profile.core_settle import Owed, Sample, owed, settled, shortfall
from actors.profile.look import LAG_S, View
from schemas.events.profile import GpuReading, LoadedModel, ModelRef
from schemas.names import Bytes, Seconds, ServerName

KEPT_SAMPLES = 128


class UnloadWatch:
    """Models on their way out, and how far they are."""

    def __init__(
        self,
        models: Sequence[LoadedModel],
        debt: Owed,
        tolerance: Bytes,
        awaits_free: Bytes | None,
        just_left: Set[ModelRef] = frozenset(),
    ) -> None:
        """`just_left`: what was free before all this, though a list may still show it."""
        self.models = models
        self.debt = debt
        self.servers = {model.server for model in models}
        self.problems: dict[ModelRef, str] = {}
        self.answered: set[ModelRef] = set()  # by their servers: they have been told to leave
        self.was_listed: set[ModelRef] = set()
        self.listed: list[LoadedModel] = []
        self.drift = 0  # bytes that came free meanwhile because other models left
        self._tolerance = tolerance
        self._awaits = awaits_free
        self._just_left = just_left
        self._unseen: list[str] = []
        self._silent: set[ServerName] = set()
        self._beside: dict[ModelRef, Bytes] = {}  # other models that were there at first
        self._samples: list[Sample] = []
        self._since: Seconds = 0.0  # the first of all samples

    def gone(self, view: View, sample: Sample, answered: Set[ModelRef]) -> bool:
        """After one more look. That a model isn't listed says that it has left when it was listed
        before, or was told to leave before the look: one that is still loading isn't listed everywhere."""
        self._unseen, self._silent = list(view.reasons.values()), set(view.reasons)
        self.listed = view.of([model.ref for model in self.models])
        here = {model.ref: model.size_vram or 0 for model in view.running if model not in self.listed}
        if not self._samples or sample.at - self._since < LAG_S:  # a list that lags first shows late what was there
            self._beside |= {ref: size for ref, size in here.items() if ref not in self._just_left}
        if not self._samples:
            self._since = sample.at
        left = sum(size for ref, size in self._beside.items() if ref not in here)
        came = sum(size for ref, size in here.items() if ref not in self._beside and ref not in self._just_left)
        self.drift = left - came
        self.was_listed |= {model.ref for model in self.listed}
        heard = {model.ref for model in self.models} <= self.was_listed | answered
        self._samples = [*self._samples[-KEPT_SAMPLES:], sample]
        return (
            heard
            and not self._unseen
            and not self.listed
            and settled(self.debt, self._samples, self._tolerance, self.drift)
            and self._repaid(sample.gpus)
        )

    @property
    def reading(self) -> GpuReading:
        """The last one."""
        return self._samples[-1].gpus

    def left(self) -> list[LoadedModel]:
        """Of models that don't all leave, those that did: listed no longer, and their memory is free."""
        here = {model.ref for model in self.listed}
        gone = [
            model
            for model in self.models
            if model.ref in self.was_listed and model.ref not in here and model.server not in self._silent
        ]
        debt = owed(self.debt.before, gone)
        return gone if gone and settled(debt, self._samples, self._tolerance, self.drift) else []

    def freed(self, model: LoadedModel, left: Sequence[LoadedModel]) -> Bytes | None:
        """By the GPU's readings; where several `left` together, by what each of them held."""
        before, after = self.debt.before.free, self.reading.free
        if before is None or after is None:
            return None
        if len(left) == 1:
            return max(0, after - before)
        held = sum(each.size_vram or 0 for each in left)
        return max(0, int((after - before) * (model.size_vram or 0) / held)) if held else None

    def why(self) -> str:
        parts = [f"{model.ref} is still listed" for model in self.listed]
        parts += [*self._unseen, *self.problems.values()]
        if not parts and self._samples:
            short = shortfall(self.debt, self._samples[-1].gpus)
            free = self._samples[-1].gpus.free
            if free is None and self.debt.before.free is not None:
                parts.append(f"GPU memory can't be read any more: {self._samples[-1].gpus.reason}")
            elif self._awaits is not None and free is not None and free < self._awaits:
                parts.append(f"{gib(free)} of GPU memory are free, {gib(self._awaits)} should be")
            elif short is not None:
                parts.append(f"no longer listed, but only {gib(short[0])} of {gib(short[1])} came free on the GPU")
            else:
                parts.append("free GPU memory doesn't come to rest")
        return "; ".join(dict.fromkeys(parts)) or "no server has answered"

    def _repaid(self, gpus: GpuReading) -> bool:
        return self._awaits is None or gpus.free is None or gpus.free >= self._awaits - self._tolerance
