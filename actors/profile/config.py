"""[slot] of lakehouse.toml."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta


class SlotConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    gpus: Literal["auto", "nvml", "nvidia-smi", "none"] = "auto"
    """How GPU memory is read: NVML, else nvidia-smi; or only one of them; `none` where the model servers' GPUs are
    those of another machine."""
    reconcile_s: Annotated[float, Meta(gt=0)] = 5.0
    """How often the slot is compared with what the model servers report."""
    unload_deadline_s: Annotated[float, Meta(gt=0)] = 15.0
    """A model that is still listed, or whose memory hasn't settled, after so long leaves the slot `unknown`."""
    load_deadline_s: Annotated[float, Meta(gt=0)] = 300.0
    """How long a model may take to load."""
    settle_tolerance_mb: Annotated[int, Meta(ge=0)] = 32
    """Free GPU memory has settled when two readings differ by no more than this."""
    headroom_mb: Annotated[int, Meta(ge=0)] = 256
    """GPU memory that must stay free beside a model that is loaded."""
    allow_partial: bool = False
    """Accept a model that is partly or wholly on the CPU (a machine without a GPU needs it)."""
