"""Commands about the process itself, its configuration and its state directory. They don't ask
the daemon over HTTP; `run`, `repair` and `demo` become it."""

import os
import shlex
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from daemon.cli.connection import Place
from daemon.cli.errors import CliError
from daemon.cli.output import Json, console, print_json
from daemon.config import NatsConfig, Role, find_file, load

ConfigFile = Annotated[
    Path | None,
    Parameter(name="--config", env_var="LAKEHOUSE_CONFIG", help="Configuration file; default ./lakehouse.toml."),
]


def run(*, role: Annotated[list[Role] | None, Parameter(negative="")] = None, config: ConfigFile = None) -> int | None:
    """Start the daemon and stay in the foreground.

    Parameters
    ----------
    role
        What runs here: serve, control, work. Given several times; default what the file says.
    """
    settings = load(config)
    # numpy reads it when it is imported. Many BLAS threads for one small query only fight over
    # the cores (a filtered search took 16-28 ms instead of 0.7); big jobs run in the workers.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from daemon import logs, service

    logs.setup(settings.log)
    return service.run(settings, tuple(role or settings.daemon.roles))


def init(folder: Path = Path(), *, force: Annotated[bool, Parameter(negative="")] = False) -> None:
    """Write lakehouse.toml with every key and its default, and make the state directory.

    Parameters
    ----------
    folder
        Where to write it.
    force
        Overwrite a file that is there.
    """
    from daemon.config_file import render

    file = folder / "lakehouse.toml"
    if file.exists() and not force:
        raise CliError(f"{file} is there already.", "--force writes it anew")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(render(), encoding="utf-8")
        state = load(file).state_dir
        state.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise CliError(f"{error.filename} can't be written: {error.strerror}.") from None
    console.print(f"wrote {file} and made {state}; next: lakehouse run --config {file}", soft_wrap=True, markup=False)


def check_config(*, config: ConfigFile = None, json: Json = False) -> None:
    """Say what is wrong with lakehouse.toml, or that nothing is. --json prints what holds."""
    settings = load(config)
    if json:
        print_json(settings)
        return
    file = find_file(config)
    console.print(f"{file} is right" if file else "no lakehouse.toml here: the defaults hold", markup=False)


def repair(*, config: ConfigFile = None) -> int | None:
    """Rebuild document heads from the buckets, saying what is looked at. The daemon must be stopped."""
    settings = load(config)
    from daemon import logs, service

    logs.setup(settings.log)
    return service.repair(settings)


def demo(
    *,
    stay: Annotated[bool, Parameter(negative="")] = False,
    rows: Annotated[int | None, Parameter(validator=Number(gte=1000))] = None,
    config: ConfigFile = None,
) -> int:
    """Ingest the documentation of this machine's Python packages, index, tune, promote, search.

    Starts a daemon if none runs. Run again it does only what is missing.

    Parameters
    ----------
    stay
        Keep a daemon that was started for the demo running until Ctrl-C.
    rows
        At most so many docstrings; default all there are, up to a bound.
    """
    settings = load(config)
    from daemon.demo.run import demo as main_job

    return main_job(state_dir=settings.state_dir, config=find_file(config), stay=stay, rows=rows)


def env(*, token_file: Path | None = None, json: Json = False, at: Place = Place()) -> None:
    """Print where the daemon is for the shell: eval "$(lakehouse env)".

    All of it is the daemon's whose state directory it is; what the shell exports already counts
    for nothing.

    Parameters
    ----------
    token_file
        Where its admin token is, if not in the state directory.
    """
    note, state, settings = at.runtime(), at.state, load(at.config)
    nats = settings.nats if settings.state_dir.absolute() == state.path.absolute() else NatsConfig()
    password = Path(nats.password_file or state.nats_password).absolute()
    values = {
        "LAKEHOUSE_URL": note.http_url,
        "LAKEHOUSE_TOKEN_FILE": str((token_file or state.admin_token).absolute()),
        "NATS_URL": note.nats_url,
    }
    if nats.credentials_file:
        values["NATS_CREDS"] = str(Path(nats.credentials_file).absolute())
    elif password.is_file():
        values |= {"NATS_USER": nats.user, "NATS_PASSWORD_FILE": str(password)}
    if json:
        print_json(values)
        return
    lines = [f"export {name}={shlex.quote(value)}" for name, value in values.items()]
    if "NATS_PASSWORD_FILE" in values:
        lines.append('export NATS_PASSWORD="$(cat "$NATS_PASSWORD_FILE")"')
    lines += [
        'lakehouse_curl() { curl -sS -H "Authorization: Bearer $(cat "$LAKEHOUSE_TOKEN_FILE")" "$@"; }',
        '# then: lakehouse_curl "$LAKEHOUSE_URL/status"; '
        """nats pub lakehouse.cmd.autotune.enqueue '{"index":"docs"}'""",
    ]
    print("\n".join(lines))


def topology(*, json: Json = False) -> None:
    """Print the wiring of actors and messages as a mermaid diagram, or as JSON."""
    from daemon.topology import mermaid, outline
    from daemon.wiring import ACTORS

    print_json(outline(ACTORS)) if json else print(mermaid(ACTORS))


def asyncapi() -> None:
    """Print the bus's contract as an AsyncAPI document."""
    from daemon.topology import asyncapi as document
    from daemon.wiring import ACTORS

    print_json(document(ACTORS))
