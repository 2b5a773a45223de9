"""What both shells do with a gate's document: find it with its profile, and change it though the other may, too."""

from collections.abc import Callable

from actors.errors import Conflict
from actors.ports import Buckets, Registry
from schemas.documents.gate import GateDocument
from schemas.documents.profile import ProfileDocument
from schemas.events.base import Refusal, RefusalStatus
from schemas.names import BucketName, ProfileName
from schemas.profile import ModelProfile


class NoGate(Exception):
    """What was asked for can't be had; it is refused with this reason and hint."""

    def __init__(self, reason: str, hint: str = "", status: RefusalStatus = "invalid") -> None:
        super().__init__(reason)
        self.refusal = Refusal(status, reason, hint)


def bucket_of(profile: ModelProfile) -> BucketName:
    return profile.bucket or "primary"


async def profile_of(registry: Registry, name: ProfileName) -> ModelProfile:
    """Raises NoGate."""
    found = await registry.load(ProfileDocument, name)
    if found is None:
        raise NoGate(f"there is no profile {name!r}", "lakehouse profile list", "not_found")
    return found[0].profile


async def gate_of(registry: Registry, name: ProfileName) -> GateDocument | None:
    found = await registry.load(GateDocument, name)
    return found[0] if found else None


async def change(
    registry: Registry, profile: ModelProfile, to: Callable[[GateDocument], GateDocument]
) -> tuple[GateDocument, GateDocument]:
    """The document before and after `to`, which is applied again where another was faster; made where there is none.
    Raises NoGate for a profile that was deleted meanwhile: one made later under its name would have its gate."""
    while True:
        found = await registry.load(GateDocument, profile.id)
        if found is None:
            await profile_of(registry, profile.id)
        before, revision = found or (GateDocument(profile=profile.id, bucket=bucket_of(profile)), None)
        after = to(before)
        if after == before:
            return before, before
        try:
            await registry.save(profile.id, after, expected=revision, bucket=after.bucket)
        except Conflict:
            continue
        return before, after


async def home(registry: Registry, buckets: Buckets, profile: ModelProfile) -> BucketName:
    """Where the gate lies: the bucket that the profile had at its first training, made where there is none, as at
    activation."""
    document = await gate_of(registry, profile.id)
    bucket = document.bucket if document else bucket_of(profile)
    await buckets.provision(bucket)
    return bucket
