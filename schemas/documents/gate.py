"""The gate of a profile, and the rows of the table `gate_events`: what each training of an adapter gate gave."""

import msgspec

from schemas.documents.base import Document
from schemas.gate import GateExport, GateFiles, GateRun
from schemas.names import BucketName, ProfileName, Timestamp

MOST_EXPORTS = 20


class GateEvent(msgspec.Struct, frozen=True):
    """An adapter's mean weight over the samples of one training."""

    run: str
    adapter: str
    mean_weight: float  # NaN where the training diverged so far
    samples: int
    mode: str
    time: Timestamp
    profile: str = ""


class GateDocument(Document, frozen=True, kw_only=True, tag="gate"):
    """Registry name: the profile's."""

    profile: ProfileName
    bucket: BucketName = "primary"  # its home
    live: GateRun | None = None  # the newest that is of use
    files: GateFiles | None = None  # of `live`
    last: GateRun | None = None
    last_files: GateFiles | None = None  # of `last`
    exports: list[GateExport] = []  # newest first
