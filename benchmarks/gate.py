"""What routing between LoRA adapters is worth, and what merging them costs.

    python -m benchmarks.gate [--steps 150]      both tables; needs the `cert` extra and peft

Two adapters are trained on a small language model, one on Python code, the other on C headers; texts are held out by
file. Of the held-out text, in which Python is twice as frequent, every other prompt is for choosing weights by loss,
the others are what the table is of. A gate sees a prompt's first tokens alone.
"""

import argparse
import ast
import hashlib
import re
import subprocess
import sys
import sysconfig
import tempfile
import time
import tracemalloc
import warnings
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from actors.gate import core, core_mlp
from actors.gate.adapters import open_adapters
from actors.gate.core_minimise import compass
from actors.gate.merging import Merge, Weighted, write_adapter
from benchmarks.docstrings import fitted
from benchmarks.small_adapters import peft_mix, train_adapter
from benchmarks.small_lm import nodes, small_lm

NAMES = ("python", "c")
CHARS = 400  # of a prompt
SEEN = 12  # tokens of it that the gate sees
TOKENS = 60
TRAIN_PROMPTS = {"python": 240, "c": 120}
HELD_OUT = {"python": 160, "c": 80}


# --- texts --------------------------------------------------------------------------------------


def python_texts() -> Iterator[tuple[str, str]]:
    """(file, function without its docstring)."""
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.glob("*.py")) + sorted(root.glob("[a-z]*/*.py")):
        if {"test", "tests", "site-packages", "idlelib", "lib2to3", "encodings"} & set(path.parts):
            continue
        for node in nodes(path):
            if isinstance(node, ast.FunctionDef) and len(node.body) > 2:
                body = node.body[1:] if ast.get_docstring(node) else node.body
                node.body = body or node.body
                text = ast.unparse(node)
                if len(text) >= 200:
                    yield path.name, text[:CHARS]


def c_texts() -> Iterator[tuple[str, str]]:
    """(file, piece of a header), of Python's own."""
    root = Path(sysconfig.get_path("include"))
    for path in sorted(root.rglob("*.h")):
        text = path.read_text(encoding="utf-8", errors="ignore")
        for piece in re.split(r"\n\n+", text):
            if len(piece) >= 120:
                yield path.name, piece[:CHARS]


def texts(seed: int = 42) -> dict[str, tuple[list[str], list[str]]]:
    """Training and held-out texts of each kind; no file is in both."""
    rng = np.random.default_rng(seed)
    found = {}
    for name, source in zip(NAMES, (python_texts, c_texts), strict=True):
        parts: tuple[list[str], list[str]] = ([], [])
        for file, text in dict.fromkeys(source()):
            parts[hashlib.sha256(file.encode()).digest()[0] % 4 == 0].append(text)
        found[name] = tuple([part[i] for i in rng.permutation(len(part))] for part in parts)
    return found  # type: ignore[return-value]


# --- losses -------------------------------------------------------------------------------------


def losses(steps: int) -> list[tuple[str, str, float]]:
    """(what, weights, loss in nats a token on the test prompts)."""
    from actors.gate.losses import MixedModel

    base = small_lm()
    of = texts()
    with tempfile.TemporaryDirectory() as place:
        folders = {
            name: train_adapter(base, Path(place) / name, of[name][0], steps=steps, seed=seed)
            for seed, name in enumerate(NAMES)
        }
        with MixedModel(base, open_adapters(folders)).hooked() as model:
            return _table(model, of)


def _table(model: Any, of: dict[str, tuple[list[str], list[str]]]) -> list[tuple[str, str, float]]:
    tokenizer = model.tokenizer

    def start_of(text: str) -> str:
        return str(tokenizer.decode(tokenizer(text)["input_ids"][:SEEN]))

    pairs = [
        (start_of(text), number) for number, name in enumerate(NAMES) for text in of[name][0][: TRAIN_PROMPTS[name]]
    ]
    y = np.array([number for _, number in pairs])
    embed = _embedder([prompt for prompt, _ in pairs])
    fit = core_mlp.fit(embed([prompt for prompt, _ in pairs]), y, 2, 42)
    assert not fit.diverged
    mean = core.static_mean(core_mlp.probabilities(fit.mlp, embed([prompt for prompt, _ in pairs])), 2)
    frequency = np.bincount(y) / len(y)

    held = [(text, number) for number, name in enumerate(NAMES) for text in of[name][1][: HELD_OUT[name]]]
    ids = [np.asarray(tokenizer(text)["input_ids"][:TOKENS], np.int64) for text, _ in held]
    choose, test = ids[0::2], ids[1::2]
    output = core_mlp.probabilities(fit.mlp, embed([start_of(text) for text, _ in held[1::2]]))
    truth = np.array([number for _, number in held[1::2]])
    kinds = ", ".join(f"{np.sum(truth == number)} of {name}" for number, name in enumerate(NAMES))
    right = (output.argmax(axis=1) == truth).mean()
    print(f"{len(test)} test prompts ({kinds}); the gate's best adapter is the prompt's own for {right:.1%} of them")

    half, eye = np.full(2, 0.5), np.eye(2)
    simplex, passes = found(compass(lambda w: model.loss(w, choose), [half, *eye], free=False))
    free, more = found(compass(lambda w: model.loss(w, choose), [half, *eye], free=True))
    print(f"static_loss took {passes} passes over {len(choose)} prompts on the simplex, {more} free")

    single = [model.token_losses(row, test) for row in eye]  # sums and counts by prompt
    counts = single[0][1]
    total = counts.sum()

    def chosen(which: np.ndarray) -> float:
        return float(np.where(which == 0, single[0][0], single[1][0]).sum() / total)

    best = int(np.argmin([sums.sum() for sums, _ in single]))
    mixed = sum(float(model.token_losses(row, [one])[0][0]) for row, one in zip(output, test, strict=True)) / total

    def fixed(weights: np.ndarray) -> tuple[str, float]:
        return f"{weights[0]:.2f} {weights[1]:.2f}", model.loss(weights, test)

    return [
        ("base", *fixed(np.zeros(2))),
        *((f"{name} alone" + (" (best single)" if place == best else ""), *fixed(eye[place]))
          for place, name in enumerate(NAMES)),
        ("uniform", *fixed(half)),
        ("class frequency", *fixed(frequency)),
        ("static_mean", *fixed(mean)),
        ("static_loss, simplex", *fixed(simplex)),
        ("static_loss, free", *fixed(free)),
        ("dynamic, floor 0", "by prompt", mixed),
        ("dynamic, top1", "by prompt", chosen(output.argmax(axis=1))),
        ("the prompt's own adapter", "by prompt", chosen(truth)),
    ]  # fmt: skip


