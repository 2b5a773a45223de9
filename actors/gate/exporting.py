"""The job that makes an export in the worker process: weights chosen where they are to be, adapters merged, files
written into a folder of their own, the manifest last.

    peft      adapter_config.json, adapter_model.safetensors
    ollama    Modelfile, adapter/
    base      the base's files, with the mix added
    llamacpp  adapters/<name>/, arguments.txt, convert.txt
"""

import math
import os
import shlex
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from actors.errors import Unfit
from actors.gate.adapters import CONFIG, WEIGHTS, SourceAdapter, open_adapters, sha256_of
from actors.gate.base_merge import write_base
from actors.gate.core_minimise import compass
from actors.gate.core_modelfile import modelfile
from actors.gate.merging import Merge, Weighted, write_adapter
from actors.gate.phase import Phase
from schemas.events.gate import ExportGate
from schemas.gate import (
    AdapterWeight,
    Evaluation,
    ExportedAdapter,
    ExportManifest,
    GateFile,
    MergeReport,
    MixLoss,
    MixSource,
)
from schemas.names import AdapterName, Sha256, Timestamp

MANIFEST = "export_manifest.json"
MODELFILE = "Modelfile"

F64 = NDArray[np.float64]


class ExportOrder(msgspec.Struct, frozen=True):
    """What the job needs of an export that was asked for, paths looked up."""

    asked: ExportGate
    folders: Mapping[AdapterName, Path]  # of every declared adapter, in their order
    mix: list[AdapterWeight]  # to start from, for static_loss
    source: MixSource
    scales: list[float]  # that the weights are multiplied by where they are merged
    run: str | None
    model: str  # the profile's
    base: Path | None
    base_sha256: Sha256 | None  # of the base at hand
    text: Path | None
    created: Timestamp
    job: str = ""
    banner: str = ""


