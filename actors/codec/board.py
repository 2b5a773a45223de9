"""Which codec jobs are under way: a document each, from the order to the last fact."""

import hashlib

from actors.base import Origin
from actors.errors import Conflict
from actors.ports import Clock, Registry
from schemas.codec import ArtifactName, CodecJobId
from schemas.documents.codec import CodecDocument, CodecJobDocument
from schemas.events.base import Refusal
from schemas.events.codec import CodecJob, CodecJobStarted
from schemas.names import BucketName


def job_id(origin: Origin) -> CodecJobId:
    """The same for the same order, however often it is delivered."""
    return f"c{hashlib.sha256(origin.id.encode()).hexdigest()[:11]}"


class Board:
    def __init__(self, registry: Registry, clock: Clock) -> None:
        self._registry = registry
        self._clock = clock

    async def begin(
        self, started: CodecJobStarted, about: str, asked_by: str, bucket: BucketName | None = None
    ) -> bool:
        """From here on the job is under way, making an artifact in `bucket` if it makes one; False when it is already:
        the order came again."""
        document = CodecJobDocument(
            job=started.job,
            kind=started.kind,
            about=about,
            artifact=started.artifact,
            bucket=bucket,
            steps=started.steps,
            started=self._clock.now(),
            asked_by=asked_by,
        )
        try:
            await self._registry.save(started.job, document, expected=None)
        except Conflict:
            return False
        return True

    async def end(self, job: CodecJobId) -> None:
        await self._registry.delete(CodecJobDocument, job)

    async def find(self, job: CodecJobId) -> CodecJobDocument | None:
        found = await self._registry.load(CodecJobDocument, job)
        return found[0] if found else None

    async def all(self) -> list[CodecJob]:
        jobs = sorted((job for _, job, _ in await self._registry.all(CodecJobDocument)), key=lambda job: job.started)
        return [CodecJob(j.job, j.kind, j.about, j.artifact, j.steps, j.started, j.asked_by) for j in jobs]

    async def taken(self, artifact: ArtifactName, job: CodecJobId) -> Refusal | None:
        """Whether a name is another artifact's, or of one that another job is making."""
        found = await self._registry.load(CodecDocument, artifact)
        if found is not None and found[0].job != job:
            return Refusal("conflict", f"there is a codec artifact {artifact!r}", "take another name, or drop it first")
        for running in await self.all():
            if running.artifact == artifact and running.kind == "calibrate" and running.job != job:
                hint = f"wait for it, or cancel it: lakehouse codec cancel {running.job}"
                return Refusal("conflict", f"{artifact!r} is being calibrated by job {running.job}", hint)
        return None
