"""One batch ahead: while rows are staged, the server sends the next ones; while they are written, the
next ones are read. Both sides are C that lets go of the interpreter's lock, so a thread is enough."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def ahead(items: Iterator[T]) -> Iterator[T]:
    """The items, the next of them being fetched in a thread of its own. What `items` raises is raised
    here. Closed early, it waits for the one that is under way."""
    done = object()
    with ThreadPoolExecutor(1, "ahead") as thread:
        coming = thread.submit(next, items, done)
        while (item := coming.result()) is not done:
            coming = thread.submit(next, items, done)
            yield item  # type: ignore[misc]
