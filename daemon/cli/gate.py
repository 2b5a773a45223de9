"""`lakehouse gate`: which of a profile's LoRA adapters a prompt wants, learnt, asked, frozen into exports."""

from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from cyclopts import App, Parameter
from cyclopts.validators import Number

from daemon.cli.client import Client, refused, segment
from daemon.cli.connection import Connection
from daemon.cli.errors import WRONG_USE, CliError
from daemon.cli.output import Json, console, moment, print_facts, print_json, print_json_line, print_table

app = App(name="gate", help="Learn which LoRA adapter a prompt wants; route by it, or freeze a mix of adapters.")

PROGRESS = "job.progress"

Profile = Annotated[str, Parameter(help="The profile.")]


@app.command
def train(
    profile: Profile,
    /,
    *,
    file: Path | None = None,
    dataset: str | None = None,
    prompt_column: str = "prompt",
    adapter_column: str = "adapter",
    base: str | None = None,
    base_revision: str = "",
    seed: Annotated[int, Parameter(validator=Number(gte=0))] = 42,
    json: Json = False,
    to: Connection = Connection(),
) -> int:
    """Train the profile's gate from prompts and the adapters that help with them.

    Parameters
    ----------
    file
        JSON lines, {"prompt": …, "adapter": …} each.
    dataset
        Instead of a file: a dataset with such columns.
    prompt_column
        Its column of prompts.
    adapter_column
        Its column of adapters' names.
    base
        Folder of the model's checkpoint, on the machine that does the work: its content is kept with the gate. Default
        the folder that the adapters' configurations name, if it is there.
    base_revision
        Of the profile's model; default what the adapters' configurations say.
    seed
        Of the gate's first weights and of which prompts are held out.
    json
        Print every message as a line of JSON.
    """
    if (file is None) == (dataset is None):
        hint = f"lakehouse gate train {profile} --file pairs.jsonl"
        raise CliError("A gate learns from a --file or from a --dataset.", hint, WRONG_USE)
    body: dict[str, Any] = {"seed": seed, "base": base, "base_revision": base_revision, "asked_by": "cli"}
    if file is not None:
        body["examples"] = _pairs(file)
    else:
        body |= {"dataset": dataset, "prompt_column": prompt_column, "adapter_column": adapter_column}
    answer = _followed(to, f"/gate/{segment(profile)}/train", body, f"Gate of {profile}", json)
    if json:
        return 0
    gate = answer["gate"]
    samples = ", ".join(f"{name} {n}" for name, n in zip(gate["adapters"], gate["samples"], strict=True))
    console.print(f"gate {gate['run']} of {profile}: {gate['mode']}; prompts: {samples}", markup=False)
    if gate["mode"] == "uniform":
        console.print("too few prompts to learn from (4 of every adapter): each adapter weighs the same", markup=False)
    elif gate["mode"] == "diverged":
        held = "not finite" if gate["held_out_loss"] is None else f"{gate['held_out_loss']:.3f}"
        console.print(
            f"it learnt nothing that holds for unseen prompts (loss {held}, of chance {gate['uniform_loss']:.3f}); "
            "nothing uses it",
            markup=False,
        )
        return 1
    else:
        mean = ", ".join(f"{n} {w:.3g}" for n, w in zip(gate["adapters"], gate["mean_weights"], strict=True))
        console.print(
            f"loss on unseen prompts {gate['held_out_loss']:.3f}, of chance {gate['uniform_loss']:.3f}; mean {mean}",
            markup=False,
        )
    return 0


@app.command
def weights(profile: Profile, prompt: str, /, *, json: Json = False, to: Connection = Connection()) -> None:
    """Show what the gate gives a prompt.

    Parameters
    ----------
    prompt
        What a model would be asked.
    """
    answer = Client(to).post(f"/gate/{segment(profile)}/weights", {"prompt": prompt})
    if json:
        print_json(answer)
    else:
        _print_mix(answer["weights"])


