"""What figures of codecs are made with: versions of this package and of what it computes with."""

from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any, cast

import numpy as np

from schemas.codec import Versions


@cache
def versions(*, models: bool = False) -> Versions:
    """models: with those of torch and transformers, for certificates of models."""
    config = cast(dict[str, Any], np.show_config(mode="dicts"))
    blas = config.get("Build Dependencies", {}).get("blas", {})
    return Versions(
        lakehouse=_version("lakehouse"),
        numpy=np.__version__,
        blas=f"{blas.get('name', '')} {blas.get('version', '')}".strip(),
        torch=_version("torch") if models else "",
        transformers=_version("transformers") if models else "",
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
