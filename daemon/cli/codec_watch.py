"""A codec job's stream as a person reads it: a bar for the step that runs, a line for every tensor and point, and what
came of it."""

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from daemon.cli.codec_words import bits, counted, figure, short, trial_params
from daemon.cli.output import console, print_facts, print_table
from daemon.cli.progress import stream_bars


def draw(lines: Iterator[dict[str, Any]]) -> dict[str, Any] | None:
    """Returns the last message."""
    message: dict[str, Any] | None = None
    started: dict[str, Any] = {}
    trials: list[dict[str, Any]] = []
    with stream_bars() as bar:
        whole, step = bar.add_task("waiting", total=None), bar.add_task("", total=None, visible=False)
        for message in lines:
            match message["type"]:
                case "codec.job_started":
                    started = message
                    bar.update(whole, description=message["kind"], total=message["steps"], completed=0)
                    console.print(
                        f"job {message['job']}, {counted(message['steps'], 'step')}", style="dim", markup=False
                    )
                case "job.progress":
                    done, total = message["done"], message.get("total")
                    several = started.get("steps", 1) > 1
                    bar.update(step if several else whole, description=message["phase"], completed=done, total=total)
                    bar.update(step, visible=several and (total or 0) > 1)
                case "codec.tensor_calibrated":
                    bar.advance(whole)
                    _print_tensor(message["tensor"])
                case "codec.point_measured":
                    trials.append(message["trial"])
                    bar.update(whole, completed=message["trial"]["group"])
                    if started.get("kind") == "sweep":
                        _print_point(message["trial"])
                case "codec.point_skipped":
                    reason = f"skipped on {message['tensor']}: {_asked(message['params'])}: {message['reason']}"
                    console.print(reason, style="yellow", markup=False, soft_wrap=True)
    if message is not None:
        _print_end(message, trials)
    return message


def _print_tensor(row: Mapping[str, Any]) -> None:
    if row.get("problem"):
        words = f"{row['name']}  unusable: {row['problem']}  ({row['shard']})"
        console.print(words, style="red", markup=False, soft_wrap=True)
        return
    measured = row.get("measured") or []
    if not measured:
        style = "yellow" if row["rule"] == "parameters" else "dim"
        console.print(f"{row['name']}  {row['route']}: {row['reason']}", style=style, markup=False, soft_wrap=True)
        return
    icc = sum(one["held_out"]["icc_3_1"] for one in measured) / len(measured)
    l2 = sum(one["held_out"]["relative_l2"] for one in measured) / len(measured)
    heart = "  memorised" if any(one["memorised"] for one in measured) else ""
    console.print(
        f"{row['name']}  {bits(row['bits_per_weight'])} bits  ICC {figure(icc)}  relative L2 {figure(l2)}{heart}",
        style="yellow" if heart else None,
        markup=False,
        soft_wrap=True,
    )


def _print_point(trial: Mapping[str, Any]) -> None:
    marks = ("  memorised" if trial["memorised"] else "") + ("  (a control: refused)" if trial.get("refused") else "")
    console.print(
        f"{trial['tensor']}  {short(trial_params(trial))}  {bits(trial['bits_per_weight'])} bits  "
        f"ICC {figure(trial['icc_3_1'])}  relative L2 {figure(trial['relative_l2'])}{marks}",
        style="yellow" if marks else None,
        markup=False,
        soft_wrap=True,
    )


def _print_end(message: Mapping[str, Any], trials: list[dict[str, Any]]) -> None:
    match message["type"]:
        case "codec.calibrated":
            bad = f", {message['problems']} unusable" if message["problems"] else ""
            made = f"artifact {message['artifact']}: {message['quantised']} of {message['tensors']} tensors quantised"
            console.print(
                f"{made}{bad}, {bits(message['bits_per_weight'])} bits a weight in them, "
                f"{bits(message['total_bits_per_weight'])} over the whole",
                style="bold",
                markup=False,
                soft_wrap=True,
            )
            text = " --text FILE" if message["target"]["kind"] == "checkpoint" else ""
            certify = f"certify it before use: lakehouse codec certify {message['artifact']}{text}"
            mend = "it can be neither decoded nor certified: mend the target, drop the artifact and calibrate again"
            console.print(mend if bad else certify, style="dim", markup=False, soft_wrap=True)
        case "codec.sweep_finished" if message["kind"] == "probe":
            print_overfit(trials)
        case "codec.sweep_finished":
            console.print(f"{counted(len(trials), 'row')} measured", style="bold", markup=False)
            if trials:
                console.print(f"[dim]lakehouse codec frontier --job {message['job']}[/dim]")
        case "codec.certified":
            print_certificate(message["certificate"])
        case "codec.self_test_failed" | "codec.job_failed":
            console.print(str(message["reason"]), style="bold red", markup=False, soft_wrap=True)
            if message.get("hint"):
                console.print(f"hint: {message['hint']}", style="dim", markup=False, soft_wrap=True)


