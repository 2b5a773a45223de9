"""The table `gate_events`: what each training of an adapter gate gave."""

import msgspec

from schemas.names import Timestamp


class GateEvent(msgspec.Struct, frozen=True):
    """An adapter's mean weight over the samples of one training."""

    run: str
    adapter: str
    mean_weight: float
    samples: int
    mode: str
    time: Timestamp
