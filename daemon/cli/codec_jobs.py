"""Codec jobs that are started and watched: calibrate, sweep, probe, certify. They go on when you leave."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from daemon.cli import codec_watch
from daemon.cli.client import Client
from daemon.cli.codec_words import axes_of, json_object, place_of, target_of
from daemon.cli.connection import Connection
from daemon.cli.errors import WRONG_USE, CliError
from daemon.cli.output import Json, print_json_line

Family = Literal["pq", "rpq", "vq", "scalar", "rotated", "rabitq", "additive", "gptq", "bf16", "f32"]
Count = Annotated[int | None, Parameter(validator=Number(gte=1))]

LAST = {"codec.calibrated", "codec.sweep_finished", "codec.certified", "codec.self_test_failed", "codec.job_failed"}


def calibrate(
    target: str,
    /,
    *,
    family: Family = "rotated",
    bits: Annotated[int | None, Parameter(validator=Number(gte=1, lte=8))] = None,
    group: Count = None,
    dsub: Count = None,
    subspaces: Count = None,
    centroids: Count = None,
    residual_depth: Annotated[int | None, Parameter(validator=Number(gte=1, lte=3))] = None,
    rotation: Literal["identity", "hadamard", "opq"] | None = None,
    clip: Literal["absmax", "mse"] | None = None,
    zero_point: Annotated[bool, Parameter(negative="")] = False,
    calibration_rows: Count = None,
    seed: Annotated[int | None, Parameter(validator=Number(gte=0))] = None,
    params: str | None = None,
    artifact: str | None = None,
    override: Annotated[list[str] | None, Parameter(negative="", consume_multiple=True)] = None,
    activations: str | None = None,
    bucket: str = "primary",
    json: Json = False,
    to: Connection = Connection(),
) -> int:
    """Make an artifact: quantise what should be, copy the rest, measure every tensor.

    Parameters
    ----------
    target
        safetensors (a file, an index or a folder), bucket://NAME/PREFIX, or DATASET.COLUMN[@INDEX] for vectors.
    family
        How: rotated (with 4 bits, unless you say otherwise), scalar, vq, additive, pq, rpq, rabitq, gptq, bf16, f32.
    bits
        Of a code: scalar, rotated, gptq.
    group
        Values that share a scale; default a row.
    dsub
        Values that a code stands for: vq, additive, pq, rpq.
    subspaces
        Codes of a row, instead of dsub: pq, rpq.
    centroids
        Of a codebook; default 256.
    residual_depth
        Further stages: rpq, additive.
    rotation
        Before quantising; rotated and rabitq take hadamard by themselves.
    clip
        mse: the part of the range whose squared error is least.
    zero_point
        A grid that isn't symmetric, for 8 bits more a group.
    calibration_rows
        Rows that are learnt from; the others are measured. Default 4,096, at most half of a tensor's.
    seed
        Of rotations and of which rows are learnt from.
    params
        All parameters as a JSON object; the options above change what it says.
    artifact
        Its name; default the job's.
    override
        Tensors that go another way: 'GLOB=passthrough', 'GLOB=quantise', 'GLOB=skip'.
    activations
        gptq: a text to run the model on (needs the `cert` extra), or safetensors with (m, columns) inputs under the
        tensors' names.
    bucket
        Where the artifact lies.
    json
        Print every message as a line of JSON.
    """
    codec: dict[str, Any] = json_object(params, "--params") if params else {"family": family}
    given = {
        "bits": bits, "group": group, "dsub": dsub, "subspaces": subspaces, "centroids": centroids,
        "rotation": rotation, "clip": clip, "calibration_rows": calibration_rows, "seed": seed,
    }  # fmt: skip
    codec |= {name: value for name, value in given.items() if value is not None}
    if zero_point:
        codec["zero_point"] = True
    if residual_depth is not None:
        codec["residual"] = {"depth": residual_depth, **({"centroids": centroids} if centroids else {})}
    if codec.get("family") in ("rotated", "rabitq"):
        codec.setdefault("rotation", "hadamard")
    if codec.get("family") == "rotated":
        codec.setdefault("bits", 4)
    body = {
        "target": target_of(target),
        "params": codec,
        "artifact": artifact,
        "overrides": [_override(text) for text in override or []],
        "activations": place_of(activations) if activations else None,
        "bucket": bucket,
        "asked_by": "cli",
    }
    last = _watched(to, "/codec/calibrate", body, json)
    return 0 if last["type"] == "codec.calibrated" else 1


def sweep(
    target: str,
    file: Path | None = None,
    /,
    *,
    axis: Annotated[list[str] | None, Parameter(negative="", consume_multiple=True)] = None,
    tensors: Annotated[list[str] | None, Parameter(negative="", consume_multiple=True)] = None,
    controls: Annotated[bool, Parameter(negative="")] = False,
    activations: str | None = None,
    json: Json = False,
    to: Connection = Connection(),
) -> int:
    """Measure many codecs on a target's tensors; rows go to `codec_trials`, `lakehouse codec frontier` reads them.

    Parameters
    ----------
    target
        As of calibrate.
    file
        A sweep as YAML, such as those in deploy/codec.
    axis
        Values of a parameter: family=scalar bits=2,3,4,8 group=null,64. Every combination is a point.
    tensors
        Globs over names; default all that calibration would quantise.
    controls
        Measure also what calibration refuses as overfitted, marked as such.
    activations
        As of calibrate.
    json
        Print every message as a line of JSON.
    """
    if (file is None) == (axis is None):
        raise CliError("A sweep is a file or axes.", "FILE.yaml, or --axis family=rotated bits=3,4,5", WRONG_USE)
    body: dict[str, Any] = {"target": target_of(target), "asked_by": "cli"}
    if file is not None:
        body |= _sweep_file(file)
    else:
        body["axes"] = axes_of(axis or [])
        if all(family in ("rotated", "rabitq") for family in body["axes"].get("family", [None])):
            body["axes"].setdefault("rotation", ["hadamard"])
    if tensors:
        body["tensors"] = tensors
    if controls:
        body["controls"] = True
    if activations:
        body["activations"] = place_of(activations)
    last = _watched(to, "/codec/sweep", body, json)
    return 0 if last["type"] == "codec.sweep_finished" else 1


def probe(
    target: str,
    /,
    *,
    tensor: str | None = None,
    rows: Annotated[list[int] | None, Parameter(negative="", consume_multiple=True, validator=Number(gte=3))] = None,
    params: str | None = None,
    json: Json = False,
    to: Connection = Connection(),
) -> int:
    """Show what a codec knows by heart: calibrated on more and more rows, measured on those and on unseen ones.

    Parameters
    ----------
    target
        As of calibrate.
    tensor
        Default the largest that calibration would quantise.
    rows
        Numbers of calibration rows; default 128 256 512 1024 2048 4096.
    params
        The codec as a JSON object; default PQ 6×256.
    json
        Print every message as a line of JSON.
    """
    body: dict[str, Any] = {"target": target_of(target), "asked_by": "cli"}
    optional = {"tensor": tensor, "rows": rows, "params": json_object(params, "--params") if params else None}
    body |= {name: value for name, value in optional.items() if value is not None}
    last = _watched(to, "/codec/rowcount-probe", body, json)
    return 0 if last["type"] == "codec.sweep_finished" else 1


Share = Annotated[float | None, Parameter(validator=Number(gte=0, lte=1))]


def certify(
    artifact: str,
    /,
    *,
    text: str | None = None,
    top1: Share = None,
    top5: Share = None,
    cosine: Share = None,
    neighbours: Share = None,
    recall: Share = None,
    k: Annotated[int | None, Parameter(validator=Number(gte=1, lte=100))] = None,
    oversample: Annotated[int | None, Parameter(validator=Number(gte=1, lte=100))] = None,
    prompts: Annotated[int, Parameter(validator=Number(gte=2))] = 200,
    tokens: Annotated[int, Parameter(validator=Number(gte=8, lte=8192))] = 64,
    seed: Annotated[int, Parameter(validator=Number(gte=0))] = 42,
    json: Json = False,
    to: Connection = Connection(),
) -> int:
    """Measure what an artifact does to its target's function. Exit code 1 when the gate isn't passed.

    Parameters
    ----------
    text
        Of a model: text that it wasn't trained on, prompts apart by blank lines; a file, or bucket://NAME/KEY.
    top1
        A language model's gate: agreement of the most likely token; default from [codec].
    top5
        The reference's most likely token is among the artifact's five.
    cosine
        An encoder's gate: mean cosine of embeddings.
    neighbours
        Share of the 10 nearest texts that stay so.
    recall
        A column's gate: recall@k of search over codes with exact rescoring.
    k
        Hits that are compared; default 10.
    oversample
        Candidates per hit that are rescored.
    prompts
        Texts or queries at most.
    tokens
        Of a text at most.
    seed
        Of what is drawn.
    json
        Print every message as a line of JSON.
    """
    body = {
        "artifact": artifact,
        "text": place_of(text) if text else None,
        "gate": _gate(
            top1=top1, top5=top5, cosine=cosine, neighbours=neighbours, recall=recall, k=k, oversample=oversample
        ),
        "prompts": prompts,
        "tokens": tokens,
        "seed": seed,
        "asked_by": "cli",
    }
    last = _watched(to, "/codec/certify", body, json)
    return 0 if last["type"] == "codec.certified" and last["certificate"]["passed"] else 1


FUNCTIONS = {
    "causal_lm": ("top1", "top5"),
    "encoder": ("cosine", "neighbours"),
    "column": ("recall", "k", "oversample"),
}


def _gate(**given: float | None) -> dict[str, Any] | None:
    """The gate that the options make; None without any."""
    named = {name: value for name, value in given.items() if value is not None}
    if not named:
        return None
    for function, fields in FUNCTIONS.items():
        if set(named) <= set(fields):
            return {"function": function, **named}
    options = ", ".join(f"--{name}" for name in named)
    kinds = "; ".join(", ".join(f"--{name}" for name in fields) for fields in FUNCTIONS.values())
    raise CliError(f"{options} are of different gates.", kinds, WRONG_USE)


def _override(text: str) -> dict[str, str]:
    pattern, equals, kind = text.rpartition("=")
    if not equals or not pattern or kind not in ("passthrough", "quantise", "skip"):
        raise CliError(f"{text!r} is no override.", "'GLOB=passthrough', 'GLOB=quantise' or 'GLOB=skip'", WRONG_USE)
    return {"pattern": pattern, "kind": kind}


def _sweep_file(path: Path) -> dict[str, Any]:
    from daemon.cli.sweep_file import SweepFile, read_sweep_file

    try:
        found = read_sweep_file(path)
    except OSError as error:
        raise CliError(f"{path} can't be read: {error.strerror}.", code=WRONG_USE) from None
    except ValueError as error:
        raise CliError(f"{error}.", "deploy/codec has examples", WRONG_USE) from None
    return {name: getattr(found, name) for name in SweepFile.__struct_fields__ if name != "about"}


def _watched(to: Connection, path: str, body: dict[str, Any], json: bool) -> dict[str, Any]:
    """The job's last fact. Raises CliError when the stream ended before it."""
    lines: Iterator[dict[str, Any]] = Client(to).lines(path, {k: v for k, v in body.items() if v is not None})
    last: dict[str, Any] | None = None
    if json:
        for last in lines:
            print_json_line(last)
    else:
        last = codec_watch.draw(lines)
    if last is None or last.get("type") not in LAST:
        raise CliError("The stream ended before the job did.", "it goes on: lakehouse codec jobs")
    return last
