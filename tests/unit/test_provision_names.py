"""The computer name of a desktop that boots by itself: it has it before anybody is given the desktop."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from kmgr.errors import Unavailable
from kmgr.ids import DesktopId
from kmgr.provision.fake import FakeGuest
from tests.lab.provision import Desk, done

D1 = DesktopId("d-1")


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    desk = Desk(tmp_path)
    desk.hypervisor.guest = FakeGuest()
    await desk.found()
    yield desk
    await desk.agent.stop()
    desk.grid.close()


def named(desk: Desk) -> list[str]:
    guest = desk.hypervisor.guest
    assert isinstance(guest, FakeGuest)
    return [arguments["arg"][3] for _, command, arguments in guest.calls if command == "guest-exec"]


def notes(desk: Desk) -> dict[str, str]:
    return dict(desk.agent.vitals()["extra"].get("unnamed", {}))


async def test_it_gets_its_name_before_it_is_ready(desk: Desk) -> None:
    done(await desk.place(D1))
    await desk.live(8)
    assert named(desk) == []
    await desk.live(6)
    assert desk.one(D1).state == "ready"
    assert named(desk) == [desk.one(D1).name] == ["office-1"]
    assert notes(desk) == {}


def refuses(desktop: DesktopId, command: str, arguments: Any) -> dict[str, Any]:
    raise Unavailable("the guest agent does not answer")


def deaf(desktop: DesktopId, command: str, arguments: Any) -> dict[str, Any]:
    return {"pid": 1} if command == "guest-exec" else {"exited": False}


def odd(desktop: DesktopId, command: str, arguments: Any) -> dict[str, Any]:
    return {"pid": None} if command == "guest-exec" else {"exited": True, "out-data": 7}


def windows(desktop: DesktopId, command: str, arguments: Any) -> dict[str, Any]:
    return {"pid": 1} if command == "guest-exec" else {"exited": True, "exitcode": 1}


@pytest.mark.parametrize(
    ("guest", "why"),
    [
        (refuses, "does not do guest-exec"),
        (deaf, "did not end within 10 s"),
        (odd, "it is not base64"),
        (windows, "it calls itself nothing and not office-1"),
    ],
)
async def test_one_that_does_not_take_its_name_is_ready_all_the_same_and_it_is_noted(
    desk: Desk, guest: Any, why: str
) -> None:
    desk.hypervisor.guest = guest
    done(await desk.place(D1))
    await desk.live(30)
    assert desk.one(D1).state == "ready"
    assert why in notes(desk)["tpl"]
    desk.hypervisor.guest = FakeGuest()
    done(await desk.place("d-2"))
    await desk.live(14)
    assert notes(desk) == {}, "another version of the image may do it"


async def test_a_seed_says_the_name_itself(desk: Desk) -> None:
    done(await desk.do("template.update", template="tpl", policy={"seed": "nocloud"}))
    done(await desk.place(D1))
    await desk.live(14)
    assert (desk.one(D1).state, named(desk)) == ("ready", [])


async def test_what_a_version_is_made_of_keeps_the_name_of_the_image(desk: Desk) -> None:
    body = {"desktop": D1, "template": "tpl", "version": "ver-1", "server": "srv-a", "user": "anna"}
    done(await desk.do("desktop.bench", **body, purpose="edit"))
    await desk.live(14)
    assert named(desk) == []


async def test_a_seed_that_its_template_gets_while_it_boots_does_not_cost_it_its_name(desk: Desk) -> None:
    done(await desk.place(D1))
    await desk.live(4)
    done(await desk.do("template.update", template="tpl", policy={"seed": "nocloud"}))
    await desk.live(10)
    assert desk.one(D1).state == "ready"
    assert named(desk) == [desk.one(D1).name], "it was made without that seed, so nothing else says it"
