"""What the gate decides: which corpus can be learnt from, what a mix is, whether a gate fits a profile, which weights
are put in, which adapters a prompt gets. Values in, values out; the network is core_mlp, merging core_lora.

With cross-entropy the mean of a trained gate is close to the class frequencies of its corpus (at the optimum an output
bias leaves only the entropy term between them): as fixed weights, static_mean knows little beyond counts. For that
there is static_loss.
"""

import hashlib
import math
import re
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from actors.gate import core_mlp
from schemas.documents.gate import GateEvent
from schemas.events.gate import ExportGate, Routing
from schemas.events.index import EmbedderSpec
from schemas.gate import AdapterWeight, Example, GateExport, GateRun, MixSource
from schemas.names import AdapterName, Sha256, Timestamp
from schemas.profile import Adapter, ModelProfile

NUMBER = re.compile(r"\+?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
LARGEST = float(np.finfo(np.float32).max)
ADAPTER = re.compile(r"[a-z][a-z0-9_]{0,31}")
MIX = "NAME:WEIGHT,NAME:WEIGHT"

Mix = list[AdapterWeight]


class NoMix(ValueError):
    """Weights, examples or adapters that can't be used. The request is refused with this sentence."""


def declared(profile: ModelProfile) -> list[AdapterName]:
    """The adapters that a gate chooses between. Raises NoMix for fewer than two and for names a gate can't have."""
    names = [adapter.name for adapter in profile.adapters]
    if len(names) < 2:
        raise NoMix(
            f"profile {profile.id!r} has {len(names)} adapters; a gate chooses between two or more: declare them "
            f"(lakehouse profile set {profile.id} --adapter NAME=SCALE@FOLDER …)"
        )
    return _named(profile, "a gate")


def exportable(profile: ModelProfile) -> list[AdapterName]:
    """The adapters of an export, whose names become those of files. Raises NoMix for none, and for names that can't."""
    if not profile.adapters:
        raise NoMix(f"profile {profile.id!r} has 0 adapters: there is nothing to export")
    return _named(profile, "an export")


def idle_option(asked: ExportGate) -> str | None:
    """Why an option does nothing in an export of this kind; None: each that is given counts."""
    searched = asked.weights == "static_loss" and asked.adapter_mix is None
    for option, given, of, meant in (
        ("rank", asked.rank is not None, asked.target != "llamacpp", "for one merged adapter: peft, ollama, base"),
        ("from_model", asked.from_model is not None, asked.target == "ollama", "for ollama's Modelfile"),
        ("template", asked.template, asked.target == "ollama", "for ollama's Modelfile"),
        ("system", asked.system, asked.target == "ollama", "for ollama's Modelfile"),
        ("parameters", asked.parameters, asked.target == "ollama", "for ollama's Modelfile"),
        ("allow_quantised", asked.allow_quantised, asked.target == "base", "for a merge into a base"),
        ("free", asked.free, searched, "for weights by static_loss"),
    ):
        if given and not of:
            return f"{option} does nothing here: it is {meant}"
    return None


def _named(profile: ModelProfile, what: str) -> list[AdapterName]:
    for adapter in profile.adapters:
        if not ADAPTER.fullmatch(adapter.name):
            raise NoMix(
                f"{what} can't have the adapter {adapter.name!r} of profile {profile.id!r}: names are a letter a-z and "
                "up to 31 of a-z, 0-9 and _, the stem of the adapter's file"
            )
    return [adapter.name for adapter in profile.adapters]


def parse_mix(text: str, adapters: Sequence[AdapterName]) -> Mix:
    """`name:w,…` as a weight for every declared adapter, in their order; one left out weighs 0. Raises NoMix."""
    given: dict[str, float] = {}
    for part in text.split(","):
        name, colon, number = part.strip().partition(":")
        if not colon:
            raise NoMix(f"{part.strip()!r} of the adapter mix is no NAME:WEIGHT; {MIX} is meant")
        if not ADAPTER.fullmatch(name):
            raise NoMix(
                f"{name!r} in the adapter mix is no adapter's name: a letter a-z, then a-z, 0-9 and _, 32 at most"
            )
        if name in given:
            raise NoMix(f"the adapter mix names {name!r} twice")
        if name not in adapters:
            raise NoMix(f"the adapter mix names {name!r}; declared are {', '.join(adapters) or 'none'}")
        if not NUMBER.fullmatch(number.strip()):
            raise NoMix(f"{name!r} in the adapter mix weighs {number!r}; a number from 0 on is meant")
        if float(number) > LARGEST:
            raise NoMix(f"{name!r} in the adapter mix weighs {number}; float32, which it is used in, ends at 3.4e38")
        given[name] = float(number)
    if not any(given.values()):
        raise NoMix("every weight of the adapter mix is 0; one adapter at least has to count")
    return [AdapterWeight(name, given.get(name, 0.0)) for name in adapters]


def labels(examples: Sequence[Example], adapters: Sequence[AdapterName]) -> NDArray[np.int64]:
    """(n,) number of each example's adapter. Raises NoMix for no examples, and for undeclared adapters."""
    if not examples:
        raise NoMix(f"there are 0 examples, and {len(adapters)} adapters to learn: give (prompt, adapter) pairs")
    strange = sorted({example.adapter for example in examples} - set(adapters))
    if strange:
        raise NoMix(f"examples name {', '.join(map(repr, strange))}; declared are {', '.join(adapters)}")
    number = {name: place for place, name in enumerate(adapters)}
    return np.array([number[example.adapter] for example in examples], np.int64)


def corpus_sha256(examples: Sequence[Example]) -> str:
    """Of the pairs in their order; the same pairs give the same."""
    digest = hashlib.sha256()
    for example in examples:
        for text in (example.prompt, example.adapter):
            raw = text.encode("utf-8", "surrogatepass")
            digest.update(len(raw).to_bytes(8, "little") + raw)
    return digest.hexdigest()


def learnable(y: NDArray[np.int64], n: int) -> bool:
    """Whether every adapter has prompts enough; otherwise the gate is uniform."""
    return bool((np.bincount(y, minlength=n) >= core_mlp.FEWEST).all())


def static_mean(outputs: NDArray[np.float64], n: int) -> NDArray[np.float64]:
    """(N,) mean of the gate's outputs (m, N) over its prompts, not renormalised: rows that don't sum to 1 show in the
    sum. Raises NoMix for no prompts and for another number of adapters."""
    if outputs.ndim != 2 or outputs.shape[1] != n:
        raise NoMix(f"the gate's outputs are {outputs.shape[-1]} wide, {n} adapters are declared")
    if len(outputs) == 0:
        raise NoMix(f"static_mean has 0 prompts to average the weights of {n} adapters over")
    return np.asarray(outputs.mean(axis=0))


def uniform(adapters: Sequence[AdapterName]) -> Mix:
    return [AdapterWeight(name, 1 / len(adapters)) for name in adapters]


def events_of(run: GateRun, time: Timestamp) -> list[GateEvent]:
    """The rows that a training adds to `gate_events`."""
    samples = sum(run.samples)
    return [
        GateEvent(run.run, name, math.nan if mean is None else mean, samples, run.mode, time, run.profile)
        for name, mean in zip(run.adapters, run.mean_weights, strict=True)
    ]


def misfit(profile: ModelProfile, run: GateRun) -> str | None:
    """Why a gate isn't the profile's any more, or None. An embedder that is asked for in other words is another one;
    of one that is the same by its words, `other_embedder` has the last word when it is loaded. A profile without an
    embedder says nothing of it: give its `settled` form."""
    names = [adapter.name for adapter in profile.adapters]
    if names != run.adapters:
        return (
            f"it was trained for the adapters {', '.join(run.adapters)}, the profile has {', '.join(names) or 'none'}"
        )
    if profile.model != run.base_model:
        return f"it was trained for the model {run.base_model}, the profile has {profile.model}"
    if profile.embedder is not None and not _same(profile.embedder, run.embedder):
        return (
            f"it was trained on embeddings of {_embedder(run.embedder, run.input_dim)}, "
            f"the profile's embedder is {_embedder(profile.embedder, profile.embedder.dim)}"
        )
    return None


def _same(one: EmbedderSpec, other: EmbedderSpec) -> bool:
    """A dimension that isn't given is found out later."""
    dims = {spec.dim for spec in (one, other)} - {None}
    return (one.kind, one.model, one.url) == (other.kind, other.model, other.url) and len(dims) < 2


def _embedder(spec: EmbedderSpec, dim: int | None) -> str:
    at = f" at {spec.url}" if spec.url else ""
    width = f" ({dim} dimensions)" if dim else ""
    return f"{spec.kind} {spec.model}".strip() + at + width


def other_embedder(run: GateRun, identity: str, dim: int, revision: str = "") -> str | None:
    """Why an embedder isn't the one of the gate; widths that agree say nothing, nor does a revision that isn't told."""
    if identity == run.embedder_identity:
        if run.embedder_revision and revision and revision != run.embedder_revision:
            return (
                f"it was trained on embeddings of {identity} at {run.embedder_revision:.12}, "
                f"the server has it at {revision:.12} now"
            )
        return None
    return (
        f"it was trained on embeddings of {run.embedder_identity} ({run.input_dim} dimensions), "
        f"the profile's embedder is {identity} ({dim} dimensions)"
    )


def other_base(at_hand: Sha256 | None, recorded: Mapping[str, Sha256 | None]) -> str | None:
    """Why things that were made for a base don't go with the one at hand, or with each other. recorded: the base's
    content by what says it."""
    known = {who: sha256 for who, sha256 in recorded.items() if sha256 is not None}
    against, wanted = ("the base at hand", at_hand) if at_hand else next(iter(known.items()), ("", None))
    for who, sha256 in known.items():
        if sha256 != wanted:
            return f"{who} is for a base of content {sha256[:12]}, {against} {'is' if at_hand else 'for'} {wanted:.12}"
    return None


def resolve(
    profile: ModelProfile, live: GateRun | None, events: Sequence[GateEvent], explicit: str | None = None
) -> tuple[Mix, MixSource] | None:
    """The weights to put in, in the declared order, and where they come from; None: there is no gate, fewer than two
    adapters, or nothing trained that fits. An explicit mix always wins. A gate without recorded events is uniform.
    Raises NoMix for an explicit mix that can't be."""
    names = [adapter.name for adapter in profile.adapters]
    if explicit is not None:
        return parse_mix(explicit, names), "explicit"
    if live is None or len(names) < 2 or live.mode == "diverged" or misfit(profile, live) is not None:
        return None
    if live.mode == "uniform":
        return uniform(names), "uniform"
    recorded = {event.adapter: event.mean_weight for event in events if event.run == live.run}
    if recorded.keys() != set(names) or not all(math.isfinite(weight) for weight in recorded.values()):
        return uniform(names), "uniform"
    return [AdapterWeight(name, recorded[name]) for name in names], "static_mean"


def scales(profile: ModelProfile, source: MixSource) -> list[float]:
    """What the weights of a mix are multiplied by where they are merged. A gate says which adapters help, their
    declared scales how strongly each is meant, when a prompt is routed as when a mix is frozen. Weights that somebody
    gave, and those that were found by the merged model's loss, are strengths themselves."""
    final = source in ("explicit", "static_loss")
    return [1.0 if final else adapter.scale for adapter in profile.adapters]


def strengths(export: GateExport) -> Mix:
    """What was merged: the weights by the scales of then."""
    by = export.scales or [1.0] * len(export.weights)
    return [AdapterWeight(one.adapter, one.weight * scale) for one, scale in zip(export.weights, by, strict=True)]


def banner(mix: Mix, source: MixSource, run: GateRun | None) -> str:
    """One line that tells that a gate's weights were put in; empty for weights that somebody gave, and where every
    prompt brings its own."""
    if source in ("explicit", "dynamic") or run is None:
        return ""
    over = f" over {sum(run.samples)} prompts" if source == "static_mean" else ""
    return f"gate {run.run} puts in {words(mix)} ({source}{over})"


def words(mix: Mix) -> str:
    return ", ".join(f"{one.adapter} {one.weight:.3g}" for one in mix)


def route(weights: Mix, adapters: Sequence[Adapter], routing: Routing, floor: float) -> Mix:
    """The scale of every adapter for one prompt: top1, the best alone at its declared scale; floor, all that weigh
    `floor` or more by their weight, not renormalised. Where none reaches the floor, the best does."""
    scale = {adapter.name: adapter.scale for adapter in adapters}
    best = max(weights, key=lambda one: one.weight)
    if routing == "top1":
        return [AdapterWeight(one.adapter, scale[one.adapter] if one is best else 0.0) for one in weights]
    return [
        AdapterWeight(one.adapter, one.weight * scale[one.adapter] if one.weight >= floor or one is best else 0.0)
        for one in weights
    ]
