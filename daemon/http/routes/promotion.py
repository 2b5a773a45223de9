"""Promotion: what is current, what was, and why. Durable when the answer comes."""

from daemon.http.route import Call, Route, message
from schemas.events.promotion import (
    ConfigPromoted,
    GetPromoted,
    Promote,
    PromotionCleared,
    PromotionState,
    Rollback,
    Why,
    WhyChain,
)
from schemas.http import IndexParams, PromoteParams, RollbackParams


async def promote(call: Call[PromoteParams, None]) -> ConfigPromoted:
    p = call.params
    return await call.ask(message(Promote, p, trial=p.trial_id))


async def rollback(call: Call[RollbackParams, None]) -> ConfigPromoted | PromotionCleared:
    p = call.params
    return await call.ask(Rollback(p.index, p.reason, p.promoted_by, p.generation))


async def promoted(call: Call[IndexParams, None]) -> PromotionState:
    return await call.ask(GetPromoted(call.params.index))


async def why(call: Call[IndexParams, None]) -> WhyChain:
    return await call.ask(Why(call.params.index))


ROUTES = [
    Route("POST", "/vectors/hnsw/promote/{index}/{trial_id}", promote, "Make a trial's configuration current"),
    Route("POST", "/vectors/hnsw/rollback/{index}", rollback, "Back to the configuration before"),
    Route("GET", "/vectors/hnsw/promoted/{index}", promoted, "The current promotion and its history"),
    Route("GET", "/vectors/why/{index}", why, "From the live configuration back to the file that caused it"),
]
