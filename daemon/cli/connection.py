"""Where the daemon is and who we are: options that every client command takes, and how they
are found when they aren't given.

    URL    --url, $LAKEHOUSE_URL, else runtime.json of the state directory
    token  --token-file, $LAKEHOUSE_TOKEN_FILE, else admin.token of the state directory
    state  --state-dir, $LAKEHOUSE_STATE_DIR, else what lakehouse.toml says

A --state-dir on the command line names a daemon: what the shell exports of another one's URL
and token then counts for nothing.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Group, Parameter

from daemon.cli.errors import CliError
from daemon.config import load
from daemon.state_dir import Runtime, StateDir

CONNECTION = Group("Connection", sort_key=90)


@Parameter(name="*", group=CONNECTION)
@dataclass(frozen=True, kw_only=True)
class Place:
    """A daemon of this machine, by its state directory."""

    state_dir: Annotated[Path | None, Parameter(env_var="LAKEHOUSE_STATE_DIR")] = None
    """State directory of a daemon on this machine."""
    config: Annotated[Path | None, Parameter(env_var="LAKEHOUSE_CONFIG")] = None
    """Configuration file, to find the state directory."""

    @property
    def state(self) -> StateDir:
        """Raises ConfigError."""
        return StateDir(self.state_dir or load(self.config).state_dir)

    def runtime(self) -> Runtime:
        """The note of the running daemon. Raises CliError when none runs."""
        note = self.state.runtime()
        if note is None:
            raise CliError(
                f"No daemon runs on {self.state.path}.",
                "start one with `lakehouse run`, or name another with --url or --state-dir",
            )
        return note


@Parameter(name="*", group=CONNECTION)
@dataclass(frozen=True, kw_only=True)
class Connection(Place):
    url: Annotated[str | None, Parameter(env_var="LAKEHOUSE_URL")] = None
    """Address of the daemon."""
    token_file: Annotated[Path | None, Parameter(env_var="LAKEHOUSE_TOKEN_FILE")] = None
    """File that holds the admin token."""

    def __post_init__(self) -> None:
        if self.state_dir is None or str(self.state_dir) == os.environ.get("LAKEHOUSE_STATE_DIR"):
            return
        for name, variable in (("url", "LAKEHOUSE_URL"), ("token_file", "LAKEHOUSE_TOKEN_FILE")):
            if str(getattr(self, name)) == os.environ.get(variable):
                object.__setattr__(self, name, None)

    def address(self) -> str:
        return (self.url or self.runtime().http_url).rstrip("/")

    def token(self) -> str:
        """Empty when there is no token file and none was named: the daemon will say so."""
        if self.token_file is None and self.url is not None and self.state_dir is None:
            path = self.state.admin_token
            return path.read_text().strip() if path.is_file() else ""
        path = self.token_file or self.state.admin_token
        try:
            return path.read_text().strip()
        except OSError as error:
            raise CliError(
                f"The token file {path} can't be read: {error.strerror}.",
                "run as the daemon's user, or name the file with --token-file",
            ) from None
