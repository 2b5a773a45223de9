"""What was measured and made of codecs: the frontier, artifacts, what uses them, jobs under way."""

import os.path
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from daemon.cli.client import Client, segment
from daemon.cli.codec_watch import print_certificate
from daemon.cli.codec_words import bits, counted, figure, short, target_name, target_of
from daemon.cli.connection import Connection
from daemon.cli.errors import WRONG_USE, CliError
from daemon.cli.output import Json, console, moment, print_facts, print_json, print_table, size

Artifact = Annotated[str, Parameter(help="The artifact.")]
Index = Annotated[str | None, Parameter(help="An index.")]
Profile = Annotated[str | None, Parameter(help="A profile.")]
Measure = Literal["icc_3_1", "icc_1_1", "relative_l2", "row_cosine", "norm_error"]


def frontier(
    target: str | None = None,
    /,
    *,
    measure: Measure = "icc_3_1",
    tensor: str | None = None,
    job: str | None = None,
    all_points: Annotated[bool, Parameter(name="--points", negative="")] = False,
    plot: Path | None = None,
    json: Json = False,
    to: Connection = Connection(),
) -> None:
    """Show which codecs nothing beats: bits per weight against a measure, on rows that they haven't seen.

    Parameters
    ----------
    target
        As of calibrate; default all that was swept.
    measure
        What counts.
    tensor
        Only its rows.
    job
        Only the rows of one sweep.
    all_points
        Also those that something beats.
    plot
        A picture, as PNG or SVG by its name.
    """
    if plot is not None and plot.suffix.lower() not in (".png", ".svg"):
        raise CliError(f"{plot} is neither PNG nor SVG.", "--plot frontier.png", WRONG_USE)
    name = target_name(target_of(target)) if target else None
    answer = Client(to).get("/codec/frontier", measure=measure, target=name, tensor=tensor, job=job)
    if plot is not None:
        from daemon.cli.frontier_plot import draw

        if not answer["points"]:
            raise CliError("There is nothing to draw: no codec was measured there.", "lakehouse codec sweep")
        try:
            draw(answer, plot)
        except OSError as error:
            raise CliError(f"{plot} can't be written: {error.strerror}.", code=WRONG_USE) from None
    if json:
        print_json(answer)
        return
    shown = [point for point in answer["points"] if point["frontier"] or all_points]
    print_table(
        ["", "codec", "bits ", f"{measure} ", "worst tensor ", "tensors ", ""],
        (
            (
                "●" if point["frontier"] else "",
                short(point["params"]),
                bits(point["bits_per_weight"]),
                figure(point["value"]),
                figure(point["worst"]),
                point["tensors"],
                "memorised" if point["memorised"] else "",
            )
            for point in shown
        ),
        empty="No codec was measured there yet: lakehouse codec sweep TARGET deploy/codec/best.yaml",
    )
    if hidden := len(answer["points"]) - len(shown):
        console.print(f"[dim]{hidden} more are beaten in both, or were measured on less: --points shows them[/dim]")
    if plot is not None:
        console.print(f"drawn to {plot}", markup=False)


def graduate(
    artifact: Artifact,
    /,
    *,
    index: Index = None,
    profile: Profile = None,
    json: Json = False,
    to: Connection = Connection(),
) -> None:
    """Put a certified artifact to use: an index is then searched by its codes, a profile's model served from it."""
    _one_of(index, profile)
    body = {"artifact": artifact, "index": index, "profile": profile, "asked_by": "cli"}
    answer = Client(to).post("/codec/graduate", body)
    where = f"index {index}" if index else f"profile {profile}"
    print_json(answer) if json else console.print(f"{artifact} serves {where}", markup=False)


def withdraw(
    *, index: Index = None, profile: Profile = None, json: Json = False, to: Connection = Connection()
) -> None:
    """Take a codec out of use: an index goes back to its graph."""
    _one_of(index, profile)
    answer = Client(to).post("/codec/withdraw", {"index": index, "profile": profile, "asked_by": "cli"})
    where = f"index {index}" if index else f"profile {profile}"
    print_json(answer) if json else console.print(f"{answer['artifact']} no longer serves {where}", markup=False)


