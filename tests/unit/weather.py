"""What can go wrong with the simulated model servers (model_play.py), and how often in one world."""

import random
from collections.abc import Mapping

import msgspec

FAULTS = (
    "slow_unload",  # takes seconds, perhaps beyond the deadline
    "stuck_unload",  # listed as stopping until the weather clears
    "leak",  # unlisted, but its memory stays taken until the weather clears
    "slow_load",
    "failed_load",  # the server says no, after a while
    "stuck_load",  # has memory, and doesn't end until the weather clears
    "hang",  # a question, or an unload, that isn't answered in time; half the time it was heard
    "busy",  # 503
    "stale",  # `loaded` as it was up to STALE_S ago, but for what is being unloaded
)


class Weather(msgspec.Struct):
    """How likely each fault is, per request; all of them end with `clear`."""

    rng: random.Random
    chances: Mapping[str, float] = {}
    clear: bool = False

    def strikes(self, fault: str) -> bool:
        return not self.clear and self.rng.random() < self.chances.get(fault, 0.0)
