"""How long a command takes to start: wall time of a whole process, the best and the median of
ten, beside an empty Python process and one that imports what the daemon does."""

import statistics
import subprocess
import sys
import time

from rich.console import Console
from rich.table import Table

RUNS = 10
CASES = {
    "python -c pass": ["-c", "pass"],
    "lakehouse --help": ["-m", "daemon", "--help"],
    "lakehouse check-config": ["-m", "daemon", "check-config"],
    "lakehouse status (no daemon)": [
        "-m",
        "daemon",
        "status",
        "--url",
        "http://127.0.0.1:1",
        "--token-file",
        "/dev/null",
    ],
    "python -c 'import daemon.service'": ["-c", "import daemon.service"],
}


def milliseconds(arguments: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, *arguments], capture_output=True)
    return (time.perf_counter() - began) * 1000


def main() -> None:
    table = Table("command", "best, ms", "median, ms", title="Start-up; goal under 500 ms")
    for name, arguments in CASES.items():
        times = [milliseconds(arguments) for _ in range(RUNS)]
        table.add_row(name, f"{min(times):.0f}", f"{statistics.median(times):.0f}")
    Console().print(table)


if __name__ == "__main__":
    main()
