"""`kmgr witness …`: a member that keeps the grid's log and votes, for grids of two (or four) servers.

`run` comes here only to be explained: `witness_run` does it, without all the rest.
"""

import sys
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from kmgr.cli.options import DataOption, NameOption, SetOption
from kmgr.cli.outcome import guarded
from kmgr.cli.witness_run import DEFAULT_DATA, run_witness
from kmgr.grid.model import ServerRole

witness = typer.Typer(no_args_is_help=True, help="A small third member that votes: join and run it.")


def main() -> None:
    """Run `kmgr witness` by itself."""
    sys.exit(guarded(lambda: witness(sys.argv[2:], prog_name="kmgr witness")))


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
    run_witness(data, log_level)
