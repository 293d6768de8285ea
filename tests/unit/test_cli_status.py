"""`kmgr status`: what somebody sees who has only a terminal, on the worst day."""

from kmgr.cli.operate import told
from kmgr.daemon.local_door import operations
from kmgr.grid.model import Vitals
from kmgr.grid.vitals import Board
from tests.lab.join_lab import A, Office, X


async def shown(office: Office, board: Board) -> dict[str, str]:
    """Return the line of each server, and the first one under ''."""
    answer = await operations(office.grid, office.own, board, clock=office.clock)["status"]({})
    first, *servers = told(answer)
    return {"": first, **{line.split()[0]: line for line in servers}}


async def test_who_does_not_answer_is_shown_also_while_nobody_has_noted_that_it_is_lost(office: Office) -> None:
    await office.beside()
    board, clock = Board(), office.clock
    board.put(Vitals(A, clock.monotonic()))
    lines = await shown(office, board)
    assert lines["a"].endswith("(this server)")
    assert " up " in lines["x"] and lines["x"].endswith("SILENT since kmgr was started here")
    board.put(Vitals(X, clock.monotonic(), problems=["libvirt does not answer"]))
    lines = await shown(office, board)
    assert "SILENT" not in lines["x"]
    assert lines["!"] == "  ! x: libvirt does not answer"
    await clock.advance(130)
    lines = await shown(office, board)
    assert lines["x"].endswith("SILENT for 2 minutes")
    assert "SILENT" not in lines["a"]


def test_a_leader_that_is_not_known_is_called_so() -> None:
    (line,) = told(
        {"grid": "g", "majority": False, "leader": None, "island_since": None, "servers": [], "problems": []}
    )
    assert line == "grid g: HAS NO majority, leader unknown"
