"""What every test may rely on: `needs("program")`, which never hides in CI that a test didn't run."""

import os
import shutil
from pathlib import Path
from typing import NoReturn

import pytest

pytest.register_assert_rewrite("tests.contract.model_servers")

PLACES = ("/usr/sbin", "/usr/lib/postgresql/*/bin")
"""Where Debian keeps servers that aren't on everybody's PATH."""


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in item.iter_markers("needs"):
        for program in marker.args:
            if find_program(program) is not None:
                continue
            sentence = f"{program} is not installed (deploy/prerequisites.sh installs it as root)"
            missing(sentence)


def missing(sentence: str) -> NoReturn:
    """What the test needs isn't here: a failure in CI, a visible skip elsewhere."""
    if os.environ.get("CI"):
        pytest.fail(sentence, pytrace=False)
    pytest.skip(sentence)


def find_program(name: str) -> str | None:
    """Its path, or None."""
    if found := shutil.which(name):
        return found
    places = [path for pattern in PLACES for path in Path("/").glob(pattern.lstrip("/"))]
    return next((str(place / name) for place in sorted(places, reverse=True) if (place / name).exists()), None)
