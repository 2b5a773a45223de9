"""The job that trains a gate in the worker process, and its weights as a file."""

from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from actors.gate import core, core_mlp
from actors.gate.core_mlp import Mlp
from actors.tensors.checkpoint import open_checkpoint
from actors.tensors.shard_writer import write_arrays
from actors.tensors.stored import read_array


class Trained(msgspec.Struct, frozen=True):
    train_loss: float
    held_out_loss: float
    diverged: bool
    mean_weights: list[float]  # over all prompts of the corpus


def train_job(embeddings: Path, y: NDArray[np.int64], n: int, seed: int, file: Path) -> Iterator[Trained]:
    """embeddings: a file of the prompts', (m, d) float32; y: (m,) their adapters. Writes the gate to `file`."""
    wide = np.load(embeddings).astype(np.float64)
    fit = core_mlp.fit(wide, y, n, seed)
    write_gate(fit.mlp, file)
    with np.errstate(over="ignore", invalid="ignore"):
        mean = core.static_mean(core_mlp.probabilities(fit.mlp, wide), n)
    yield Trained(fit.train_loss, fit.held_out_loss, fit.diverged, mean.tolist())


def write_gate(mlp: Mlp, file: Path) -> None:
    """In float64, as it was trained: the gate that is read gives what the gate that was trained gave."""
    write_arrays(file, dict(zip(Mlp._fields, mlp, strict=True)))


def read_gate(file: Path) -> Mlp:
    """Raises CheckpointError for a file that is no gate."""
    checkpoint = open_checkpoint(file)
    arrays = (np.asarray(read_array(checkpoint.tensor(name)), np.float64) for name in Mlp._fields)
    return Mlp(*arrays)
