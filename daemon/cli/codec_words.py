"""How codecs, targets and figures are written on a command line and in tables."""

import os.path
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from daemon.cli.errors import WRONG_USE, CliError

FAMILIES = {
    "pq": "PQ", "rpq": "residual PQ", "vq": "VQ", "scalar": "int", "rotated": "rotated", "rabitq": "RaBitQ",
    "additive": "additive VQ", "gptq": "GPTQ", "bf16": "bf16", "f32": "f32",
}  # fmt: skip


def target_of(text: str) -> dict[str, Any]:
    """A path (made absolute), bucket://NAME/PREFIX, or DATASET.COLUMN[@INDEX]. What exists as a path is one."""
    if "/" in text or Path(text).expanduser().exists():
        return {"kind": "checkpoint", "path": place_of(text)}
    if match := re.fullmatch(r"([a-z0-9][a-z0-9_-]{0,62})\.([^@\s]+)(?:@([a-z0-9][a-z0-9_-]{0,62}))?", text):
        dataset, column, index = match.groups()
        return {"kind": "column", "dataset": dataset, "column": column, "index": index}
    raise CliError(
        f"{text!r} is no target.", "a path to safetensors, bucket://NAME/PREFIX, or DATASET.COLUMN", WRONG_USE
    )


def place_of(text: str) -> str:
    """bucket://NAME/KEY as it stands; a path absolute and without `..`, so that it has one name wherever it is named
    from."""
    return text.rstrip("/") if text.startswith("bucket://") else os.path.abspath(Path(text).expanduser())


def target_name(target: Mapping[str, Any]) -> str:
    """As the daemon describes it."""
    if target["kind"] == "checkpoint":
        return str(target["path"])
    return f"{target['dataset']}.{target['column']}" + (f"@{target['index']}" if target.get("index") else "")


def value_of(text: str) -> Any:
    """A value of an axis: JSON, or the word as it stands."""
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return text


def axes_of(given: Sequence[str]) -> dict[str, list[Any]]:
    """`bits=2,3,4` and the like. Values that are JSON may have commas: `residual={"depth": 1},null`."""
    axes: dict[str, list[Any]] = {}
    for text in given:
        name, equals, values = text.partition("=")
        if not equals or not values or not name.isidentifier():
            raise CliError(f"{text!r} is no axis.", "NAME=VALUE,VALUE, such as bits=2,3,4", WRONG_USE)
        listed = value_of(f"[{values}]")
        axes[name] = listed if isinstance(listed, list) else [value_of(value) for value in values.split(",")]
    return axes


def json_object(text: str, option: str) -> dict[str, Any]:
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise CliError(
            f"{option} is no JSON object: {error}.", """such as '{"family": "scalar", "bits": 8}'""", WRONG_USE
        ) from None


def short(params: Mapping[str, Any]) -> str:
    """A codec in a few words: `rotated 4 bits`, `int8 groups of 64`, `PQ 6×256`."""
    family = str(params["family"])
    words = [FAMILIES.get(family, family)]
    if bits := params.get("bits"):
        words[-1:] = [f"int{bits}"] if family == "scalar" else [words[-1], f"{bits} bits"]
    if params.get("group"):
        words.append(f"groups of {params['group']}")
    if family in ("pq", "rpq", "vq", "additive"):
        runs = params.get("subspaces") or f"d{params.get('dsub')}"
        words.append(f"{runs}×{params.get('centroids', 256)}")
    if residual := params.get("residual"):
        words.append(f"+ {residual['depth']}×{residual.get('centroids', 256)}")
    rotation = params.get("rotation", "identity")
    if rotation != "identity" and family not in ("rotated", "rabitq"):
        words.append(str(rotation))
    if params.get("clip", "absmax") != "absmax":
        words.append("mse clip")
    if params.get("zero_point"):
        words.append("zero point")
    lanes = params.get("lane_width", "f32x16")
    if lanes != "f32x16":
        words.append(str(lanes))
    return " ".join(words)


def trial_params(trial: Mapping[str, Any]) -> dict[str, Any]:
    """A codec as a row of `codec_trials` has it."""
    depth = trial.get("residual_depth")
    residual = {"depth": depth, "centroids": trial.get("residual_centroids")} if depth else None
    return {**trial, "group": trial.get("group_size"), "residual": residual}


def bits(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def counted(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"
