"""The gate lab (work): trains gates and makes exports, in the worker process. What a refusal says, the steps say."""

from collections.abc import Sequence
from pathlib import Path
from typing import Never

from actors.base import Actor, Origin, handles
from actors.errors import Unfit
from actors.gate import core
from actors.gate.base_content import BaseContents
from actors.gate.config import GateConfig
from actors.gate.core_lora import Unmergeable
from actors.gate.core_modelfile import Unquotable
from actors.gate.embedding import PromptEmbedders
from actors.gate.export_step import Exports
from actors.gate.keeping import NoGate
from actors.gate.train_step import Training
from actors.gate.work import Work
from actors.gate_ports import GateJournal
from actors.ports import Buckets, Bus, Clock, Compute, Registry, Tables
from schemas.events.base import Refusal
from schemas.events.gate import ExportGate, GateExported, GateTrained, TrainGate

REFUSED = (core.NoMix, Unmergeable, Unquotable, Unfit)
"""What a job or a decision raises whose words are the reason of a refusal."""


class GateLab(Actor):
    role = "work"

    def __init__(
        self,
        registry: Registry,
        tables: Tables,
        buckets: Buckets,
        embedders: PromptEmbedders,
        journal: GateJournal,
        compute: Compute,
        bus: Bus,
        clock: Clock,
        config: GateConfig,
        cache: Path,
    ) -> None:
        self._work = Work(compute, bus, cache)
        bases = BaseContents(self._work, config.allowed_roots)
        self._training = Training(registry, tables, buckets, embedders, journal, self._work, bases, bus, clock, config)
        self._exports = Exports(registry, buckets, embedders, journal, self._work, bases, clock, config)

    async def start(self) -> Sequence[Never]:
        self._work.sweep_out()
        return ()

    @handles
    async def on_train(self, command: TrainGate, origin: Origin) -> Sequence[GateTrained | Refusal]:
        try:
            return [await self._training.train(command, origin)]
        except NoGate as error:
            return [error.refusal]
        except REFUSED as error:
            return [Refusal("invalid", str(error))]

    @handles
    async def on_export(self, command: ExportGate, origin: Origin) -> Sequence[GateExported | Refusal]:
        try:
            return [await self._exports.export(command, origin)]
        except NoGate as error:
            return [error.refusal]
        except REFUSED as error:
            return [Refusal("invalid", str(error))]
