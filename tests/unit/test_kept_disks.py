"""A disk that somebody's desktop can go on from is not removed, whatever else happens to its servers."""

from pathlib import Path

import pytest

from kmgr.grid.envelope import Applied
from kmgr.grid.queries import server
from kmgr.ids import DesktopId, ServerId
from tests.lab.cut_points import Table
from tests.lab.outcomes import why
from tests.lab.provision import A, B, done
from tests.lab.state import State

ONE, TWO, THREE = (ServerId(f"srv-{letter}") for letter in "abc")
D1 = DesktopId("d-1")


def bereft(disk: str, generation: int, on: ServerId = ONE) -> tuple[State, str]:
    """Return a grid from which the server of Anna's desktop (generation 2) was removed; one of its disks is left."""
    state = State()
    for name in "abc":
        state.server(name)
    state.template("own", kind="personal")
    desktop = state.desktop("tpl-own", TWO, "in_use")
    state.db.execute("update desktops set kind = 'personal', user = 'anna', generation = 2 where id = ?", [desktop])
    state.db.execute("insert into copies values (?, ?, ?, ?, 5, 1, 1)", [desktop, on, generation, disk])
    state.do("server.remove", server=TWO)
    return state, desktop


@pytest.mark.parametrize(
    ("disk", "generation", "words"),
    [("left", 1, "put it back, or delete it"), ("superseded", 1, "put it back"), ("ready", 2, "goes on from that")],
)
def test_a_desktop_is_not_forgotten_while_it_can_go_on_from_something(disk: str, generation: int, words: str) -> None:
    state, desktop = bereft(disk, generation)
    assert words in why(state.do("desktop.forget", desktop=desktop))


@pytest.mark.parametrize(
    ("disk", "generation", "on"), [("ready", 1, ONE), ("wanted", 2, ONE), ("dropping", 2, ONE), ("left", 1, TWO)]
)
def test_it_is_forgotten_if_there_is_nothing_to_go_on_from(disk: str, generation: int, on: ServerId) -> None:
    state, desktop = bereft(disk, generation, on)
    assert isinstance(state.do("desktop.forget", desktop=desktop), Applied)


def test_a_desktop_that_is_still_being_started_from_another_disk_does_not_move() -> None:
    state = State()
    for name in "abc":
        state.server(name)
    state.version("ver-1", [ONE, TWO, THREE])
    state.template("own", kind="personal")
    desktop = state.desktop("tpl-own", TWO, "in_use")
    state.db.execute("update desktops set kind = 'personal', user = 'anna', generation = 2 where id = ?", [desktop])
    state.db.execute("insert into copies values (?, ?, 1, 'starting', 5, 1, 1)", [desktop, TWO])
    body = {"desktop": desktop, "generation": 2, "server": TWO, "target": THREE, "why": "balance"}
    assert "being started from another disk" in why(state.do("desktop.move", **body))
    state.db.execute("delete from copies")
    assert isinstance(state.do("desktop.move", **body), Applied)


async def put_back(table: Table) -> None:
    """Bea's desktop was taken over by b and is put back on a, before a's daemon has looked at its domains again."""
    done(await table.do("copy.assign", desktop=D1, generation=1, server=B))
    point = {"desktop": D1, "generation": 1, "server": B, "as_of": 1, "bytes": 5}
    done(await table.do("copy.points", server=A, points=[point]))
    done(await table.do("server.lost", server=A))
    with table.grid.view() as db:
        lost = server(db, A)
    assert lost is not None
    body = {"desktop": D1, "generation": 1, "server": A, "lost_at": lost.changed_at, "target": B}
    done(await table.do("desktop.take_over", **body))
    done(await table.do("copy.promoted", desktop=D1, generation=2, server=B, as_of=1))
    done(await table.do("server.up", server=A))
    done(await table.do("desktop.put_back", desktop=D1, generation=2, server=A, disk=1))
    done(await table.do("desktop.put_aside", desktop=D1, generation=3, server=B))


async def test_a_disk_that_is_put_back_before_it_was_set_aside_is_the_desktops_again(tmp_path: Path) -> None:
    table = Table(tmp_path)
    table.member(B)
    await table.found(kind="personal")
    done(await table.place(D1))
    await table.live(14)
    done(await table.do("desktop.claim", user="bea", template="tpl"))
    disk = table.overlay(D1).stat().st_ino
    await put_back(table)
    await table.live_on(20)
    assert table.one(D1).cause == ""
    assert table.overlay(D1).stat().st_ino == disk
    assert await table.left_over() == []
    assert table.states() == {D1: "in_use"}
    await table.agent.stop()
    table.grid.close()
