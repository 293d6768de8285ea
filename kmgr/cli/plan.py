"""`kmgr plan`: what the balancer would do on a grid that a text file describes; touches no grid."""

from pathlib import Path
from typing import Annotated

import typer

from kmgr.balancer import describe
from kmgr.balancer.plan import plan as decide
from kmgr.balancer.redundancy import can_lose_one
from kmgr.errors import Refused


def plan(
    file: Annotated[Path, typer.Argument(help="The description: one server, template or desktop a line.")],
) -> None:
    """Print what the balancer would do on the grid that a text file describes."""
    try:
        text = file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise Refused(f"{file} cannot be read: {error}") from error
    view = describe.parse(text)
    for line in describe.tell(decide(view), view):
        print(line)
    told = can_lose_one(view, [server.id for server in view.servers])
    print()
    for sentence in told.sentences:
        print(sentence if told.ok else f"! {sentence}")