def print_overfit(trials: list[dict[str, Any]]) -> None:
    """ICC on what was learnt from, on unseen rows and on all, as the rows grow."""
    print_table(
        ["calibrated on ", "ICC on those ", "on unseen rows ", "on all ", "relative L2 unseen ", "", "calibration"],
        (
            (
                trial["calibration_rows"],
                figure(trial["icc_3_1_calibration"]),
                figure(trial["icc_3_1"]),
                figure(trial["icc_3_1_all"]),
                figure(trial["relative_l2"]),
                "memorised" if trial["memorised"] else "",
                "refuses it" if trial.get("refused") else "takes it",
            )
            for trial in sorted(trials, key=lambda trial: trial["calibration_rows"])
        ),
        empty="No number of rows could be measured.",
        title=f"{trials[0]['tensor']}, {short(trial_params(trials[0]))}" if trials else None,
    )


def print_certificate(certificate: Mapping[str, Any]) -> None:
    function = certificate["function"]
    verdict = "passed" if certificate["passed"] else "not passed"
    console.print(
        f"{certificate['artifact']}: {verdict}",
        style="bold green" if certificate["passed"] else "bold red",
        markup=False,
    )
    for failure in certificate["failures"]:
        console.print(f"  {failure}", style="red", markup=False, soft_wrap=True)
    gate = {name: value for name, value in certificate["gate"].items() if name != "function" and value is not None}
    facts: dict[str, Any] = {"gate": ", ".join(f"{name} {value}" for name, value in gate.items())}
    match function["function"]:
        case "causal_lm":
            found, floor = function["agreement"], function["noise_floor"]
            facts |= {
                "top-1": f"{_estimate(found['top1'])}; bfloat16 {floor['top1']['mean']:.4f}",
                "top-5": f"{_estimate(found['top5'])}; bfloat16 {floor['top5']['mean']:.4f}",
                "KL": f"{found['mean_kl']:.3g} nats, 99.9 % {found['kl_p999']:.3g}; bfloat16 {floor['mean_kl']:.2g}",
                "perplexity": f"{found['perplexity']:.2f}, {found['delta_perplexity']:+.3f} over the reference",
                "layers": _layers(function["layers"]),
                "diverged": f"{function['diverged']:,} of {found['positions']:,} positions",
                "latency": f"{_median(function['candidate_ms']):.1f} ms a prompt decoded, "
                f"{_median(function['reference_ms']):.1f} of the reference",
                "free-running": f"alike for {_list(function['first_divergence'])} tokens",
            }
        case "encoder":
            facts |= {
                "cosine": f"{_estimate(function['cosine'])}, worst {function['worst_cosine']:.4f}; "
                f"bfloat16 {function['noise_floor_cosine']:.4f}",
                "10 nearest": _estimate(function["neighbours"]),
                "nearest": _estimate(function["top1_neighbour"]),
                "texts": function["texts"],
            }
        case "column":
            facts |= {
                f"recall@{function['k']}": f"{_estimate(function['recall'])}, {function['oversample']} × rescored",
                "codes alone": _estimate(function["recall_codes"]),
                "memory": f"{function['code_bytes_share']:.3f} of float32",
                "rows": function["rows"],
            }
    controls = (
        f"{one['name']} {'fails' if one['failed'] else 'PASSES'} ({one['figure']})" for one in certificate["self_test"]
    )
    print_facts(facts | {"self-test": "; ".join(controls), "text": certificate["text"]})


def _estimate(share: Mapping[str, Any]) -> str:
    span = f"{share['mean']:.4f} ({share['low']:.4f} to {share['high']:.4f})"
    return f"{span}, at least {share['lower']:.4f} of {share['count']:,}"


def _layers(layers: list[Mapping[str, Any]]) -> str:
    if not layers:
        return ""
    worst = max(layers, key=lambda layer: layer["relative"])
    mean = sum(layer["relative"] for layer in layers) / len(layers)
    return f"output error {mean:.2g} of its square in the mean, most {worst['relative']:.2g}: {worst['layer']}"


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def _list(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))


def _asked(params: Mapping[str, Any]) -> str:
    try:
        return short(params)
    except (KeyError, TypeError):
        return msgspec.json.encode(params).decode()
