"""Follows the agent's campaign on the demo's index from outside, by asking the daemon how it is:
what was live before, what each trial measured, what is promoted in the end."""

import time
from collections.abc import Callable
from typing import Any

import msgspec

from daemon.cli.client import Client
from daemon.cli.errors import CliError
from daemon.cli.output import configuration
from daemon.cli.progress import Bars
from schemas.config import DEFAULT_CONFIG

BEGIN_S = 15.0  # the agent begins by itself, unless it is disabled or has tuned these rows already
IDLE_POLLS = 4  # so often in a row nothing runs or waits: the campaign is over
POLL_S = 0.4
SWAP_S = 180.0

Json = dict[str, Any]


class Outcome:
    """A campaign's figures, as the journal and the promotion's history have them."""

    def __init__(self, points: list[Json], promotions: list[Json]) -> None:
        """points: the campaign's rows, newest first; promotions: of the index, the current one first."""
        trials = {point["trial"] for point in points}
        earlier = [entry["config"] for entry in promotions if entry["trial"] not in trials]
        before = earlier[0] if earlier else msgspec.to_builtins(DEFAULT_CONFIG)
        self.points = points
        self.trials = len(trials)
        self.build_s = sum({point["build"]: point["build_s"] for point in points}.values())
        self.promoted = promotions[0] if promotions else None
        # The journal's newest row comes first; the campaign's first trial is that of the live graph.
        live_points = (p for p in reversed(points) if p["proposer"] == "champion" and same(p, before))
        self.before = next(live_points, None)
        # What tuning ef_search alone gives: the null baseline that a new graph has to beat.
        live = self.before["trial"] if self.before else None
        self.ef_only = next((p for p in points if p["trial"] == live and p["chosen"]), None)
        self.after = next((p for p in points if self.promoted and _is(p, self.promoted)), None)


def _is(point: Json, promoted: Json) -> bool:
    return bool(point["trial"] == promoted["trial"] and same(point, promoted["config"]))


def same(left: Json, right: Json) -> bool:
    """Whether two configurations are one; each may have further fields."""
    return all(left[name] == right[name] for name in ("M", "ef_construction", "ef_search"))


def is_tuned(client: Client, index: str) -> bool:
    """Whether a campaign has measured the index already and none is at work."""
    return bool(client.get(f"/vectors/trials/{index}", limit=1)["points"]) and not _busy(client, index)


def follow(client: Client, index: str, bars: Bars, check: Callable[[], None]) -> None:
    """Waits for the agent's campaign to end, setting one off when it doesn't begin. `check`
    raises when the daemon is gone."""
    began = time.monotonic()
    asked = busy = False
    idle = 0
    while idle < IDLE_POLLS:
        check()
        status = _busy(client, index)
        if status:
            busy, idle = True, 0
            bars.step(0, None, f"tuning: {_doing(status)}")
        elif busy:
            idle += 1
        elif time.monotonic() - began > BEGIN_S and not asked:
            client.post(f"/vectors/agent/enqueue/{index}", reason="demo")
            asked, began = True, time.monotonic()
        elif time.monotonic() - began > BEGIN_S:
            raise CliError(f"The agent didn't begin to tune {index}.", "`lakehouse status` says what is down")
        time.sleep(POLL_S)


def outcome(client: Client, index: str) -> Outcome:
    """The newest campaign's. Raises CliError when it measured nothing."""
    points = client.get(f"/vectors/trials/{index}", limit=1000)["points"]
    if not points:
        decisions = client.get("/vectors/agent/status")["decisions"]
        why = next((d["reason"] for d in decisions if d["index"] == index), "it doesn't say why")
        raise CliError(f"No trial of {index} came to a result: {why}.", "`lakehouse dead list`")
    campaign = points[0]["campaign"]
    state = client.get(f"/vectors/hnsw/promoted/{index}")
    promotions = ([state["current"]] if state["current"] else []) + state["history"]
    return Outcome([point for point in points if point["campaign"] == campaign], promotions)


def wait_for_swap(client: Client, index: str, config: Json, bars: Bars, check: Callable[[], None]) -> int:
    """The generation that serves `config`. Raises CliError when it doesn't come."""
    deadline = time.monotonic() + SWAP_S
    while True:
        check()
        stats = client.get(f"/vectors/indexes/{index}/stats")
        if same(stats["config"], config):
            return int(stats["generation"])
        if time.monotonic() > deadline:
            raise CliError(f"{index} doesn't serve {configuration(config)} after {SWAP_S:.0f} s.", "`lakehouse why`")
        bars.step(0, None, f"swapping to {configuration(config)}")
        time.sleep(POLL_S)


def _busy(client: Client, index: str) -> Json:
    """The running trial, or the place in the queue if its time has come; empty when idle."""
    status = client.get("/vectors/agent/status")
    for running in status["running"]:
        if running["index"] == index:
            return dict(running)
    cooling = status["cooldown_until"].get(index, 0) > time.time()
    return next((dict(place) for place in status["queue"] if place["index"] == index and not cooling), {})


def _doing(status: Json) -> str:
    if "trial" not in status:
        return f"waiting for its turn ({status['reason']})"
    number = status["trial"].rpartition("-")[2].lstrip("0")
    return f"trial {number}, {configuration(status['proposal']['config'])}"
