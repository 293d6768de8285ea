"""The `kmgr` command: one page of help; `outcome` has its exit statuses."""

import sys

import typer

from kmgr import __version__
from kmgr.cli import found, grid, images, operate, plan, run, servers, witness
from kmgr.cli.outcome import guarded

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Virtual desktops from two or more ordinary KVM servers.",
)


def main() -> None:
    """Run the command line; errors that kmgr raises on purpose become one sentence and an exit status."""
    sys.exit(guarded(app))


@app.command()
def version() -> None:
    """Print the version."""
    print(__version__)


app.add_typer(grid.grid, name="grid")
app.add_typer(images.image, name="image")
app.add_typer(witness.witness, name="witness")
app.command("init")(found.init)
app.command("join")(found.join)
app.command("run")(run.run)
app.command("reset")(grid.reset)
app.command("invite")(operate.invite)
app.command("status")(operate.status)
app.command("drain")(servers.drain)
app.command("undrain")(servers.undrain)
app.command("remove")(servers.remove)
app.command("plan")(plan.plan)
app.command("off")(servers.off)
app.command("set")(operate.change_setting)
app.command("reset-password")(operate.reset_password)
