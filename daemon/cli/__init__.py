"""The command line, `lakehouse`. One module per group of commands, imported when a command of
the group runs; `app.py` lists them all. Everything but `run`, `repair` and `demo` is a thin
client of the HTTP API.
"""

from daemon.cli.app import main

__all__ = ["main"]
