"""Every route there is, by domain. A test holds this table and the OpenAPI document together."""

from daemon.http.routes import datasets, events, indexes, operations, promotion, tuning

ROUTES = [*operations.ROUTES, *datasets.ROUTES, *indexes.ROUTES, *tuning.ROUTES, *promotion.ROUTES, *events.ROUTES]
