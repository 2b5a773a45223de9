"""From what was raised to the answer: one status and one `{error, reason, hint}` body.

The only place where HTTP turns exceptions into statuses. What isn't known here is a 500 with an
id that the log has too; no traceback leaves the process.
"""

import logging
import uuid

import msgspec
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from actors.errors import Conflict, CorruptState, Failed, Poison, Refused, Transient, Unavailable
from schemas.events.base import Refusal
from schemas.http import ErrorBody

log = logging.getLogger(__name__)

STATUS = {
    "malformed": 400,
    "unauthorized": 401,
    "forbidden": 403,
    "not_found": 404,
    "timeout": 408,
    "conflict": 409,
    "busy": 409,
    "too_large": 413,
    "invalid": 422,
    "unavailable": 503,
}


class HttpError(Exception):
    """A request is refused by the HTTP border itself."""

    def __init__(self, error: str, reason: str, hint: str = "", headers: dict[str, str] | None = None) -> None:
        super().__init__(reason)
        self.body = ErrorBody(error, reason, hint)
        self.headers = headers


def answer(error: Exception) -> web.Response:
    """The response for anything raised while a request was answered."""
    match error:
        case HttpError():
            return _response(STATUS[error.body.error], error.body, error.headers)
        case Refused():
            return _refusal(error.refusal)
        case msgspec.DecodeError() if str(error) == "Input data was truncated":  # or there was none
            return _response(400, ErrorBody("malformed", "the body is not JSON: it is empty or breaks off"))
        case msgspec.DecodeError() | UnicodeDecodeError():
            return _response(400, ErrorBody("malformed", f"the body is not JSON: {error}"))
        case RecursionError():  # of msgspec, which follows the C stack no further
            return _response(400, ErrorBody("malformed", "the body is nested too deeply"))
        case web.RequestPayloadError():  # a broken Content-Encoding or chunk
            return _response(400, ErrorBody("malformed", f"the body can't be read: {_words(error)}"))
        case web.HTTPException():
            return _aiohttp(error)
        case Conflict():
            return _response(409, ErrorBody("conflict", str(error), "look again, then repeat the request"))
        case Poison():
            return _response(400, ErrorBody("malformed", str(error)))
        case Transient():
            headers = {"Retry-After": str(max(1, round(error.delay_s)))}
            return _response(503, ErrorBody("unavailable", str(error)), headers)
        case Failed():  # logged where it happened
            return _internal(error.id)
        case Unavailable() | CorruptState():
            return _response(503, ErrorBody("unavailable", str(error)))
        case TimeoutError():
            return _response(408, ErrorBody("timeout", "the request was not received in time"))
    number = uuid.uuid4().hex
    log.error("internal error %s", number, exc_info=error)
    return _internal(number)


def told(error: Exception) -> Refusal:
    """The same as the last line of a stream that had begun."""
    if isinstance(error, Refused):
        return error.refusal
    body = msgspec.json.decode(_bytes(answer(error)), type=ErrorBody)
    return Refusal("unavailable", body.reason, body.hint)


def _bytes(response: web.Response) -> bytes:
    assert isinstance(response.body, bytes)
    return response.body


def _internal(id: str) -> web.Response:
    reason = "something went wrong inside the daemon"
    return _response(500, ErrorBody("internal", reason, f"the log has more under id {id}", id))


def _refusal(refusal: Refusal) -> web.Response:
    body = ErrorBody(refusal.status, refusal.reason, refusal.hint)
    if refusal.retry_after_s is None:
        return _response(STATUS[refusal.status], body)
    status = 429 if refusal.status == "busy" else STATUS[refusal.status]
    return _response(status, body, {"Retry-After": str(max(1, round(refusal.retry_after_s)))})


def _aiohttp(error: web.HTTPException) -> web.Response:
    match error:
        case web.HTTPNotFound():
            return _response(404, ErrorBody("not_found", "there is no such path", "GET / lists what there is"))
        case web.HTTPMethodNotAllowed():
            allowed = ", ".join(sorted(error.allowed_methods))
            body = ErrorBody("method_not_allowed", f"{error.method} is not possible here", f"allowed: {allowed}")
            return _response(405, body, {"Allow": allowed})
        case web.HTTPRequestEntityTooLarge():
            return _response(413, ErrorBody("too_large", "the body is larger than allowed", "[http] max_body_mb"))
    return _response(error.status, ErrorBody("malformed", error.reason or str(error.status)))


def _words(error: Exception) -> str:
    """aiohttp's own words, without its status line."""
    return str(error).partition("message:")[2].strip() or "it ended early"


class ClientMistakes(logging.Filter):
    """Drops what aiohttp logs, traceback and all, when a request isn't HTTP or its client leaves
    in the middle: a port scan must not fill the disk."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        return not isinstance(error, HttpProcessingError | web.RequestPayloadError | ConnectionError)


def _response(status: int, body: ErrorBody, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(
        body=msgspec.json.encode(body), status=status, headers={"Content-Type": "application/json", **(headers or {})}
    )
