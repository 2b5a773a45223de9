"""A step of a sweep or a probe: one group of points measured, its rows written to the codec trials, its facts told."""

from actors.codec.core_trial import PointMeasured, trial
from actors.codec.steps.work import Work
from actors.codec.sweep import GroupOrder, measure_group
from actors.codec.targets import Targets
from actors.codec.versions import versions
from actors.codec_ports import CodecJournal
from actors.ports import Clock
from schemas.codec import describe
from schemas.events.codec import MeasurePoints, SweepFinished, SweepPointMeasured, SweepPointSkipped

Said = SweepPointMeasured | SweepPointSkipped | MeasurePoints | SweepFinished


class Sweeping:
    """A group that comes again is measured again and written once."""

    def __init__(self, targets: Targets, journal: CodecJournal, work: Work, clock: Clock, host: str) -> None:
        self._targets = targets
        self._journal = journal
        self._work = work
        self._clock = clock
        self._host = host

    async def step(self, command: MeasurePoints) -> list[Said]:
        """Raises NoTarget, CodecError and what the job raises."""
        order, target = command.order, describe(command.order.target)
        activations = await self._targets.path(order.activations, "file") if order.activations else None
        async with self._targets.held(order.target) as local:
            asked = GroupOrder(local.path, order, command.kind, command.group, activations)
            found = await self._work.run(command.job, target, measure_group, asked)
        now, said = self._clock.now(), list[Said]()
        for item in found:
            if not isinstance(item, PointMeasured):
                said.append(SweepPointSkipped(command.job, item.tensor, item.params, item.reason))
                continue
            row = trial(
                item,
                job=command.job,
                group=command.group,
                target=target,
                versions=versions(),
                asked_by=order.asked_by,
                host=self._host,
                time=now,
            )
            said.append(SweepPointMeasured(command.job, row))
        await self._journal.append([fact.trial for fact in said if isinstance(fact, SweepPointMeasured)])
        following = command.group + 1
        if following < command.groups:
            return [*said, MeasurePoints(command.job, order, command.kind, following, command.groups)]
        return [*said, SweepFinished(command.job, command.kind, order.asked_by)]
