"""The loss of a causal model with a mix of adapters, without merging: each adapted layer adds B (w ∘ (A x)) to what it
gives, so that other weights cost nothing but a pass over the text. Needs the `cert` extra (torch, transformers)."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from actors.gate.adapters import SourceAdapter
from actors.gate.core_lora import Unmergeable
from actors.gate.merging import Factors, Merge, Weighted
from actors.prompts import read_texts, tokenised
from actors.torch_models import context, libraries, load_model, load_tokenizer, quiet

F64 = NDArray[np.float64]
Tokens = NDArray[np.int64]  # (T,)

MOST_POSITIONS = 1024
"""Tokens and padding of a batch: its logits have that many rows of the whole vocabulary, in float32."""


class Text(msgspec.Struct, frozen=True):
    """Held-out prompts, every other of which weights may be chosen on."""

    fit: list[Tokens]
    test: list[Tokens]
    sha256: str


def read_text(path: Path, tokenizer: Any, prompts: int, tokens: int) -> Text:
    texts, sha256 = read_texts(path, prompts)
    ids = tokenised(texts, tokenizer, tokens)
    return Text(ids[0::2], ids[1::2], sha256)


class MixedModel:
    """A base with adapters of which any mix may be asked for. Use it within `hooked`."""

    def __init__(self, base: Path, adapters: Sequence[SourceAdapter]) -> None:
        """Raises Unmergeable, Unfit for what isn't the adapters' base."""
        torch, _ = libraries()
        self.model = load_model(base, causal_lm=True)
        self.tokenizer = load_tokenizer(base)
        self._adapters = adapters
        self._weights = torch.zeros(len(adapters))
        self._layers: dict[str, Any] = {}
        self._parts: dict[str, tuple[Any, Any, Any]] = {}  # A^T (in, R), B^T (R, out), adapter of each rank
        modules = {name: module for each in adapters for name, module in each.modules.items()}
        named = dict(self.model.named_modules())
        for name, module in modules.items():
            layer = named.get(name)
            if layer is None or getattr(layer, "weight", None) is None:
                raise Unmergeable(f"{base.name} has no layer {name}: the adapters are of another base")
            shape = tuple(layer.weight.shape)
            if shape not in ((module.outputs, module.inputs), (module.inputs, module.outputs)):
                raise Unmergeable(f"{name} is {list(shape)} in {base.name}, {[module.outputs, module.inputs]} adapted")
            having = [(place, each) for place, each in enumerate(adapters) if name in each.modules]
            factors = Factors(name, [Weighted(each, 1.0) for _, each in having])
            owner = np.concatenate([np.full(each.modules[name].rank, place) for place, each in having])
            self._layers[name], self._parts[name] = layer, _part(factors, owner)

    @contextmanager
    def hooked(self) -> Iterator["MixedModel"]:
        def hook(name: str) -> Any:
            def add(_: Any, given: tuple[Any, ...], out: Any) -> Any:
                if name not in self._parts:
                    return out
                a, b, owner = self._parts[name]
                # (B, T, in) @ (in, R), each of R weighed as its adapter, @ (R, out)
                return out + ((given[0] @ a) * self._weights[owner]) @ b

            return add

        handles = [layer.register_forward_hook(hook(name)) for name, layer in self._layers.items()]
        try:
            yield self
        finally:
            for handle in handles:
                handle.remove()

    def token_losses(self, weights: F64, prompts: Sequence[Tokens]) -> tuple[F64, NDArray[np.int64]]:
        """(n,) summed loss of each prompt in nats, teacher-forced, and (n,) how many tokens were predicted."""
        torch, _ = libraries()
        self._weights = torch.from_numpy(np.asarray(weights, np.float32))
        sums, counts = [], []
        with quiet():
            for batch in batches(prompts):
                longest = max(len(one) for one in batch)
                ids = torch.zeros((len(batch), longest), dtype=torch.long)
                mask = torch.zeros((len(batch), longest), dtype=torch.long)
                for row, one in enumerate(batch):
                    ids[row, : len(one)] = torch.from_numpy(one)
                    mask[row, : len(one)] = 1
                logits = self.model(input_ids=ids, attention_mask=mask).logits[:, :-1].float()
                nll = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
                counted = mask[:, 1:]
                sums.append((nll * counted).double().sum(dim=1).numpy())
                counts.append(counted.sum(dim=1).numpy())
        return np.concatenate(sums), np.concatenate(counts)

    def loss(self, weights: F64, prompts: Sequence[Tokens]) -> float:
        """Mean over all tokens, in nats."""
        sums, counts = self.token_losses(weights, prompts)
        return float(sums.sum() / counts.sum())

    def merged_loss(self, merge: Merge, prompts: Sequence[Tokens]) -> float:
        """Of a merge as it is written, cut where it is: the mean over all tokens, in nats."""
        apart = self._parts
        self._parts = {}
        for name in merge.modules:
            factors = merge.factors(name)
            self._parts[name] = _part(factors, np.zeros(factors.rank, np.int64))
        try:
            return self.loss(np.ones(1), prompts)
        finally:
            self._parts = apart

    def context(self, asked: int) -> int:
        return context(self.model, self.tokenizer, asked)


def _part(factors: Factors, owner: NDArray[np.int64]) -> tuple[Any, Any, Any]:
    """owner: (R,) which weight each rank has."""
    torch, _ = libraries()
    b = factors.b_rows(0, factors.outputs)
    a, b = np.ascontiguousarray(factors.a().T), np.ascontiguousarray(b.T)
    return torch.from_numpy(a), torch.from_numpy(b), torch.from_numpy(owner)


def batches(prompts: Sequence[Tokens], most: int = MOST_POSITIONS) -> Iterator[Sequence[Tokens]]:
    """The prompts in their order, as many at once as padded have `most` tokens; a longer one alone."""
    start = longest = 0
    for stop, one in enumerate(prompts):
        longest = max(longest, len(one))
        if stop > start and (stop + 1 - start) * longest > most:
            yield prompts[start:stop]
            start, longest = stop, len(one)
    if start < len(prompts):
        yield prompts[start:]
