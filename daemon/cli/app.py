"""The list of commands and the one place where errors become a sentence and an exit code:
0 done, 1 failed, 2 used wrongly, 130 interrupted.

Commands are named by import path, so that `lakehouse --help` loads none of them; their help
line here is the one that the list shows.
"""

import os
import sys
from collections.abc import Sequence
from importlib.metadata import version

import cyclopts
from rich.console import Console
from rich.markup import escape

from daemon.cli.errors import FAILURE, INTERRUPTED, WRONG_USE, CliError
from daemon.config import ConfigError

DAEMON, DATA, INDEXES, TUNING = "The daemon", "Data", "Indexes", "Tuning"
MODELS, CODECS, WATCHING = "Models", "Codecs", "Watching"

COMMANDS = {
    DAEMON: {
        "run": ("process:run", "Start the daemon and stay in the foreground."),
        "init": ("process:init", "Write lakehouse.toml and make the state directory."),
        "check-config": ("process:check_config", "Say what is wrong with lakehouse.toml, or that nothing is."),
        "repair": ("process:repair", "Rebuild document heads from the buckets; the daemon must be stopped."),
        "demo": ("process:demo", "Do the main job on the documentation of this machine's Python packages."),
        "env": ("process:env", 'Print URLs and token files for the shell: eval "$(lakehouse env)".'),
        "topology": ("process:topology", "Print the wiring of actors and messages as a mermaid diagram."),
        "asyncapi": ("process:asyncapi", "Print the bus's contract as an AsyncAPI document."),
    },
    DATA: {
        "ingest": ("data:ingest", "Read files (CSV, JSON lines, Parquet, Arrow) or a database into a dataset."),
        "sql": ("sql:sql", "Ask in SQL over datasets, trials, promotions, rejects, lineage …"),
        "lineage": ("lineage:lineage", "Show where a dataset or an index came from, and what came of it."),
        "datasets": ("data:app", "List, show, move or drop datasets."),
        "bucket": ("bucket:app", "List, add, show or remove buckets."),
    },
    INDEXES: {
        "indexes": ("index:indexes", "List indexes."),
        "index": ("index:app", "Create, show, rebuild, move or drop an index, say what serves it."),
        "search": ("search:search", "Find the nearest rows to a text or a vector."),
        "lance": ("lance:app", "Keep an index on disk or S3 with Lance: migrate, search, append, optimise."),
    },
    TUNING: {
        "tune": ("tuning:tune", "Tune an index now and watch it."),
        "enqueue": ("tuning:enqueue", "Have the agent tune an index when its turn comes."),
        "agent": ("tuning:agent", "Show the agent's queue, running trial, budget and decisions."),
        "trials": ("tuning:trials", "List what was tried on an index."),
        "replay": ("tuning:replay", "Prove from the journal that the agent's proposals follow from it."),
        "promoted": ("promotion:promoted", "Show the current configuration of an index and its history."),
        "promote": ("promotion:promote", "Make a trial's configuration current."),
        "rollback": ("promotion:rollback", "Go back to the configuration before."),
        "planner": ("planner:app", "Show or steer the query planner of an index: learned search parameters."),
        "why": ("promotion:why", "Walk back from the live configuration to the data that caused it."),
    },
    MODELS: {
        "gate": ("gate:app", "Learn which LoRA adapter a prompt wants; route by it, or freeze a mix of adapters."),
        "profile": ("profile:app", "Keep model profiles, activate one on the GPU, search with one."),
        "vram": ("vram:vram", "Show the GPU's memory: what is in it, and for how long."),
        "preload": ("vram:preload", "Load a model beside what is there."),
        "unload": ("vram:unload", "Take a model out of memory."),
    },
    CODECS: {
        "codec": ("codec:app", "Compress tensors and vectors, certify what that does to them, put it to use."),
    },
    WATCHING: {
        "status": ("watching:status", "Show what runs and how it is."),
        "events": ("watching:events", "Print events as they happen."),
        "dead": ("watching:dead", "List, show, retry or drop dead letters."),
    },
}


def build(words: Sequence[str] = ()) -> cyclopts.App:
    """The app with every command registered and none imported. The command that `words` name has
    its own help, which says more than its line in the list."""
    app = cyclopts.App(
        name="lakehouse",
        help="Vector indexes over your own data that tune themselves.",
        help_epilogue="`--debug` with any command shows the traceback of an internal error.",
        version=lambda: version("lakehouse"),
    )
    for group, commands in COMMANDS.items():
        panel = cyclopts.Group(group, sort_key=list(COMMANDS).index(group))
        for name, (target, help_line) in commands.items():
            app.command(f"daemon.cli.{target}", name=name, help=None if name in words else help_line, group=panel)
    app.register_install_completion_command()
    return app


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one command and exits."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    if debug:
        words.remove("--debug")
    sys.exit(_run(words, debug))


def _run(words: list[str], debug: bool) -> int:
    try:
        result = build(words)(words, exit_on_error=False, print_error=False, result_action="return_value")
        sys.stdout.flush()
    except CliError as error:
        return _complain(str(error), error.hint, error.code)
    except cyclopts.CycloptsError as error:
        return _complain(_words_of(error), f"`{_command_of(error)} --help` shows how it is used", WRONG_USE)
    except ConfigError as error:
        return _complain(str(error), "", FAILURE)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # the reader of a pipe had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if debug:
            raise
        what = f"internal error: {type(error).__name__}: {error}".splitlines()[0]
        return _complain(what, "run it again with --debug for the traceback", FAILURE)
    return result if isinstance(result, int) else 0


def _complain(sentence: str, hint: str, code: int) -> int:
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print(f"[red]{escape(sentence)}[/red]")
    if hint:
        console.print(f"[dim]hint: {escape(hint)}[/dim]")
    return code


def _words_of(error: cyclopts.CycloptsError) -> str:
    if isinstance(error, cyclopts.UnusedCliTokensError):
        return f"{_command_of(error)} takes no {' '.join(map(repr, error.unused_tokens or ()))}."
    return " ".join(str(error).split())


def _command_of(error: cyclopts.CycloptsError) -> str:
    return " ".join(["lakehouse", *(error.command_chain or ())])
