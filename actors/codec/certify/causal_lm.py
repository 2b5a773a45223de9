"""A language model's function: what it predicts at every position of held-out text, teacher-forced, beside the
reference's; and, with the same measurement, the reference's own in bfloat16, the floor of what can be told apart."""

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actors.codec.certify import compare
from actors.codec.certify.compare import Prompt
from actors.codec.certify.models import module_of
from actors.torch_models import libraries, quiet
from schemas.certificate import Agreement, CausalLmFunction, LayerError

Tokens = NDArray[np.int64]  # (T,)

MOST_DIVERGENCES = 1000
LAYER_PROMPTS = 4
FREE_PROMPTS = 8
FREE_START = 8
"""Tokens of a prompt that free-running begins with."""
FREE_TOKENS = 32

Progress = Callable[[int], None]


class Runs:
    """A model on prompts: logits, and how long each took."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.ms: list[float] = []

    def logits(self, tokens: Tokens) -> NDArray[np.float32]:
        """(T, V)"""
        torch, _ = libraries()
        with quiet():
            began = perf_counter()
            out = self.model(torch.from_numpy(tokens)[None]).logits[0].float()
            self.ms.append((perf_counter() - began) * 1e3)
        values: NDArray[np.float32] = out.numpy()
        return values


def scored(reference: Runs, candidate: Runs, prompts: Sequence[Tokens]) -> Iterator[Prompt]:
    """One at a time: logits of a prompt are T x V numbers."""
    for tokens in prompts:
        yield compare.score(reference.logits(tokens), candidate.logits(tokens), tokens)


def agreement(scores: Sequence[Prompt], rng: np.random.Generator) -> tuple[Agreement, float]:
    """And the reference's perplexity."""
    totals = np.array([len(one.kl) for one in scores])
    kl = np.concatenate([one.kl for one in scores])
    reference = _perplexity([one.reference_nll for one in scores])
    candidate = _perplexity([one.candidate_nll for one in scores])
    top1 = np.array([(one.reference == one.candidate).sum() for one in scores])
    top5 = np.array([one.in_top.sum() for one in scores])
    return Agreement(
        positions=int(totals.sum()),
        mean_kl=float(kl.mean()),
        kl_p999=float(np.quantile(kl, 0.999)),
        top1=compare.estimate(top1, totals, rng),
        top5=compare.estimate(top5, totals, rng),
        perplexity=candidate,
        delta_perplexity=candidate - reference,
    ), reference


def in_bfloat16(model: Any) -> Any:
    """The model with weights and arithmetic of bfloat16. Frequencies of rotary positions, which are no weights, stay as
    a loader leaves them."""
    torch, _ = libraries()
    copy = deepcopy(model)
    for parameter in copy.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    return copy


def layer_errors(reference: Any, candidate: Any, tensors: Sequence[str], prompts: Sequence[Tokens]) -> list[LayerError]:
    """Each quantised layer by itself: given what comes into it in the reference, how far its output is off."""
    torch, _ = libraries()
    sums: dict[str, list[float]] = {}
    hooks = []
    for tensor in tensors:
        here, there = module_of(reference, tensor), module_of(candidate, tensor)
        if here is None or there is None:
            continue  # an expert's part of a stack: no module of its own

        def hear(_: Any, given: Any, out: Any, name: str = tensor, other: Any = there[1]) -> None:
            apart = (other.forward(*given) - out).double()
            one = sums.setdefault(name, [0.0, 0.0, 0.0])
            one[0] += float(apart.square().sum())
            one[1] += float(out.double().square().sum())
            one[2] += out.numel()

        hooks.append(here[1].register_forward_hook(hear))
    try:
        with quiet():
            for tokens in prompts[:LAYER_PROMPTS]:
                reference(torch.from_numpy(tokens)[None])
    finally:
        for hook in hooks:
            hook.remove()
    return [
        LayerError(name, apart / count, apart / size if size else 0.0) for name, (apart, size, count) in sums.items()
    ]


def free_running(reference: Any, candidate: Any, prompts: Sequence[Tokens]) -> list[int]:
    """Tokens until two greedy continuations of a prompt's beginning differ."""
    found = []
    for tokens in prompts[:FREE_PROMPTS]:
        one, other = (_continued(model, tokens[:FREE_START]) for model in (reference, candidate))
        found.append(compare.first_difference(one, other))
    return found


def function(
    reference: Runs,
    candidate: Runs,
    scores: Sequence[Prompt],
    floor: Sequence[Prompt],
    layers: list[LayerError],
    free: list[int],
    rng: np.random.Generator,
) -> CausalLmFunction:
    found, perplexity = agreement(scores, rng)
    streams = [one.reference for one in scores], [one.candidate for one in scores]
    return CausalLmFunction(
        prompts=len(scores),
        agreement=found,
        noise_floor=agreement(floor, rng)[0],
        reference_perplexity=perplexity,
        layers=layers,
        divergences=compare.divergences(*streams, at_most=MOST_DIVERGENCES),
        diverged=found.top1.count - round(found.top1.mean * found.top1.count),
        first_divergence=free,
        reference_ms=reference.ms[: len(scores)],
        candidate_ms=candidate.ms[: len(scores)],
    )


def _continued(model: Any, start: Tokens) -> list[int]:
    torch, _ = libraries()
    with quiet():
        given = torch.from_numpy(start)[None]
        out = model.generate(
            given,
            attention_mask=torch.ones_like(given),
            max_new_tokens=FREE_TOKENS,
            do_sample=False,
            pad_token_id=0,
            eos_token_id=None,
        )
    return [int(token) for token in out[0, len(start) :]]


def _perplexity(nll: Sequence[NDArray[np.float64]]) -> float:
    """At most e^700, which a float64 holds."""
    return float(np.exp(min(np.concatenate(nll).mean(), 700.0)))
