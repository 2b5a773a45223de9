"""[gate] of lakehouse.toml."""

import msgspec

SETTING = "gate.allowed_roots"


class GateConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    allowed_roots: list[str] = []
    """Folders with adapters, base checkpoints and texts that may be read by path, and exports written to."""
