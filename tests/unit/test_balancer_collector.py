"""What the leader deletes, what counts as use, and where new desktops go while a version is damaged."""

from pathlib import Path

from kmgr.balancer.collector import Collector
from kmgr.balancer.model import Place
from kmgr.balancer.plan import plan
from kmgr.clock import ManualClock
from kmgr.grid.envelope import Applied
from kmgr.grid.local import LocalGrid
from kmgr.ids import ServerId, VersionId
from kmgr.provision.uses import uses
from kmgr.registry import APPLIERS, SCHEMAS
from kmgr.replica.queries import versions
from tests.lab.state import State

DAY_S = 86_400


async def test_the_leader_deletes_what_nobody_needs_any_more(tmp_path: Path) -> None:
    clock = ManualClock()
    server = ServerId("srv-a")
    grid = LocalGrid(server, path=tmp_path / "s", appliers=APPLIERS, schemas=SCHEMAS, clock=clock)

    async def do(type: str, **body: object) -> None:
        assert isinstance(await grid.propose(type, body, by="test"), Applied)

    await do(
        "server.add", server=server, name="a", grid_address="a:1", web_address="a:2", version="0", fingerprint=""
    )
    await do("image.create", image="img-1", name="Debian", notes="")
    sizes = {"size_bytes": 1 << 20, "used_bytes": 4096, "block_bytes": 1 << 16, "notes": "", "server": server}
    for n in range(1, 8):
        await do("version.add", version=f"ver-{n}", image="img-1", manifest_hash=f"{n}" * 64, **sizes)
        await clock.advance(DAY_S)
    shape = {"vcpus": 1, "memory_mib": 64, "standby": 1, "maximum": 5, "refresh": "manual", "notes": ""}
    await do("template.create", template="tpl-1", name="office", image="img-1", version="ver-6", **shape)
    collector = Collector(grid, clock=clock)
    assert await collector.run_once() == 0
    await clock.advance(28 * DAY_S)
    assert await collector.run_once() == 2  # versions 1 and 2; 3 to 5 can be gone back to, 7 is a draft
    with grid.view() as db:
        assert [one.number for one in versions(db)] == [3, 4, 5, 6, 7]
    assert await collector.run_once() == 0
    grid.close()


def test_a_safe_copy_of_a_personal_desktop_needs_its_version_where_it_lies() -> None:
    state = State()
    a, b = state.server("a"), state.server("b")
    state.version("ver-1", [a])
    state.template("office")
    desktop = state.desktop("tpl-office", a)
    state.db.table("copies").insert(
        {"desktop": desktop, "server": b, "generation": 1, "state": "ready", "as_of": 1, "bytes": 0, "changed_at": 1}
    )
    assert uses(state.db).desktops == {VersionId("ver-1"): {a: 1, b: 1}}


def test_desktops_are_made_where_a_version_is_whole_as_long_as_it_is_anywhere() -> None:
    state = State()
    a, b = state.server("a"), state.server("b")
    state.do("image.create", image="img-1", name="Debian", notes="")
    state.version("ver-1", [a, b])
    damage = {"version": "ver-1", "file": "x", "offset": 0}
    state.do("version.damaged", server=a, blocks=2, **damage)
    assert state.view().holders == {"ver-1": {b}}
    state.do("version.damaged", server=b, blocks=1, **damage)
    assert state.view().holders == {"ver-1": {a, b}}
    state.do("version.damaged", server=b, blocks=0, **damage)
    assert state.view().holders == {"ver-1": {b}}


def test_where_a_version_is_whole_on_a_lost_server_alone_desktops_are_made_of_what_there_is() -> None:
    state = State()
    a, b = state.server("a"), state.server("b")
    state.do("image.create", image="img-1", name="Debian", notes="")
    state.version("ver-1", [a, b])
    state.template("office", standby=1)
    state.do("version.damaged", server=b, version="ver-1", file="x", offset=0, blocks=1)
    state.become(a, "lost")
    assert [action.server for action in plan(state.view()).actions if isinstance(action, Place)] == [b]
    state.become(a, "up")
    assert [action.server for action in plan(state.view()).actions if isinstance(action, Place)] == [a]
