"""A real S3 API for tests: moto's server in a thread, on a free loopback port, with a bucket named `bucket`.

`stopped` takes it away, as a network does; it comes back on the same port with the same objects, because moto keeps
them in this process.
"""

import logging
import socket
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import boto3
import obstore
from moto.server import ThreadedMotoServer
from obstore.store import S3Store

BUCKET = "bucket"
KEYS = {"access_key_id": "key", "secret_access_key": "secret", "region": "us-east-1"}


class S3Api:
    """A running server, and the options that reach it."""

    def __init__(self) -> None:
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self.options = {**KEYS, "endpoint": self.endpoint}
        self.start()

    def start(self) -> None:
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=self.port, verbose=False)
        self._server.start()

    def stop(self) -> None:
        """Take it away; `start` brings it back as it was."""
        self._server.stop()

    def put(self, key: str, data: bytes) -> None:
        obstore.put(self._store(), key, data)

    def keys(self) -> list[str]:
        return [meta["path"] for batch in obstore.list(self._store()) for meta in batch]

    def _store(self) -> S3Store:
        return S3Store(BUCKET, config=self.options, client_options={"allow_http": True})  # type: ignore[arg-type]


@contextmanager
def s3_api() -> Iterator[S3Api]:
    """A server with nothing in it but an empty bucket named `bucket`."""
    api = S3Api()
    try:
        client = boto3.client(
            "s3",
            endpoint_url=api.endpoint,
            region_name=KEYS["region"],
            aws_access_key_id=KEYS["access_key_id"],
            aws_secret_access_key=KEYS["secret_access_key"],
        )
        _reset(api)
        client.create_bucket(Bucket=BUCKET)
        client.close()
        yield api
    finally:
        api.stop()


def _reset(api: S3Api) -> None:
    """moto keeps one state per process: what an earlier test left goes."""
    with urllib.request.urlopen(urllib.request.Request(f"{api.endpoint}/moto-api/reset", method="POST")) as answer:
        answer.read()