def list_artifacts(*, json: Json = False, to: Connection = Connection()) -> None:
    """List artifacts."""
    answer = Client(to).get("/codec/artifacts")
    if json:
        print_json(answer)
        return
    print_table(
        ["artifact", "of", "codec", "bits ", "tensors ", "certificate", "used by", "made"],
        (
            (
                one["artifact"],
                target_name(one["target"]),
                short(one["params"]),
                bits(one["bits_per_weight"]),
                f"{one['quantised']} of {one['tensors']}",
                _certified(one),
                _users(one),
                moment(one["created"]),
            )
            for one in answer["codecs"]
        ),
        empty="No artifacts yet: lakehouse codec calibrate TARGET",
    )


def show(
    artifact: Artifact,
    /,
    *,
    tensors: Annotated[bool, Parameter(negative="", help="What was done to every tensor, and why.")] = False,
    json: Json = False,
    to: Connection = Connection(),
) -> None:
    """Show an artifact: its codec, its certificate, what uses it."""
    client = Client(to)
    answer = client.get(f"/codec/artifacts/{segment(artifact)}")
    manifest = client.get(f"/codec/artifacts/{segment(artifact)}/manifest")["manifest"] if tensors else None
    if json:
        print_json(manifest if manifest is not None else answer)
        return
    print_facts(
        {
            "artifact": answer["artifact"],
            "of": target_name(answer["target"]),
            "codec": short(answer["params"]),
            "bits a weight": f"{bits(answer['bits_per_weight'])}, over all {bits(answer['total_bits_per_weight'])}",
            "tensors": f"{answer['quantised']} of {answer['tensors']} quantised, {answer['problems']} unusable",
            "bucket": answer["bucket"],
            "manifest": answer["manifest_sha256"],
            "made": moment(answer["created"]),
            "used by": _users(answer),
        }
    )
    if answer.get("certificate"):
        print_certificate(answer["certificate"])
    if manifest is not None:
        _print_tensors(manifest["tensors"])


def _print_tensors(rows: list[dict[str, Any]]) -> None:
    print_table(
        ["tensor", "shape", "type", "route", "bits ", "ICC unseen ", "why"],
        (
            (
                row["name"],
                "×".join(map(str, row["shape"])),
                row["dtype"],
                row["route"],
                bits(row.get("bits_per_weight")),
                figure(min((one["held_out"]["icc_3_1"] for one in row.get("measured", [])), default=None)),
                row.get("problem") or row["reason"],
            )
            for row in rows
        ),
        empty="No tensors.",
    )


def decode(artifact: Artifact, folder: Path, /, *, json: Json = False, to: Connection = Connection()) -> None:
    """Write the checkpoint that an artifact stands for into a new folder, for a loader to take."""
    body = {"artifact": artifact, "folder": os.path.abspath(folder.expanduser())}
    answer = Client(to).post("/codec/decode", body, timeout_s=None)
    if json:
        print_json(answer)
    else:
        written = f"{counted(answer['files'], 'file')}, {size(answer['bytes'])}, in {answer['folder']}"
        console.print(written, markup=False, soft_wrap=True)


def drop(artifact: Artifact, /, *, json: Json = False, to: Connection = Connection()) -> None:
    """Remove an artifact that nothing uses."""
    answer = Client(to).delete(f"/codec/artifacts/{segment(artifact)}")
    print_json(answer) if json else console.print(f"dropped {artifact}", markup=False)


def jobs(*, json: Json = False, to: Connection = Connection()) -> None:
    """List codec jobs under way."""
    answer = Client(to).get("/codec/jobs")
    if json:
        print_json(answer)
        return
    print_table(
        ["job", "kind", "about", "artifact", "steps ", "since", "asked by"],
        (
            (
                one["job"],
                one["kind"],
                one["about"],
                one["artifact"],
                one["steps"],
                moment(one["started"]),
                one["asked_by"],
            )
            for one in answer["jobs"]
        ),
        empty="No codec job is under way.",
    )


def cancel(job: str, /, *, json: Json = False, to: Connection = Connection()) -> None:
    """End a codec job after the step that runs; what it measured stays."""
    answer = Client(to).delete(f"/codec/jobs/{segment(job)}?asked_by=cli")
    print_json(answer) if json else console.print(f"cancelled {job}", markup=False)


def _one_of(index: str | None, profile: str | None) -> None:
    if (index is None) == (profile is None):
        raise CliError("It serves one index or one profile.", "--index NAME, or --profile NAME", WRONG_USE)


def _certified(one: dict[str, Any]) -> str:
    certificate = one.get("certificate")
    return "none" if certificate is None else "passed" if certificate["passed"] else "not passed"


def _users(one: dict[str, Any]) -> str:
    return ", ".join(
        f"index {use['index']}" if use.get("index") else f"profile {use['profile']}" for use in one["uses"]
    )
