"""The certification of an artifact, in the worker process: is the reference the one that it was made of, does the
measurement fail what is destroyed, and what does it say of the artifact.

The self-test comes first: where a destroyed target passes, nothing is certified.
"""

import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actors.codec.artifact import open_column, read_manifest
from actors.codec.base import CodecError, Phase
from actors.codec.certify import causal_lm, column, encoder, gates
from actors.codec.certify.causal_lm import Runs, Tokens
from actors.codec.certify.compare import NotFinite
from actors.codec.certify.controls import DAMAGES, NAMES, write_damaged
from actors.codec.certify.models import check_loaded_is, is_causal_lm
from actors.codec.checkpoints.architecture import Architecture
from actors.codec.checkpoints.source import Source, open_source
from actors.codec.params import split_rows
from actors.codec.restore import decode_checkpoint
from actors.prompts import TextError, read_texts, tokenised
from actors.tensors.identity import content_sha256
from actors.torch_models import context, libraries, load_model, load_tokenizer
from schemas.certificate import (
    CausalLmFunction,
    CausalLmGate,
    ColumnFunction,
    ColumnGate,
    Control,
    EncoderFunction,
    EncoderGate,
    Estimate,
    Function,
    Gate,
)
from schemas.codec import Manifest
from schemas.names import Metric, Sha256

CONTROL_PROMPTS = 32
"""A destroyed model is told from a sound one by fewer than a certificate takes."""

CONTROL_ROWS = 20_000
"""Of a column that is destroyed, which has to be in memory."""

FEWEST_QUERIES = 100


class SelfTestFailed(CodecError):
    """A destroyed target passed the gate: this measurement can't tell, and there is no certificate."""

    def __init__(self, controls: Sequence[Control]) -> None:
        passed = [control for control in controls if not control.failed]
        figures = "; ".join(f"{control.name}: {control.figure}" for control in passed)
        super().__init__(
            f"the self-test failed: what was destroyed passed the gate ({figures}); one that asks for more can tell, "
            "a column's also one with a lower oversample"
        )
        self.controls = list(controls)

    def __reduce__(self) -> tuple[Any, ...]:
        return SelfTestFailed, (self.controls,)


@dataclass(frozen=True)
class ModelOrder:
    reference: Path  # for open_source
    artifact: Path  # a local folder
    text: Path
    gate: Gate | None  # None: the one of these two that fits the model
    causal_lm: CausalLmGate
    encoder: EncoderGate
    prompts: int
    tokens: int
    seed: int
    work: Path  # for decoded and destroyed checkpoints, gone afterwards


@dataclass(frozen=True)
class ColumnOrder:
    vectors: Path  # (n, d) float32 .npy
    artifact: Path
    metric: Metric
    gate: ColumnGate
    queries: int
    seed: int


@dataclass(frozen=True)
class Verdict:
    """What the certificate says; who, where and when is the shell's to add."""

    gate: Gate
    function: Function
    failures: list[str]
    controls: list[Control]
    text_sha256: Sha256


# --- a column -----------------------------------------------------------------------------------


def certify_column(order: ColumnOrder) -> Iterator[Phase | Verdict]:
    """Raises SelfTestFailed, CodecError."""
    manifest, coded = read_manifest(order.artifact), open_column(order.artifact)
    source = open_source(order.vectors)
    yield Phase("hash", 0, None, "bytes")
    _same_target(manifest, source)
    vectors = source.items[0].matrix()
    own = _queries(manifest, len(vectors), order)
    rng = np.random.default_rng(order.seed)
    controls = []
    for number, name in enumerate(NAMES):
        yield Phase("self-test", number, len(NAMES), "controls")
        rows, some = _control_rows(len(vectors), own, rng)
        sample = np.ascontiguousarray(vectors[rows])
        destroyed = DAMAGES[name](sample, order.seed)
        shares = column.measure(sample, [(0, destroyed)], some, order.gate, order.metric, rng)
        controls.append(Control(name, *gates.surely_below(order.gate, {"recall": shares["recall"]})))
    if not all(control.failed for control in controls):
        raise SelfTestFailed(controls)
    yield Phase("search", 0, len(own), "queries")
    shares = column.measure(vectors, column.decoded(coded), own, order.gate, order.metric, rng)
    found: ColumnFunction = column.function(coded, shares, len(own), order.gate, len(vectors))
    text_sha256 = manifest.tensors[0].sha256 or manifest.target_sha256
    yield Verdict(order.gate, found, gates.failures(order.gate, found), controls, text_sha256)


