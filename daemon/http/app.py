"""The aiohttp application: the table of routes, one border round all of them.

Around every request, in this order: guard, decode, handler, encode, count. What is raised on
the way becomes an answer in errors.py.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import Any

import msgspec
from aiohttp import web

from daemon.http import errors
from daemon.http.fields import body_decoder, converted
from daemon.http.guard import Guard
from daemon.http.route import Call, Route, Services
from daemon.http.routes import ROUTES
from daemon.http.silent import Silent
from daemon.within import within

Endpoint = Callable[[web.Request], Awaitable[web.StreamResponse]]

_JSON = {"Content-Type": "application/json"}
_encode = msgspec.json.Encoder(enc_hook=str).encode  # enc_hook: values of a dataset's own types


def build(services: Services, guard: Guard, silent: Silent) -> web.Application:
    """The application over the whole table."""
    app = web.Application(
        middlewares=[_border(guard, silent, services)], client_max_size=services.config.max_body_mb * 1024 * 1024
    )
    for route in ROUTES:
        path = re.sub(r"{(\w+)}", r"{\1:[^/]+}", route.path)  # aiohttp's own pattern has no place for braces
        app.router.add_route(route.method, path, _endpoint(route, services))

    async def closing(_: web.Application) -> None:
        services.closing.begin()

    app.on_shutdown.append(closing)
    return app


def _border(guard: Guard, silent: Silent, services: Services) -> Any:
    metrics = services.metrics

    @web.middleware
    async def border(request: web.Request, handler: Endpoint) -> web.StreamResponse:
        began = perf_counter()
        silent.asked(request)
        try:
            guard.check(request)
            response = await handler(request)
        except (ConnectionError, asyncio.CancelledError):
            raise  # the client went away, or the server stops: there is nobody to answer
        except Exception as error:
            response = errors.answer(error)
        resource = request.match_info.route.resource
        path = resource.canonical if resource is not None else "unknown"
        metrics.request(request.method, path, response.status, perf_counter() - began)
        return response

    return border


def _endpoint(route: Route, services: Services) -> Endpoint:
    handler, status, params, body = route.handler, route.status, route.params, route.body
    no_params = params() if not params.__struct_fields__ else None
    decoder = body_decoder(body) if body is not None else None
    upload = route.upload
    timeout_s = services.config.read_timeout_s

    async def endpoint(request: web.Request) -> web.StreamResponse:
        if no_params is not None and not request.query_string:
            given = no_params
        else:
            given = converted({**request.query, **request.match_info}, params)
        if upload is not None and request.content_type.startswith("multipart/"):
            answer = await upload(Call(services, request, given, None))
        elif decoder is None:
            answer = await handler(Call(services, request, given, None))
        else:
            raw = await within(timeout_s, request.read())
            answer = await handler(Call(services, request, given, decoder(raw)))
        if isinstance(answer, web.StreamResponse):
            return answer
        return web.Response(body=_encode(answer), status=status, headers=_JSON)

    return endpoint
