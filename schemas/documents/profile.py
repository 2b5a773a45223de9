"""Model profiles, and the slot that one of them holds."""

import msgspec

from schemas.documents.base import Document
from schemas.events.profile import ModelRef, SlotState
from schemas.names import Bytes, MessageId, ModelName, ProfileName, Seconds, ServerName, Timestamp
from schemas.profile import ModelProfile


class ProfileDocument(Document, frozen=True, kw_only=True, tag="profile"):
    """Registry name: the profile's id."""

    profile: ModelProfile
    created: Timestamp
    changed: Timestamp


class ModelMeasure(msgspec.Struct, frozen=True):
    """What a model was seen to need."""

    server: ServerName
    model: ModelName
    size: Bytes | None  # in memory, as the server reported it
    load_s: Seconds


class SlotDocument(Document, frozen=True, kw_only=True, tag="slot"):
    """What the slot was last known to be; the model servers have the last word. Registry name: `gpu`."""

    state: SlotState = "empty"
    profile: ProfileName | None = None  # whose models are loaded, loading, unloading, or in doubt
    target: ProfileName | None = None  # what it unloads for
    models: list[ModelRef] = []  # what `profile` needs in memory
    since: Timestamp = 0.0
    reason: str = ""  # why it is in this state, where that isn't plain
    done: list[MessageId] = []  # the last commands carried out from the stream, newest first
    awaits_free: Bytes | None = None  # GPU memory to be free before what was unloaded counts as gone
    measured: list[ModelMeasure] = []  # the last figures of each model, newest first
