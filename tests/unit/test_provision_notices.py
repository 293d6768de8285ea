"""What users of a draining server's desktops are told, and how often."""

from pathlib import Path

from kmgr.provision.notices import STAY
from tests.lab.provision import A, done
from tests.unit.test_provision_attendance import D1, Watched


async def drained(desk: Watched, minutes: int) -> None:
    done(await desk.do("server.drain", server=A))
    done(await desk.do("drain.notice", server=A, minutes=minutes))
    done(await desk.do("drain.tell", desktop=D1, generation=1, server=A))


async def test_they_are_told_at_once_and_again_before_the_end(tmp_path: Path) -> None:
    desk = Watched(tmp_path)
    await desk.begin()
    await desk.pass_(3)
    assert desk.told == []
    await drained(desk, 30)
    await desk.pass_(60)
    ((name, text),) = desk.told
    assert name == desk.one(D1).name
    assert text.startswith(
        "The server of this desktop is taken out of service: the desktop ends at 22:43 (14 November"
    )
    assert "Save your work" in text and "Log out and in again" in text
    await desk.pass_(24 * 60 + 5)
    assert len(desk.told) == 2
    await desk.pass_(4 * 60)
    assert len(desk.told) == 3
    await desk.pass_(30)
    assert len(desk.told) == 3


async def test_a_short_notice_is_told_once_and_when_it_changes(tmp_path: Path) -> None:
    desk = Watched(tmp_path)
    await desk.begin()
    await drained(desk, 2)
    await desk.pass_(30)
    assert len(desk.told) == 1
    done(await desk.do("drain.notice", server=A, minutes=60))
    await desk.pass_(30)
    assert len(desk.told) == 2


async def test_they_are_told_that_they_may_stay(tmp_path: Path) -> None:
    desk = Watched(tmp_path)
    await desk.begin()
    await drained(desk, 30)
    await desk.pass_(2)
    done(await desk.do("server.undrain", server=A))
    await desk.pass_(30)
    assert [text for _, text in desk.told][1:] == [STAY]


async def test_nobody_else_is_told_anything_when_it_is_over(tmp_path: Path) -> None:
    desk = Watched(tmp_path)
    await desk.begin()
    await drained(desk, 30)
    await desk.pass_(2)
    done(await desk.do("desktop.release", desktop=D1, user="anna"))
    await desk.pass_(30)
    assert len(desk.told) == 1


async def test_a_guest_that_cannot_be_told_holds_nothing_up(tmp_path: Path) -> None:
    desk = Watched(tmp_path)
    desk.refuses = True
    await desk.begin()
    await drained(desk, 30)
    await desk.pass_(5)
    assert desk.told == []
    assert desk.states()[D1] == "in_use"