@app.command
def show(profile: Profile, /, *, json: Json = False, to: Connection = Connection()) -> None:
    """Show a profile's gate: how it was trained, what it puts in, what was exported."""
    answer = Client(to).get(f"/gate/{segment(profile)}")
    if json:
        print_json(answer)
        return
    live, last = answer["live"], answer["last"]
    facts: dict[str, Any] = {"profile": profile, "bucket": answer["bucket"]}
    if live is None:
        facts["gate"] = "none that is of use" if last else "none yet: lakehouse gate train"
    else:
        facts |= {
            "gate": f"{live['run']} ({live['mode']}), {moment(live['created'])}",
            "adapters": [f"{name}, {n} prompts" for name, n in zip(live["adapters"], live["samples"], strict=True)],
            "model": " at revision ".join(filter(None, (live["base_model"], live["base_revision"]))),
            "base": live["base_sha256"] and f"content {live['base_sha256'][:12]}",
            "embedder": f"{live['embedder_identity']}, {live['input_dim']} dimensions",
            "embedder's revision": live["embedder_revision"][:12],
            "loss": live["held_out_loss"] and f"{live['held_out_loss']:.3f}, of chance {live['uniform_loss']:.3f}",
            "stale": answer["stale"],
        }
    if last is not None and last != live:
        facts["last training"] = f"{last['run']} ({last['mode']}), {moment(last['created'])}"
    if answer["mix"]:
        facts["fixed weights"] = f"{_mix(answer['mix'])} ({answer['source']})"
    print_facts(facts)
    if answer["exports"]:
        print_table(
            ["export", "weights", "of", "where", "made"],
            (
                (one["target"], _mix(one["weights"]), one["gate_mode"], one["place"], moment(one["created"]))
                for one in answer["exports"]
            ),
            empty="",
        )


@app.command
def export(
    profile: Profile,
    /,
    *,
    target: Annotated[Literal["peft", "ollama", "base", "llamacpp"], Parameter(name="--as")],
    weights: Literal["static_mean", "static_loss", "uniform", "dynamic"] | None = None,
    adapter_mix: str | None = None,
    folder: str | None = None,
    rank: Annotated[int | None, Parameter(validator=Number(gte=1))] = None,
    max_error: Annotated[float, Parameter(validator=Number(gte=0, lte=1))] = 0.05,
    base: str | None = None,
    base_revision: str = "",
    text: str | None = None,
    prompts: Annotated[int, Parameter(validator=Number(gte=16))] = 200,
    tokens: Annotated[int, Parameter(validator=Number(gte=8))] = 64,
    free: Annotated[bool, Parameter(negative="")] = False,
    allow_quantised: Annotated[bool, Parameter(negative="")] = False,
    from_model: str | None = None,
    template: Path | None = None,
    system: Path | None = None,
    parameter: Annotated[list[str] | None, Parameter(negative="")] = None,
    json: Json = False,
    to: Connection = Connection(),
) -> None:
    """Freeze a mix of the profile's adapters. Paths are those of the machine that does the work.

    Parameters
    ----------
    target
        peft: one adapter; ollama: that with a Modelfile; base: the base checkpoint with the mix in its weights, ready
        for GGUF; llamacpp: each adapter by itself, with llama-server's arguments.
    weights
        Where they come from; default the gate's mean, static_mean. static_loss finds those of least loss on --text.
    adapter_mix
        NAME:WEIGHT,… instead of the gate's weights.
    folder
        A new one, below [gate] allowed_roots; default the profile's bucket.
    rank
        Cut every module of the merged adapter to it.
    max_error
        What a cut may lose, relative to a module's norm.
    base
        The base checkpoint's folder: base and static_loss need it.
    base_revision
        Of the base, for the manifest.
    text
        Held-out text, prompts apart by blank lines, to measure losses on.
    prompts
        Of the text, at most.
    tokens
        Of a prompt, at most.
    free
        static_loss: weights needn't sum to 1.
    allow_quantised
        Also into a base that says that it is quantised, where its weights are floats.
    from_model
        ollama: what FROM says; default the profile's model.
    template
        ollama: a file with the TEMPLATE.
    system
        ollama: a file with the SYSTEM text.
    parameter
        ollama: NAME=VALUE, as often as there are some.
    json
        Print every message as a line of JSON.
    """
    body: dict[str, Any] = {
        "target": target, "weights": weights, "adapter_mix": adapter_mix, "folder": folder, "rank": rank,
        "max_error": max_error, "base": base, "base_revision": base_revision, "text": text, "prompts": prompts,
        "tokens": tokens, "free": free, "allow_quantised": allow_quantised, "from_model": from_model,
        "template": _text(template), "system": _text(system), "parameters": _parameters(parameter or []),
        "asked_by": "cli",
    }  # fmt: skip
    answer = _followed(to, f"/gate/{segment(profile)}/export", body, f"Export of {profile}", json)
    if json:
        return
    if answer["banner"]:
        console.print(answer["banner"], markup=False)
    made = answer["export"]
    lost = f", cut to rank {answer['rank']}, error {answer['error']:.2g}" if rank else ""
    console.print(f"{made['target']}: {_mix(made['weights'])} ({made['gate_mode']}){lost}", markup=False)
    console.print(f"in {made['place']}", markup=False)
    if answer["arguments"]:
        console.print(" ".join(answer["arguments"]), markup=False)
    for note in answer["notes"]:
        console.print(note, markup=False)


