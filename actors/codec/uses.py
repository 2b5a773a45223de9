"""Which artifact an index or a profile uses: graduated with a certificate for exactly its hashes, withdrawn again.

Two documents say so: the user's (`index_codec`, `profile_codec`), by which it is served, and the artifact's own list,
which keeps it from being dropped."""

from collections.abc import Callable
from math import inf
from typing import Any

from actors.codec import core_desk
from actors.codec.store import ArtifactStore
from actors.errors import Conflict
from actors.ports import Buckets, Clock, Registry
from actors.refusals import no_index
from schemas.codec import ArtifactName
from schemas.documents.codec import CodecDocument, IndexCodecDocument, ProfileCodecDocument
from schemas.documents.index import IndexDocument
from schemas.documents.profile import ProfileDocument
from schemas.events.base import Refusal
from schemas.events.codec import CodecDropped, CodecGraduated, CodecUse, CodecWithdrawn, DropCodec, GraduateCodec
from schemas.names import IndexName, ProfileName, Timestamp

ATTEMPTS = 10
"""At changing a document that the calibrator changes too."""


def unknown(artifact: ArtifactName) -> Refusal:
    return Refusal("not_found", f"there is no codec artifact {artifact!r}", "lakehouse codec list shows them")


class Uses:
    def __init__(self, registry: Registry, buckets: Buckets, clock: Clock) -> None:
        self._registry = registry
        self._buckets = buckets
        self._clock = clock

    async def graduate(self, command: GraduateCodec) -> CodecGraduated | Refusal:
        found = await self._registry.load(CodecDocument, command.artifact)
        if found is None:
            return unknown(command.artifact)
        document = found[0]
        index = await self._registry.load(IndexDocument, command.index) if command.index is not None else None
        if command.index is not None and index is None:
            return no_index(command.index)
        if command.profile is not None and await self._registry.load(ProfileDocument, command.profile) is None:
            return Refusal("not_found", f"there is no profile {command.profile!r}", "lakehouse profile list")
        if objection := core_desk.misplaced(command, document, index[0] if index else None):
            return Refusal("invalid", objection)
        try:
            _, sha256 = await ArtifactStore(self._buckets, document.bucket, document.artifact).manifest()
        except FileNotFoundError:
            return Refusal("conflict", f"the files of {command.artifact!r} are gone", "calibrate again")
        if objection := core_desk.not_certified(document, sha256):
            return Refusal("conflict", objection, f"lakehouse codec certify {command.artifact}")
        now = self._clock.now()
        before = await self._user(command.index, command.profile)
        if before is not None and before[0].artifact != command.artifact:
            held = before[0].artifact
            await self._change(held, lambda there: core_desk.unused(there, command.index, command.profile))
        use = CodecUse(command.index, command.profile, now, command.asked_by)
        await self._change(command.artifact, lambda there: core_desk.used(there, use))
        place: dict[str, Any] = {
            "artifact": document.artifact,
            "bucket": document.bucket,
            "manifest_sha256": sha256,
            "since": now,
        }
        expected = before[1] if before else None
        if command.index is not None:
            gate = core_desk.column_gate(document)
            candidates = gate.k * gate.oversample
            user = IndexCodecDocument(index=command.index, oversample=gate.oversample, candidates=candidates, **place)
            await self._registry.save(command.index, user, expected=expected)
        elif command.profile is not None:
            profile = ProfileCodecDocument(profile=command.profile, **place)
            await self._registry.save(command.profile, profile, expected=expected)
        return CodecGraduated(
            document.artifact, document.bucket, sha256, command.index, command.profile, command.asked_by
        )

    async def withdraw(
        self, index: IndexName | None, profile: ProfileName | None, reason: str, before: Timestamp = inf
    ) -> CodecWithdrawn | None:
        """None: nothing was in use there, or only since `before`: by what was made anew under the name."""
        found = await self._user(index, profile)
        if found is None or found[0].since > before:
            return None
        user, revision = found
        await self._change(user.artifact, lambda there: core_desk.unused(there, index, profile))
        await self._registry.delete(type(user), str(index or profile), expected=revision)
        return CodecWithdrawn(user.artifact, index, profile, reason)

    async def drop(self, command: DropCodec) -> CodecDropped | Refusal:
        found = await self._registry.load(CodecDocument, command.artifact)
        if found is None:
            return unknown(command.artifact)
        document, revision = found
        if document.uses:
            where = core_desk.users(document.uses)
            return Refusal("conflict", f"{command.artifact!r} is in use by {where}", "withdraw it there first")
        await self._registry.delete(CodecDocument, command.artifact, expected=revision)
        await ArtifactStore(self._buckets, document.bucket, command.artifact).remove()
        return CodecDropped(command.artifact)

    async def _user(
        self, index: IndexName | None, profile: ProfileName | None
    ) -> tuple[IndexCodecDocument | ProfileCodecDocument, int] | None:
        if index is not None:
            return await self._registry.load(IndexCodecDocument, index)
        return await self._registry.load(ProfileCodecDocument, str(profile))

    async def _change(self, artifact: ArtifactName, change: Callable[[CodecDocument], CodecDocument]) -> None:
        """What the calibrator writes at the same time (a certificate) stays. Raises Conflict."""
        for _ in range(ATTEMPTS):
            found = await self._registry.load(CodecDocument, artifact)
            if found is None:
                return
            try:
                await self._registry.save(artifact, change(found[0]), expected=found[1])
                return
            except Conflict:
                continue
        raise Conflict(f"codec {artifact!r} changes all the time")
