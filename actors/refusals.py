"""Refusals that more than one actor says."""

from schemas.events.base import Refusal
from schemas.names import IndexName


def no_index(name: IndexName) -> Refusal:
    return Refusal("not_found", f"there is no index {name!r}", "lakehouse indexes lists them")
