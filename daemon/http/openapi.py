"""The OpenAPI 3.1 document, generated from the table of routes and the structs in their hints."""

import re
from collections.abc import Iterable, Sequence
from http import HTTPStatus
from typing import Any

import msgspec

from daemon.http.guard import OPEN_PATHS
from daemon.http.route import Route
from schemas.http import ErrorBody
from schemas.secret import schema_hook

REF = "#/components/schemas/{name}"


def document(routes: Sequence[Route], version: str) -> dict[str, Any]:
    """The whole document as plain values."""
    types = [ErrorBody, *_types(routes)]
    schemas, components = msgspec.json.schema_components(types, ref_template=REF, schema_hook=schema_hook)
    _free_tags(components)
    by_type = dict(zip(types, schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, by_type)
    return {
        "openapi": "3.1.0",
        "info": {"title": "lakehouse", "version": version},
        "paths": paths,
        "components": {"schemas": components, "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
        "security": [{"token": []}],
    }


def _free_tags(components: dict[str, Any]) -> None:
    """Of what requests are made of, a part needn't say what it is, unless it may be one of several."""
    told_apart = set(re.findall(r"'(#/components/schemas/\w+)'", str(_discriminators(components))))
    for name, part in components.items():
        if part.get("additionalProperties") is False and REF.format(name=name) not in told_apart:
            fields = part["properties"]
            part["required"] = [field for field in part["required"] if len(fields[field].get("enum", ())) != 1]


def _discriminators(value: Any) -> list[Any]:
    if isinstance(value, dict):
        own = [value["discriminator"]] if "discriminator" in value else []
        return own + [found for inner in value.values() for found in _discriminators(inner)]
    return [found for inner in value for found in _discriminators(inner)] if isinstance(value, list) else []


def _types(routes: Iterable[Route]) -> list[Any]:
    found: list[Any] = []
    for route in routes:
        for kind in (route.body, route.reply, route.items, route.accepted):
            if kind is not None and kind not in found:
                found.append(kind)
    return found


def _operation(route: Route, by_type: dict[Any, Any]) -> dict[str, Any]:
    content = by_type[route.items] if route.items else by_type.get(route.reply, {"type": "string"})
    operation: dict[str, Any] = {
        "summary": route.summary,
        "operationId": route.handler.__name__,
        "responses": {
            str(route.status): {
                "description": HTTPStatus(route.status).phrase,
                "content": {route.media: {"schema": content}},
            },
            "default": {
                "description": "refused, or failed",
                "content": {"application/json": {"schema": by_type[ErrorBody]}},
            },
        },
    }
    if route.accepted is not None:
        operation["responses"]["202"] = {
            "description": HTTPStatus.ACCEPTED.phrase,
            "content": {"application/json": {"schema": by_type[route.accepted]}},
        }
    if parameters := _parameters(route):
        operation["parameters"] = parameters
    if route.body is not None:
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": by_type[route.body]}}}
    if route.path in OPEN_PATHS:
        operation["security"] = []
    return operation


def _parameters(route: Route) -> list[dict[str, Any]]:
    in_path = set(re.findall(r"{(\w+)}", route.path))
    schema = msgspec.json.schema(route.params)["$defs"][route.params.__name__]
    return [
        {
            "name": name,
            "in": "path" if name in in_path else "query",
            "required": name in schema.get("required", []),
            "schema": field,
        }
        for name, field in schema["properties"].items()
    ]
