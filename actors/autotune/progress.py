"""What is heard of running trials: signals, not kept over a restart. For the status, and to know
which trial is lost."""

import asyncio
import contextlib
from contextlib import aclosing

from actors.ports import Bus, Clock
from schemas.documents.agent import Campaign
from schemas.events.autotune import RunningTrial
from schemas.events.base import Progress, subject_of
from schemas.names import Timestamp, TrialId


class TrialProgress:
    """The newest progress of each trial. Listens from `start` to `stop`."""

    def __init__(self, bus: Bus, clock: Clock) -> None:
        self._bus = bus
        self._clock = clock
        self._newest: dict[TrialId, tuple[Timestamp, Progress]] = {}
        self._ears: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._ears = asyncio.create_task(self._hear())

    async def stop(self) -> None:
        if self._ears is not None:
            self._ears.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._ears

    def forget(self, trial: TrialId) -> None:
        self._newest.pop(trial, None)

    def heard_of(self, campaign: Campaign) -> Timestamp:
        """When the campaign's running trial was last heard of, or was ordered."""
        heard = self._newest.get(campaign.running or "")
        return max(campaign.running_since or 0.0, heard[0] if heard else 0.0)

    def shown(self, campaign: Campaign) -> RunningTrial:
        """Raises ValueError for a campaign that runs no trial."""
        if campaign.running is None or campaign.running_proposal is None or campaign.running_since is None:
            raise ValueError(f"campaign {campaign.campaign} runs no trial")
        _, progress = self._newest.get(campaign.running, (0.0, None))
        return RunningTrial(
            trial=campaign.running,
            campaign=campaign.campaign,
            index=campaign.index,
            proposal=campaign.running_proposal,
            since=campaign.running_since,
            phase=progress.phase if progress else "ordered",
            done=progress.done if progress else 0,
            total=progress.total if progress else None,
        )

    async def _hear(self) -> None:
        async with aclosing(self._bus.listen(subject_of(Progress))) as envelopes:  # type: ignore[type-var]
            async for envelope in envelopes:
                if isinstance(envelope.message, Progress) and envelope.message.job.startswith("t-"):
                    self._newest[envelope.message.job] = (self._clock.now(), envelope.message)
