"""`kmgr run`: the daemon in the foreground, as systemd wants it."""

from typing import Annotated

import typer

from kmgr import log
from kmgr.cli.options import DEFAULT_DATA, DataOption
from kmgr.daemon.serve import serve


def run(
    data: DataOption = DEFAULT_DATA,
    log_level: Annotated[str, typer.Option("--log-level", help="Overrides log_level of kmgr.toml.")] = "",
) -> None:
    """Run this server until it is told to stop; a server without a grid serves the wizard."""
    log.set_up(log_level or "info")
    serve(data, log_level=log_level)