def _queries(manifest: Manifest, n: int, order: ColumnOrder) -> NDArray[np.intp]:
    """Rows that the codec wasn't fitted on, by the seed."""
    params = manifest.tensors[0].params
    if params is None:
        raise CodecError(f"artifact {manifest.artifact!r} holds no codes")
    _, held_out = split_rows(n, params)
    if len(held_out) < FEWEST_QUERIES:
        raise CodecError(f"{len(held_out)} rows weren't calibrated on; {FEWEST_QUERIES} are needed as queries")
    few = min(order.queries, len(held_out))
    return np.sort(np.random.default_rng(order.seed).choice(held_out, few, replace=False))


def _control_rows(n: int, own: NDArray[np.intp], rng: np.random.Generator) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Some rows with all queries among them, and where those are."""
    if n <= CONTROL_ROWS:
        return np.arange(n), own
    others = rng.choice(np.setdiff1d(np.arange(n), own), max(0, CONTROL_ROWS - len(own)), replace=False)
    rows = np.sort(np.concatenate([own, others]))
    return rows, np.searchsorted(rows, own)


# --- a model ------------------------------------------------------------------------------------


def certify_model(order: ModelOrder) -> Iterator[Phase | Verdict]:
    """Raises SelfTestFailed, CertUnavailable and other CodecErrors."""
    libraries()
    manifest, source = read_manifest(order.artifact), open_source(order.reference)
    if source.architecture is None:
        raise CodecError(f"{source.folder}: no config.json, so it can't be told what kind of model this is")
    gate = _gate(order, source.architecture)
    texts, text_sha256 = read_texts(order.text, order.prompts)
    yield Phase("hash", 0, len(source.items), "tensors")
    _same_target(manifest, source)
    check_loaded_is(source)
    tester: _Tester = _LmTester(source, order, texts) if isinstance(gate, CausalLmGate) else _EncoderTester(
        source, order, texts
    )  # fmt: skip
    controls = []
    for number, name in enumerate(NAMES):
        yield Phase("self-test", number, len(NAMES), "controls")
        folder = _beside(source, order.work / name)
        try:
            write_damaged(source, folder, name, order.seed)
            controls.append(Control(name, *gates.surely_below(gate, tester.shares(folder))))
        except NotFinite as error:
            controls.append(Control(name, True, str(error)))
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    if not all(control.failed for control in controls):
        raise SelfTestFailed(controls)
    candidate = order.work / "candidate"
    yield from decode_checkpoint(order.artifact, candidate)
    found = None
    for item in tester.function(candidate, manifest):
        if isinstance(item, Phase):
            yield item
        else:
            found = item
    assert found is not None
    yield Verdict(gate, found, gates.failures(gate, found), controls, text_sha256)


def _gate(order: ModelOrder, architecture: Architecture) -> Gate:
    """By what the model is. Raises CodecError for a gate of the other kind, and a model that is neither."""
    name, is_lm = architecture.architecture, is_causal_lm(architecture)
    gate = order.gate or (order.causal_lm if is_lm else order.encoder)
    if isinstance(gate, CausalLmGate) != is_lm:
        what = "a causal language model: its gate is top1 and top5" if is_lm else "an encoder: its gate is cosine"
        raise CodecError(f"{name} is {what}")
    return gate


def _same_target(manifest: Manifest, source: Source) -> None:
    """A certificate is for exactly these hashes: the reference has to be what the artifact was made of."""
    wanted = {row.name: row.sha256 for row in manifest.tensors}
    rows = []
    for item in source.items:
        sha256 = item.sha256() if not item.problem else None
        if wanted.get(item.name) != sha256:
            raise CodecError(
                f"{item.name} isn't what artifact {manifest.artifact!r} was made of: it has changed since; "
                "calibrate again"
            )
        rows.append((item.name, item.dtype, item.route.shape if item.route else (), sha256))
    if content_sha256(rows) != manifest.target_sha256:
        raise CodecError(f"the target isn't what artifact {manifest.artifact!r} was made of; calibrate again")


def _beside(source: Source, folder: Path) -> Path:
    """A folder with what a loader needs beside tensors."""
    folder.mkdir(parents=True)
    shutil.copyfile(source.folder / "config.json", folder / "config.json")
    return folder


class _Tester(ABC):
    """A model's function on held-out text, of as many candidates as are asked for."""

    @abstractmethod
    def shares(self, folder: Path) -> dict[str, Estimate]:
        """Of a destroyed model, by the gate's names."""

    @abstractmethod
    def function(self, folder: Path, manifest: Manifest) -> Iterator[Phase | Function]: ...


