"""`kmgr witness run` alone: typer and the other commands would take a part of what a witness may use of memory."""

import argparse
import sys
from importlib import import_module
from pathlib import Path

from kmgr import log
from kmgr.cli.outcome import guarded

DEFAULT_DATA = Path("/var/lib/kmgr-witness")


def main() -> None:
    """Run `kmgr witness run` by itself."""
    parser = argparse.ArgumentParser(prog="kmgr witness run", add_help=False)
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA)
    parser.add_argument("--log-level", default="")
    given = parser.parse_args(sys.argv[3:])
    sys.exit(guarded(lambda: run_witness(given.data, given.log_level)))


def run_witness(data: Path, log_level: str) -> None:
    """Run the witness of a data folder until it is told to stop."""
    log.set_up(log_level or "info")
    import_module("kmgr.daemon.witness").serve(data, log_level=log_level)
