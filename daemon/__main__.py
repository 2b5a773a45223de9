"""`python -m daemon` is `lakehouse`."""

from daemon.cli import main

main()
