"""The `kmgr` command: one page of help; `outcome` has its exit statuses.

Only the part that the first word names is loaded: the daemon's parts take a second of a processor, `kmgr status` a
tenth of one.
"""

import sys
from importlib import import_module

import typer

from kmgr import __version__
from kmgr.cli.outcome import guarded

# Where each command lives, in the order of the help page: word -> module of this package and function.
_COMMANDS = {
    "init": ("found", "init"),
    "join": ("found", "join"),
    "run": ("run", "run"),
    "reset": ("grid", "reset"),
    "invite": ("operate", "invite"),
    "status": ("operate", "status"),
    "drain": ("servers", "drain"),
    "undrain": ("servers", "undrain"),
    "remove": ("servers", "remove"),
    "plan": ("plan", "plan"),
    "off": ("servers", "off"),
    "set": ("operate", "change_setting"),
    "reset-password": ("operate", "reset_password"),
}
# The same for words that have commands of their own.
_GROUPS = {"grid": ("grid", "grid"), "image": ("images", "image"), "witness": ("witness", "witness")}


def main() -> None:
    """Run the command line; errors that kmgr raises on purpose become one sentence and an exit status."""
    sys.exit(guarded(_run))


def _run() -> None:
    # Loading a part may fail as well: an installation that is damaged is told as such.
    command_line(sys.argv[1:])()


def command_line(words: list[str]) -> typer.Typer:
    """Return the command line for these words; all of it is loaded unless the first is a command's name."""
    first = words[0] if words else ""
    known = first in (*_COMMANDS, *_GROUPS, "version")
    app = typer.Typer(
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        help="Virtual desktops from two or more ordinary KVM servers.",
    )
    app.callback()(_together)
    app.command("version")(version)
    for name, (module, function) in _COMMANDS.items():
        if name == first or not known:
            app.command(name)(getattr(import_module(f"kmgr.cli.{module}"), function))
    for name, (module, group) in _GROUPS.items():
        if name == first or not known:
            app.add_typer(getattr(import_module(f"kmgr.cli.{module}"), group), name=name)
    return app


def version() -> None:
    """Print the version."""
    print(__version__)


def _together() -> None:
    """Keep commands a group where only one of them is loaded; Typer would make it the whole command line."""
