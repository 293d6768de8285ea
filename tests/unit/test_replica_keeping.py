"""Which versions a server brings, in which order, which it gives up, and what it does without its disk of images."""

import asyncio
import base64
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from kmgr.daemon import folder
from kmgr.errors import Unavailable
from kmgr.grid.model import Vitals
from kmgr.ids import ServerId, VersionId
from kmgr.replica.images import Images
from tests.lab.keepers import Keeper, Keepers

V1, V2, V3 = (VersionId(f"ver-{n}") for n in (1, 2, 3))
TEMPLATE = {"notes": "", "vcpus": 1, "memory_mib": 64, "standby": 1, "maximum": 5, "refresh": "manual"}


@pytest.fixture
async def keepers(tmp_path: Path) -> AsyncIterator[Keepers]:
    made = Keepers(tmp_path, "abcde")
    await made.open()
    yield made
    made.close()


async def template(at: Keeper, version: VersionId) -> None:
    await at.do("template.create", template="tpl-1", name="office", image="img-1", version=version, **TEMPLATE)


async def placed(at: Keeper, on: Keeper, *, desktop: str = "dsk-1") -> None:
    with at.grid.view() as db:
        version = next(iter(db.query("select version from templates")))["version"]
    await at.do("desktop.place", desktop=desktop, template="tpl-1", version=version, server=on.id)


async def settled(keepers: Keepers) -> None:
    """Let the agents go on until nobody has anything to do."""
    while any((await keepers.round()).values()):
        pass


async def test_an_image_is_kept_on_so_many_servers_and_by_whoever_has_a_desktop_of_it(keepers: Keepers) -> None:
    a = keepers["a"]
    await a.do("image.copies", image="img-1", copies=2)
    await keepers.imported(a)
    await settled(keepers)
    (other,) = a.holders(V1) - {"a"}
    await template(a, V1)
    needing = next(one for one in keepers.all if one.name not in ("a", other))
    await placed(a, needing)
    await settled(keepers)
    # It came where the desktop is, and one of the two others was enough then.
    assert needing.name in a.holders(V1)
    assert len(a.holders(V1)) == 2
    for one in keepers.all:
        assert one.images.path(V1).exists() == (one.name in a.holders(V1))
    await a.do("image.copies", image="img-1", copies=0)
    await settled(keepers)
    assert a.holders(V1) == set("abcde")
    await a.do("image.copies", image="img-1", copies=3)
    await settled(keepers)
    assert len(a.holders(V1)) == 3
    assert needing.name in a.holders(V1)
    assert set((await keepers.round()).values()) == {""}


async def test_a_short_loss_moves_nothing_and_a_long_one_is_made_good(keepers: Keepers) -> None:
    a = keepers["a"]
    await a.do("image.copies", image="img-1", copies=2)
    await keepers.imported(a)
    await settled(keepers)
    (other,) = a.holders(V1) - {"a"}
    await a.do("server.lost", server=f"srv-{other}")
    rest = [one for one in keepers.all if one.name != other]
    assert [await one.agent.run_once() for one in rest] == [""] * 4
    keepers.clock.advance(601)
    await asyncio.gather(*(one.agent.run_once() for one in rest))
    assert len(a.holders(V1) - {other}) == 2
    await a.do("server.up", server=f"srv-{other}")
    await settled(keepers)
    assert len(a.holders(V1)) == 2


async def test_servers_without_room_are_passed_over(keepers: Keepers) -> None:
    a = keepers["a"]
    await a.do("image.copies", image="img-1", copies=2)
    for one in keepers.all:
        told = one.agent.vitals()["extra"]["images_spare_bytes"]
        assert told > 0
    full = [ServerId(f"srv-{name}") for name in "bcd"]

    def vitals(server: ServerId) -> Any:
        return Vitals(server, 0.0, extra={"images_spare_bytes": 10 if server in full else 1 << 40})

    for one in keepers.all:
        one.board.update({other.id: vitals(other.id) for other in keepers.all})
    await keepers.imported(a)
    await settled(keepers)
    assert a.holders(V1) == {"a", "e"}


async def test_what_is_in_use_comes_first_and_a_waiting_desktop_overtakes(keepers: Keepers) -> None:
    a, b = keepers["a"], keepers["b"]
    for n in (1, 2, 3):
        await keepers.imported(a, n=n)
    await template(a, V1)
    said = await b.agent.run_once()
    order = [text.split(" of ")[0] for text in said.split("; ")]
    assert order == ["version 1", "version 3", "version 2"]

    # While a large one nobody waits for is under way, a desktop is placed that waits for another.
    c = keepers["c"]
    stuck = asyncio.Event()

    async def never(*_: Any) -> Any:
        stuck.set()
        await asyncio.sleep(3600)

    async def slow(_: Any, body: Any) -> Any:
        if body["version"] != V1:
            await never()
        data = a.images.side(body["version"], "manifest").read_bytes()
        return {"total": len(data), "data": base64.b64encode(data).decode()}

    for one in (a, b):
        one.requests.serve("manifest", slow)
    await a.do("template.publish", template="tpl-1", version=V3)
    running = asyncio.create_task(c.agent.run_once())
    async with asyncio.timeout(10):
        await stuck.wait()
    await a.do("template.publish", template="tpl-1", version=V1)
    await placed(a, c)
    async with asyncio.timeout(10):
        while "c" not in a.holders(V1):
            assert not running.done()
            await asyncio.sleep(0.01)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_an_absent_disk_is_not_a_loss_of_all_images(keepers: Keepers, tmp_path: Path) -> None:
    a, b = keepers["a"], keepers["b"]
    await keepers.imported(a)
    await keepers.round()
    images, away = b.folder / "images", b.folder / "elsewhere"
    images.rename(away)
    ways: list[Callable[[], None]] = [images.mkdir, lambda: images.symlink_to(tmp_path / "not-mounted")]
    for make in ways:
        make()
        b.start()
        with pytest.raises(Unavailable, match="the disk of golden images is not there"):
            await b.agent.run_once()
        assert b.holders(V1) == set("abcde")
        assert b.agent.vitals()["can_run_desktops"] is False
        with pytest.raises(Unavailable, match="not there"):
            b.images.room()
        assert await b.agent.scrub.step() == 0
        folder.prepare(b.folder)  # the daemon starts all the same
        if images.is_symlink():
            images.unlink()
        else:
            shutil.rmtree(images)
    # Moved for good: a link to where it is now.
    images.symlink_to(away)
    assert await b.agent.run_once() == ""
    assert "can_run_desktops" not in b.agent.vitals()
    assert b.agent.vitals()["images"][V1][0] > 0


async def test_a_disk_that_is_lost_for_good_is_filled_again_when_a_person_says_so(keepers: Keepers) -> None:
    a, b = keepers["a"], keepers["b"]
    await keepers.imported(a)
    await keepers.round()
    shutil.rmtree(b.folder / "images")
    (b.folder / "images").mkdir()
    with pytest.raises(Unavailable, match=r"delete .*images.disk"):
        await b.agent.run_once()
    (b.folder / "images.disk").unlink()
    assert "copied" in await b.agent.run_once()


def test_a_link_to_a_disk_that_is_not_there_is_not_replaced_by_a_folder(tmp_path: Path) -> None:
    (tmp_path / "images").symlink_to(tmp_path / "gone")
    Images(tmp_path)
    assert not (tmp_path / "gone").exists()
