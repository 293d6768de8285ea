"""`kmgr witness …`: a member that keeps the grid's log and votes, for grids of two (or four) servers.

Loads little: the daemon's other parts (pages, desktops, images) are never imported by `run`.
"""

import argparse
import sys
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from kmgr import log
from kmgr.cli.options import DataOption, NameOption, SetOption
from kmgr.cli.outcome import guarded
from kmgr.grid.model import ServerRole

DEFAULT_DATA = Path("/var/lib/kmgr-witness")

witness = typer.Typer(no_args_is_help=True, help="A small third member that votes: join and run it.")


def main() -> None:
    """Run `kmgr witness` by itself."""
    words = sys.argv[2:]
    if words[:1] == ["run"] and "--help" not in words:
        # Typer loads all of pydantic where that is installed, which is a tenth of what a witness may use.
        given = _daemon_options().parse_args(words[1:])
        sys.exit(guarded(lambda: run(given.data, given.log_level)))
    sys.exit(guarded(lambda: witness(words, prog_name="kmgr witness")))


@witness.command("join")
def join(
    name: NameOption = "",
    to: Annotated[str, typer.Option("--to", help="Grid address of any server of the grid, host:port.")] = "",
    data: DataOption = DEFAULT_DATA,
    phrase_file: Annotated[
        Path | None, typer.Option("--phrase-file", help="File with the four words ('-': standard input).")
    ] = None,
    sets: SetOption = [],  # noqa: B006 - typer reads the default, nobody writes to it
) -> None:
    """Let this machine join a grid as its witness, by the four words that `kmgr invite` prints on a server."""
    # Joining needs much that running does not.
    import_module("kmgr.cli.found").let_join(
        name, to, data, phrase_file=phrase_file, sets=sets, role=ServerRole.WITNESS
    )


@witness.command("run")
def run(
    data: DataOption = DEFAULT_DATA,
    log_level: Annotated[str, typer.Option("--log-level", help="Overrides log_level of kmgr.toml.")] = "",
) -> None:
    """Run this witness until it is told to stop."""
    log.set_up(log_level or "info")
    import_module("kmgr.daemon.witness").serve(data, log_level=log_level)


def _daemon_options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="kmgr witness run", add_help=False)
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA)
    parser.add_argument("--log-level", default="")
    return parser
