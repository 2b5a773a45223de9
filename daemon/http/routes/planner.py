"""The query planner: what it knows of an index, whether it helps, and what it is told to do."""

from daemon.http.route import Call, Route
from schemas.events.planner import (
    ExportPlanner,
    GetPlanner,
    ImportPlanner,
    LearnPlanner,
    PlannerExport,
    PlannerLearned,
    PlannerStatus,
    ResetPlanner,
    SetPlanner,
)
from schemas.http import IndexParams, PlannerBody, PlannerStateBody


async def status(call: Call[IndexParams, None]) -> PlannerStatus:
    return await call.ask(GetPlanner(call.params.index))


async def set_mode(call: Call[IndexParams, PlannerBody]) -> PlannerStatus:
    return await call.ask(SetPlanner(call.params.index, call.body.mode))


async def learn(call: Call[IndexParams, None]) -> PlannerLearned:
    return await call.ask(LearnPlanner(call.params.index), long=True)


async def reset(call: Call[IndexParams, None]) -> PlannerStatus:
    return await call.ask(ResetPlanner(call.params.index))


async def export_state(call: Call[IndexParams, None]) -> PlannerExport:
    return await call.ask(ExportPlanner(call.params.index))


async def import_state(call: Call[IndexParams, PlannerStateBody]) -> PlannerStatus:
    return await call.ask(ImportPlanner(call.params.index, call.body.state))


ROUTES = [
    Route("GET", "/planner/{index}", status, "What the planner knows of an index, and whether it helps"),
    Route("PUT", "/planner/{index}", set_mode, "Have it off, in shadow, or on"),
    Route("POST", "/planner/{index}/learn", learn, "Run a background cycle now"),
    Route("POST", "/planner/{index}/reset", reset, "Forget what was learnt of an index"),
    Route("POST", "/planner/{index}/export", export_state, "What was learnt, to be imported elsewhere"),
    Route("POST", "/planner/{index}/import", import_state, "Take over what was exported; it starts in shadow"),
]
