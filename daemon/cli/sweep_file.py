"""A sweep written down: a YAML file with the fields of an order but its target, as those in deploy/codec."""

from pathlib import Path
from typing import Any

import msgspec

from schemas.codec import CodecTarget
from schemas.events.codec import SweepCodec


class SweepFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    about: str = ""  # what it is to show
    tensors: list[str] = []
    base: dict[str, Any] = {}
    axes: dict[str, list[Any]] = {}
    points: list[dict[str, Any]] = []
    controls: bool = False

    def order(self, target: CodecTarget, activations: str | None = None, asked_by: str = "cli") -> SweepCodec:
        fields = {name: getattr(self, name) for name in ("tensors", "base", "axes", "points", "controls")}
        return SweepCodec(target, **fields, activations=activations, asked_by=asked_by)


def read_sweep_file(path: Path) -> SweepFile:
    """Raises ValueError that names the file and the key; OSError. Whether what `base`, `axes` and `points` name are
    parameters is for the daemon to say."""
    try:
        content = msgspec.yaml.decode(path.read_bytes())
        if isinstance(content, dict) and (unknown := set(content) - set(SweepFile.__struct_fields__)):
            keys, allowed = ", ".join(sorted(map(str, unknown))), ", ".join(SweepFile.__struct_fields__)
            raise ValueError(f"{path}: unknown key {keys}; there are {allowed}")
        return msgspec.convert(content, SweepFile)
    except msgspec.DecodeError as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from None
