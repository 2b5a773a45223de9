"""As much of S3 as the object store client uses, in memory, so that what is said of `s3://`
buckets is tried over HTTP: conditional puts, listing by prefix and delimiter. One bucket a URL's
first part; nobody's signature is checked."""

import hashlib
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from email.utils import formatdate
from xml.sax.saxutils import escape, unescape

from aiohttp import web

OPTIONS = {"region": "r", "access_key_id": "a", "secret_access_key": "b", "virtual_hosted_style_request": "false"}


class S3Server:
    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}  # by `bucket/key`

    async def answer(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        if request.method == "GET" and "list-type" in request.query:
            return self._listed(name.rstrip("/"), request.query.get("prefix", ""), request.query.get("delimiter", ""))
        if request.method == "PUT":
            if request.headers.get("If-None-Match") == "*" and name in self.objects:
                return _failed(412, "PreconditionFailed")
            self.objects[name] = await request.read()
            return web.Response(headers={"ETag": _etag(self.objects[name])})
        if request.method == "DELETE":
            self.objects.pop(name, None)
            return web.Response(status=204)
        if request.method == "POST" and "delete" in request.query:
            gone = re.findall(r"<Key>(.*?)</Key>", await request.text())
            for key in gone:
                self.objects.pop(f"{name.rstrip('/')}/{unescape(key)}", None)
            deleted = "".join(f"<Deleted><Key>{key}</Key></Deleted>" for key in gone)
            return web.Response(text=f"<DeleteResult>{deleted}</DeleteResult>", content_type="application/xml")
        if name not in self.objects:
            return _failed(404, "NoSuchKey")
        body = self.objects[name]
        return web.Response(body=body, headers={"ETag": _etag(body), "Last-Modified": formatdate(0, usegmt=True)})

    def _listed(self, bucket: str, prefix: str, delimiter: str) -> web.Response:
        keys, folders = [], set()
        for name in sorted(self.objects):
            key = name.removeprefix(f"{bucket}/")
            if not name.startswith(f"{bucket}/{prefix}"):
                continue
            head, cut, _ = key[len(prefix) :].partition(delimiter) if delimiter else (key, "", "")
            if cut:
                folders.add(f"{prefix}{head}{delimiter}")
            else:
                keys.append(key)
        contents = "".join(
            f"<Contents><Key>{escape(key)}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
            f"<ETag>{_etag(self.objects[f'{bucket}/{key}'])}</ETag><Size>{len(self.objects[f'{bucket}/{key}'])}</Size>"
            "</Contents>"
            for key in keys
        )
        common = "".join(f"<CommonPrefixes><Prefix>{escape(one)}</Prefix></CommonPrefixes>" for one in sorted(folders))
        body = f"<ListBucketResult><IsTruncated>false</IsTruncated>{contents}{common}</ListBucketResult>"
        return web.Response(text=body, content_type="application/xml")


@asynccontextmanager
async def s3_server() -> AsyncIterator[tuple[S3Server, dict[str, str]]]:
    """A server and the options that reach it."""
    server = S3Server()
    app = web.Application(client_max_size=64 << 20)
    app.router.add_route("*", "/{name:.*}", server.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    try:
        yield server, {**OPTIONS, "endpoint": f"http://{host}:{port}"}
    finally:
        await runner.cleanup()


def _etag(body: bytes) -> str:
    return f'"{hashlib.md5(body).hexdigest()}"'


def _failed(status: int, code: str) -> web.Response:
    body = f"<Error><Code>{code}</Code><Message>{code}</Message></Error>"
    return web.Response(status=status, text=body, content_type="application/xml")