def export_job(order: ExportOrder, out: Path) -> Iterator[Phase | ExportManifest]:
    """Writes into `out`, an empty folder. Raises Unmergeable, Unquotable, Unfit with the reason of a refusal."""
    asked = order.asked
    adapters = open_adapters(order.folders)
    mix, evaluation = order.mix, None
    if order.text is not None and order.base is not None:
        mix, evaluation = yield from measure(order, adapters)
    weighted = _weighted(adapters, mix, order.scales)
    arguments: list[str] = []
    notes = [] if order.base_sha256 else ["the base isn't at hand: nothing says which content the mix is for"]
    if any(scale != 1 for scale in order.scales):
        by = ", ".join(f"{adapter.name} {scale:g}" for adapter, scale in zip(adapters, order.scales, strict=True))
        notes.append(f"weights are multiplied by the scales that the profile declares: {by}")
    report = MergeReport(mode="none")
    yield Phase("merge", 0, None, "modules")
    match asked.target:
        case "peft":
            report = write_adapter(Merge(weighted, asked.rank), out, asked.max_error)
        case "ollama":
            report = write_adapter(Merge(weighted, asked.rank), out / "adapter", asked.max_error)
            text = modelfile(
                asked.from_model or order.model,
                "./adapter",
                template=asked.template,
                system=asked.system,
                parameters=asked.parameters,
            )
            (out / MODELFILE).write_text(text, encoding="utf-8")
            notes.append("newer versions of Ollama may refuse ADAPTER: then export `base` and convert that to GGUF")
        case "base":
            assert order.base is not None
            merge = Merge(weighted, asked.rank)
            for said in write_base(
                merge, order.base, out, allow_quantised=asked.allow_quantised, max_error=asked.max_error
            ):
                if isinstance(said, MergeReport):
                    report = said
                else:
                    yield Phase("merge", *said, "shards")
            (out / MANIFEST).unlink(missing_ok=True)  # the base's own, where that is an export
            notes.append("to GGUF: convert_hf_to_gguf.py of llama.cpp takes this folder")
        case "llamacpp":
            arguments, more = yield from _apart(order, weighted, out)
            notes += more
    files = [
        GateFile(path.relative_to(out).as_posix(), sha256_of(path), path.stat().st_size)
        for path in sorted(out.rglob("*"))
        if path.is_file()
    ]
    first = adapters[0].lora
    manifest = ExportManifest(
        profile=asked.profile,
        target=asked.target,
        gate_mode=order.source,
        weights=mix,
        run=order.run,
        adapters=[_told(*each) for each in zip(adapters, mix, order.scales, strict=True)],
        base_model=first.base or order.model,
        base_revision=asked.base_revision or first.revision,
        base_sha256=order.base_sha256,
        merge=report,
        evaluation=evaluation,
        arguments=arguments,
        notes=notes,
        files=files,
        created=order.created,
        job=order.job,
        banner=order.banner,
    )
    (out / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n")
    for path in (*out.rglob("*"), out):
        sync(path)
    yield manifest


def sync(path: Path) -> None:
    """A file's content, or a folder's names, onto the disk: what has its own name stays whole, whatever comes."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _apart(
    order: ExportOrder, weighted: Sequence[Weighted], out: Path
) -> Generator[Phase, None, tuple[list[str], list[str]]]:
    """Every adapter with its scale folded in, as llama.cpp knows neither rsLoRA nor patterns; and its arguments."""
    adapters = [each.adapter for each in weighted]
    for number, adapter in enumerate(adapters):
        yield Phase("merge", number, len(adapters), "adapters")
        write_adapter(Merge([Weighted(adapter, 1.0)]), out / "adapters" / adapter.name)
    scales = [0.0 if order.source == "dynamic" else each.weight for each in weighted]
    scaled = ",".join(
        f"adapters/{adapter.name}.gguf:{scale:.9g}" for adapter, scale in zip(adapters, scales, strict=True)
    )
    arguments = ["--lora-scaled", scaled]
    (out / "arguments.txt").write_text("\n".join(arguments) + "\n", encoding="utf-8")
    base = "BASE" if order.base is None else shlex.quote(str(order.base))
    convert = [
        f"python convert_lora_to_gguf.py --base {base} --outfile adapters/{adapter.name}.gguf adapters/{adapter.name}"
        for adapter in adapters
    ]
    (out / "convert.txt").write_text("\n".join(convert) + "\n", encoding="utf-8")
    notes = ["convert.txt says how llama.cpp's own script makes the GGUF files that the arguments name"]
    if order.source == "dynamic":
        notes.append("scales are 0 until a request says otherwise: the gate's answer goes with each")
    return arguments, notes


def measure(
    order: ExportOrder, adapters: Sequence[SourceAdapter]
) -> Generator[Phase, None, tuple[list[AdapterWeight], Evaluation]]:
    """Losses on every other prompt of the text; where weights are to be chosen by loss, on the prompts between. The
    chosen mix's is that of what is written, cut where it is. Needs the `cert` extra."""
    from actors.gate.losses import MixedModel, read_text

    assert order.base is not None
    assert order.text is not None
    asked, n = order.asked, len(adapters)
    yield Phase("loss", 0, None, "passes")
    with MixedModel(order.base, adapters).hooked() as model:
        text = read_text(order.text, model.tokenizer, asked.prompts, model.context(asked.tokens))
        mix, scales = order.mix, np.array(order.scales)
        weights, single = np.array([one.weight for one in mix]), np.eye(n)
        if order.source == "static_loss":
            starts = [np.full(n, 1 / n), *single]
            if abs(weights.sum() - 1) < 1e-6:
                starts.append(weights / weights.sum())
            search = compass(lambda w: model.loss(w, text.fit), starts, free=asked.free)
            weights, _, _ = yield from _searching(search)
            mix = [
                AdapterWeight(adapter.name, float(weight)) for adapter, weight in zip(adapters, weights, strict=True)
            ]
        rows = [("base", np.zeros(n)), ("uniform", np.full(n, 1 / n))]
        rows += [(f"adapter {adapter.name}", single[place]) for place, adapter in enumerate(adapters)]
        # Prompt by prompt there is no loss of one mix: the mean stands for it, under its own name.
        rows.append(("static_mean" if order.source == "dynamic" else order.source, weights))
        losses: list[MixLoss] = []
        for of, row in rows:
            if len(losses) == len(rows) - 1 and asked.rank is not None:
                loss = model.merged_loss(Merge(_weighted(adapters, mix, order.scales), asked.rank), text.test)
            else:
                loss = model.loss(row * scales, text.test)
            if not math.isfinite(loss):
                raise Unfit(
                    f"the loss of {of} on {order.text.name} isn't finite: the weights of {order.base.name}, or what "
                    "the adapters add to them, hold or make values that aren't"
                )
            losses.append(MixLoss(of, (row * scales).tolist(), loss))
            yield Phase("loss", len(losses), len(rows), "passes")
    return mix, Evaluation(
        text_sha256=text.sha256,
        prompts=len(text.test),
        tokens=sum(len(one) - 1 for one in text.test),
        fitted_on=len(text.fit) if order.source == "static_loss" else 0,
        losses=losses,
    )


def _weighted(
    adapters: Sequence[SourceAdapter], mix: Sequence[AdapterWeight], scales: Sequence[float]
) -> list[Weighted]:
    """The adapters as strongly as they are merged."""
    return [Weighted(each, one.weight * scale) for each, one, scale in zip(adapters, mix, scales, strict=True)]


def _searching(search: Generator[int, None, tuple[F64, float, int]]) -> Generator[Phase, None, tuple[F64, float, int]]:
    """The search, told by how many weights were tried; how many there will be nobody knows."""
    while True:
        try:
            yield Phase("search", next(search), None, "passes")
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]


def _told(adapter: SourceAdapter, one: AdapterWeight, scale: float) -> ExportedAdapter:
    modules = adapter.modules.values()
    return ExportedAdapter(
        name=adapter.name,
        weight=one.weight,
        scale=scale,
        sha256=sha256_of(adapter.folder / WEIGHTS),
        config_sha256=sha256_of(adapter.folder / CONFIG),
        ranks=sorted({module.rank for module in modules}),
        alphas=sorted({module.alpha for module in modules}),
        rslora=adapter.lora.rslora,
        modules=len(modules),
    )