@app.command
def generate(
    profile: Profile,
    prompt: str,
    /,
    *,
    max_tokens: Annotated[int, Parameter(validator=Number(gte=1, lte=8192))] = 128,
    routing: Literal["top1", "floor"] = "top1",
    floor: Annotated[float, Parameter(validator=Number(gte=0, lte=1))] = 0.1,
    adapter_mix: str | None = None,
    json: Json = False,
    to: Connection = Connection(),
) -> None:
    """Have the active profile's model go on from a prompt, by the adapters that the gate finds for it.

    Parameters
    ----------
    prompt
        What to go on from.
    max_tokens
        At most so many.
    routing
        top1: the best adapter alone; floor: all that weigh --floor or more, each by its weight.
    floor
        Likewise.
    adapter_mix
        NAME:WEIGHT,… instead of the gate's answer.
    """
    body = {
        "prompt": prompt,
        "max_tokens": max_tokens,
        "routing": routing,
        "floor": floor,
        "adapter_mix": adapter_mix,
    }
    answer = Client(to).post(f"/vectors/profile/{segment(profile)}/generate", body, timeout_s=None)
    if json:
        print_json(answer)
        return
    print(answer["text"])
    told = _mix(answer["weights"]) or "no adapter"
    console.print(f"{answer['routing']}: {told}" + (f"; {answer['note']}" if answer["note"] else ""), markup=False)


def _followed(to: Connection, path: str, body: dict[str, Any], step: str, as_json: bool) -> dict[str, Any]:
    """The job's last line, its phases shown until then. Raises CliError for a refusal, and for a stream that ends
    before."""
    from daemon.cli.progress import Steps

    last: dict[str, Any] = {"type": PROGRESS}
    with Steps().step(step) as bars:
        for last in Client(to).lines(path, body):
            if as_json:
                print_json_line(last)
            if last["type"] == PROGRESS:
                bars.heard(last)
    if last["type"] == PROGRESS:
        raise CliError("The stream ended before the job did.", "it goes on: lakehouse gate show")
    if last["type"] == "refusal":
        raise refused(last)
    return last


def _pairs(file: Path) -> list[dict[str, str]]:
    """What the fields may be, the daemon says."""
    try:
        lines = file.read_bytes().splitlines()
    except OSError as error:
        raise CliError(f"{file} can't be read: {error.strerror}.", code=WRONG_USE) from None
    found = []
    for number, line in enumerate(lines, 1):
        try:
            if line.strip():
                found.append(msgspec.json.decode(line, type=dict[str, str]))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            hint = '{"prompt": "…", "adapter": "code"} on every line'
            raise CliError(f"{file} is no file of pairs: line {number}: {error}.", hint, WRONG_USE) from None
    return found


def _text(file: Path | None) -> str:
    try:
        return "" if file is None else file.read_text(encoding="utf-8").rstrip("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise CliError(f"{file} can't be read: {error}.", code=WRONG_USE) from None


def _parameters(given: list[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals:
            raise CliError(f"{text!r} is no parameter.", "NAME=VALUE, such as temperature=0.2", WRONG_USE)
        found.setdefault(name, []).append(value)
    return found


def _mix(weights: list[dict[str, Any]]) -> str:
    return ", ".join(f"{one['adapter']} {one['weight']:.3g}" for one in weights)


def _print_mix(weights: list[dict[str, Any]]) -> None:
    best = max(one["weight"] for one in weights)
    print_table(
        ["", "adapter", "weight "],
        (("●" if one["weight"] == best else "", one["adapter"], f"{one['weight']:.3f}") for one in weights),
        empty="",
    )