class _LmTester(_Tester):
    def __init__(self, source: Source, order: ModelOrder, texts: list[str]) -> None:
        self._seed = order.seed
        tokenizer = load_tokenizer(source.folder)
        self._model = load_model(source.folder, causal_lm=True)
        tokens = context(self._model, tokenizer, order.tokens)
        self._prompts: list[Tokens] = tokenised(texts, tokenizer, tokens)

    def shares(self, folder: Path) -> dict[str, Estimate]:
        candidate = Runs(load_model(folder, causal_lm=True))
        scores = list(causal_lm.scored(Runs(self._model), candidate, self._prompts[:CONTROL_PROMPTS]))
        found, _ = causal_lm.agreement(scores, np.random.default_rng(self._seed))
        return {"top1": found.top1, "top5": found.top5}

    def function(self, folder: Path, manifest: Manifest) -> Iterator[Phase | CausalLmFunction]:
        rng = np.random.default_rng(self._seed)
        reference, candidate = Runs(self._model), Runs(load_model(folder, causal_lm=True))
        scores, n = [], len(self._prompts)
        for score in causal_lm.scored(reference, candidate, self._prompts):
            scores.append(score)
            yield Phase("measure", len(scores), n, "prompts")
        floor = []
        for score in causal_lm.scored(Runs(self._model), Runs(causal_lm.in_bfloat16(self._model)), self._prompts):
            floor.append(score)
            yield Phase("noise floor", len(floor), n, "prompts")
        tensors = [row.name for row in manifest.tensors if row.params is not None]
        layers = causal_lm.layer_errors(self._model, candidate.model, tensors, self._prompts)
        free = causal_lm.free_running(self._model, candidate.model, self._prompts)
        yield causal_lm.function(reference, candidate, scores, floor, layers, free, rng)


class _EncoderTester(_Tester):
    def __init__(self, source: Source, order: ModelOrder, texts: list[str]) -> None:
        self._seed = order.seed
        if len(texts) < encoder.FEWEST:
            raise TextError(f"{len(texts)} texts: which are near which takes {encoder.FEWEST} or more")
        self._texts = texts
        self._cls = encoder.by_first_token(source.folder)
        self._tokenizer = load_tokenizer(source.folder)
        self._model = load_model(source.folder, causal_lm=False)
        self._tokens = context(self._model, self._tokenizer, order.tokens)
        self._reference = self._embed(self._model, texts)

    def shares(self, folder: Path) -> dict[str, Estimate]:
        some = self._texts[:CONTROL_PROMPTS]
        candidate = self._embed(load_model(folder, causal_lm=False), some)
        found = encoder.shares(self._reference[: len(some)], candidate, np.random.default_rng(self._seed))
        return {"cosine": found["cosine"], "neighbours": found["neighbours"]}

    def function(self, folder: Path, manifest: Manifest) -> Iterator[Phase | EncoderFunction]:
        yield Phase("measure", 0, len(self._texts), "texts")
        candidate = self._embed(load_model(folder, causal_lm=False), self._texts)
        yield Phase("noise floor", 0, len(self._texts), "texts")
        floor = self._embed(causal_lm.in_bfloat16(self._model), self._texts)
        yield encoder.function(self._reference, candidate, floor, np.random.default_rng(self._seed))

    def _embed(self, model: Any, texts: list[str]) -> encoder.Embeddings:
        return encoder.embed(model, self._tokenizer, texts, self._tokens, cls=self._cls)
