"""The secret that content ids are made with where personal data is masked or left out.

A plain hash of a row would give back what was masked: whoever has the table could hash every phone
number and compare. So these ids are keyed, and the key lies in the state directory, apart from the
buckets. When it is lost a new one is made; rows that come again then get other ids than before.
Each dataset has a key of its own made of it, so that the same row has different ids in two of them.
"""

import os
import secrets
from hashlib import blake2b
from pathlib import Path

from schemas.names import DatasetName

_BYTES = 32


def secret_key(path: Path) -> bytes:
    """The key at the path, made there (mode 0600) when there is none. Raises ValueError when
    there is something else."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        pass
    else:
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(_BYTES))
            file.flush()
            os.fsync(descriptor)
    key = path.read_bytes()
    if len(key) != _BYTES:
        raise ValueError(f"{path} is no key of {_BYTES} bytes; restore it, or remove it and a new one is made")
    return key


def dataset_key(secret: bytes, dataset: DatasetName) -> bytes:
    """The key of a dataset's content ids."""
    return blake2b(dataset.encode(), key=secret, digest_size=_BYTES).digest()
