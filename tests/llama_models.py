"""A real llama.cpp server on tiny models: a random Llama of two layers and LoRA adapters for it,
written with the `gguf` package, and the process that serves them on a free port.

Its tokens are bytes, so that any text embeds and generates; what it says is noise.
"""

import os
import shutil
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from socket import socket

import numpy as np
from gguf import GGUFEndian, GGUFWriter, PoolingType, TokenType
from numpy.typing import NDArray

VARIABLE = "LAKEHOUSE_LLAMA_SERVER"
"""Names the binary; without it `llama-server` on PATH."""

DIM = 64
LAYERS = 2
HEADS = 4
FEED_FORWARD = 128
CONTEXT = 256
SPECIAL = ["<unk>", "<s>", "</s>"]
VOCABULARY = len(SPECIAL) + 256


def find_llama_server() -> str | None:
    """The binary's path, or None where there is none."""
    if named := os.environ.get(VARIABLE):
        return named
    return shutil.which("llama-server")


def write_tiny_gguf(path: Path, *, seed: int = 0, dim: int = DIM) -> Path:
    """A random Llama with byte tokens: 470 KB for 64 dimensions."""
    random = np.random.default_rng(seed)
    writer = GGUFWriter(path, "llama", endianess=GGUFEndian.LITTLE)
    writer.add_name(path.stem)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(dim)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(dim // HEADS)
    writer.add_pooling_type(PoolingType.MEAN)
    writer.add_vocab_size(VOCABULARY)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))])
    writer.add_token_scores([0.0] * VOCABULARY)
    writer.add_token_types([TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL] + [TokenType.BYTE] * 256)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)

    def normal(rows: int, columns: int) -> NDArray[np.float32]:
        return (random.standard_normal((rows, columns)) / np.sqrt(columns)).astype(np.float32)

    # The first component of every state is large and positive, and tokens that print nothing are
    # against it: what the model writes is as many letters as it may write tokens, and never ends.
    states, letters = normal(VOCABULARY, dim), normal(VOCABULARY, dim)
    states[:, 0] = 2.0
    printable = len(SPECIAL) + np.arange(0x20, 0x7F)
    letters[:, 0] = -20.0
    letters[printable, 0] = 0.0
    writer.add_tensor("output_norm.weight", np.ones(dim, np.float32))
    writer.add_tensor("token_embd.weight", states)
    writer.add_tensor("output.weight", letters)
    for layer in range(LAYERS):
        for norm in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{norm}.weight", np.ones(dim, np.float32))
        for attention in ("attn_q", "attn_k", "attn_v", "attn_output"):
            writer.add_tensor(f"blk.{layer}.{attention}.weight", normal(dim, dim))
        writer.add_tensor(f"blk.{layer}.ffn_gate.weight", normal(FEED_FORWARD, dim))
        writer.add_tensor(f"blk.{layer}.ffn_up.weight", normal(FEED_FORWARD, dim))
        writer.add_tensor(f"blk.{layer}.ffn_down.weight", normal(dim, FEED_FORWARD))
    return _written(writer, path)


def write_tiny_lora(path: Path, *, seed: int = 0, dim: int = DIM, rank: int = 4) -> Path:
    """A random LoRA adapter on the attention outputs of `write_tiny_gguf`'s model; strong enough that
    its scale shows in every vector."""
    random = np.random.default_rng(seed)
    writer = GGUFWriter(path, "llama", endianess=GGUFEndian.LITTLE)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(rank))
    for layer in range(LAYERS):
        down = random.standard_normal((rank, dim))
        up = random.standard_normal((dim, rank))
        writer.add_tensor(f"blk.{layer}.attn_output.weight.lora_a", down.astype(np.float32))
        writer.add_tensor(f"blk.{layer}.attn_output.weight.lora_b", up.astype(np.float32))
    return _written(writer, path)


def _written(writer: GGUFWriter, path: Path) -> Path:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


class LlamaServer:
    """A llama-server process: `pid`, `url`, and its `log`."""

    def __init__(self, process: subprocess.Popen[bytes], url: str, log: Path) -> None:
        self.process = process
        self.pid = process.pid
        self.url = url
        self.log = log


@contextmanager
def llama_server(
    binary: str, directory: Path, arguments: Sequence[str], *, port: int = 0, wait_s: float = 30.0
) -> Iterator[LlamaServer]:
    """Runs `llama-server` on a loopback port (0: a free one), its files in `directory`, until the block
    ends. In router mode its children end with it. Raises AssertionError with its log when it doesn't
    become healthy."""
    directory.mkdir(parents=True, exist_ok=True)
    if not port:
        with socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
    log = directory / "llama-server.log"
    # Its cache is a source of models in router mode: the tests see none of the user's.
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LLAMA_")}
    environment = {**kept, "LLAMA_CACHE": str(directory / "cache"), "HF_HUB_CACHE": str(directory / "cache")}
    command = [binary, "--host", "127.0.0.1", "--port", str(port), "--threads", "1", "--offline", *arguments]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=directory, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
    server = LlamaServer(process, f"http://127.0.0.1:{port}", log)
    try:
        if wait_s:
            _wait_healthy(server, wait_s)
        yield server
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_healthy(server: LlamaServer, wait_s: float) -> None:
    deadline = time.monotonic() + wait_s
    while time.monotonic() < deadline and server.process.poll() is None:
        with suppress(OSError), urllib.request.urlopen(f"{server.url}/health", timeout=1) as answer:
            if answer.status == 200:
                return
        time.sleep(0.01)
    raise AssertionError(
        f"llama-server isn't healthy after {wait_s:g} s:\n{server.log.read_text(errors='replace')[-3000:]}"
    )
