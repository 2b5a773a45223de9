"""Every route there is, by domain. A test holds this table and the OpenAPI document together."""

from daemon.http.routes import (
    admin,
    buckets,
    codecs,
    datasets,
    events,
    gate,
    indexes,
    lance,
    lineage,
    operations,
    planner,
    profiles,
    promotion,
    sql,
    tuning,
)

ROUTES = [
    *operations.ROUTES,
    *datasets.ROUTES,
    *lineage.ROUTES,
    *sql.ROUTES,
    *buckets.ROUTES,
    *indexes.ROUTES,
    *lance.ROUTES,
    *tuning.ROUTES,
    *promotion.ROUTES,
    *planner.ROUTES,
    *profiles.ROUTES,
    *codecs.ROUTES,
    *gate.ROUTES,
    *admin.ROUTES,
    *events.ROUTES,
]