def found(search: Generator[int, None, tuple[np.ndarray, float, int]]) -> tuple[np.ndarray, int]:
    """The weights at a search's end, and how many it evaluated."""
    while True:
        try:
            next(search)
        except StopIteration as end:
            return end.value[0], end.value[2]


def _embedder(prompts: list[str]) -> Any:
    """The lexical embedder, its weights learnt from the prompts, as a gate's training does."""
    model = fitted(prompts)
    return lambda texts: model.embed(texts).astype(np.float64)


# --- merging ------------------------------------------------------------------------------------

SIZE = {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 2, "vocab_size": 1000}
RANKS = (32, 64)
MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def merging() -> list[tuple[str, str, str]]:
    """(what, seconds, memory). PEFT has its adapters in memory when the clock starts, we read ours from files."""
    import peft
    import torch
    import transformers

    torch.set_num_threads(1)  # as in the worker process
    with tempfile.TemporaryDirectory() as place:
        base = Path(place) / "base"
        config = transformers.LlamaConfig(num_attention_heads=16, num_key_value_heads=16, **SIZE)
        transformers.LlamaForCausalLM(config).save_pretrained(base)
        from benchmarks.small_adapters import save_random

        folders = {
            f"r{rank}": save_random(base, Path(place) / f"r{rank}", rank, r=rank, lora_alpha=16, target_modules=MODULES)
            for rank in RANKS
        }
        weights = [0.7, 0.4]
        ours, peak = [], 0
        for turn in range(3):
            began = time.perf_counter()
            merge = _merge(folders, weights)
            write_adapter(merge, Path(place) / f"ours{turn}")
            ours.append(time.perf_counter() - began)
        tracemalloc.start()
        write_adapter(_merge(folders, weights), Path(place) / "traced")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        largest = max(4 * merge.ranks[name] * (m.inputs + m.outputs) for name, m in merge.modules.items())
        memory = []
        for _ in range(3):
            began = time.perf_counter()
            merge = _merge(folders, weights)
            kept = [(f.a(), f.b_rows(0, f.outputs)) for f in map(merge.factors, merge.modules)]
            memory.append(time.perf_counter() - began)
            assert len(kept) == len(merge.modules)
        theirs, saving = [], []
        for turn in range(3):
            model = peft_mix(base, folders, weights)
            model.delete_adapter("mix")
            began = time.perf_counter()
            model.add_weighted_adapter(list(folders), weights, "mix", combination_type="cat")
            theirs.append(time.perf_counter() - began)
            model.save_pretrained(str(Path(place) / f"theirs{turn}"), selected_adapters=["mix"])
            saving.append(time.perf_counter() - began)
        assert peft.__version__
        factors = sum(4 * merge.ranks[name] * (m.inputs + m.outputs) for name, m in merge.modules.items())
    return [
        ("PEFT cat, in memory to in memory", f"{min(theirs):.3f} s", f"{factors / 1e6:.0f} MB: every module at once"),
        ("ours, files to memory", f"{min(memory):.3f} s", ""),
        ("PEFT cat, saved", f"{min(saving):.3f} s", "and the base model"),
        ("ours, files to files, checked and synced", f"{min(ours):.3f} s",
         f"{peak / 1e6:.1f} MB: {peak / largest:.2f} × the largest module's {largest / 1e6:.1f} MB"),
    ]  # fmt: skip


def _merge(folders: dict[str, Path], weights: list[float]) -> Merge:
    return Merge([Weighted(each, weight) for each, weight in zip(open_adapters(folders), weights, strict=True)])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--only", choices=["losses", "merging"])
    asked = parser.parse_args()
    if asked.only is None:  # each in a process of its own: their memory is not each other's
        for part in ("losses", "merging"):
            subprocess.run(
                [sys.executable, "-m", "benchmarks.gate", "--only", part, "--steps", str(asked.steps)], check=True
            )
        return
    warnings.simplefilter("ignore")
    if asked.only == "losses":
        rows = losses(asked.steps)
        print(f"\n{'weights':<34}{' '.join(NAMES):>12}{'nats a token':>14}{'perplexity':>12}")
        for what, weights, loss in rows:
            print(f"{what:<34}{weights:>12}{loss:>14.4f}{np.exp(loss):>12.2f}")
    else:
        print(f"\n{len(MODULES) * SIZE['num_hidden_layers']} modules, ranks {' and '.join(map(str, RANKS))}")
        for what, took, memory in merging():
            print(f"{what:<44}{took:>10}  {memory}")


if __name__ == "__main__":
    main()
