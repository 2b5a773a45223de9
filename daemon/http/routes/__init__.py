"""Every route there is, by domain. A test holds this table and the OpenAPI document together."""

from daemon.http.routes import (
    admin,
    buckets,
    codecs,
    datasets,
    events,
    indexes,
    operations,
    profiles,
    promotion,
    tuning,
)

ROUTES = [
    *operations.ROUTES,
    *datasets.ROUTES,
    *buckets.ROUTES,
    *indexes.ROUTES,
    *tuning.ROUTES,
    *promotion.ROUTES,
    *profiles.ROUTES,
    *codecs.ROUTES,
    *admin.ROUTES,
    *events.ROUTES,
]
