"""Who is logged on in a guest, as far as its agent can tell: log-offs are seen, silence is nothing."""

from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmgr.errors import Refused, Unavailable
from kmgr.grid.envelope import Outcome
from kmgr.ids import DesktopId
from kmgr.provision import guest
from kmgr.provision.logons import LOOK_S, LogOns, Seen, after_look
from kmgr.provision.model import DesktopState
from tests.lab.hypervisors import plain
from tests.lab.provision import A, Desk, done

D1 = DesktopId("dsk-4k2mzzzzzzzz")
ANNA = frozenset({"anna"})


class Guest(Desk):
    """A desk with one used desktop whose guest's agent answers as a test says."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.users: list[str] | None = []
        self.system = "debian"
        self.ran: list[Mapping[str, Any]] = []
        self.log_ons = LogOns(self.grid, self.hypervisor, clock=self.clock)
        self.hypervisor.guest = self.answer

    def answer(self, _: DesktopId, command: str, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        if command == "guest-get-osinfo":
            return {"id": self.system}
        if command == "guest-exec":
            self.ran.append(arguments)
            return {"pid": 7}
        if command == "guest-exec-status":
            return {"exited": True}
        if self.users is None:
            raise Unavailable("the guest agent does not answer")
        return {"value": [{"user": name, "login-time": 1.0} for name in self.users]}

    async def begin(self, **shape: Any) -> None:
        await self.found(**shape)
        done(await self.place(D1))
        await self.live(14)
        done(await self.do("desktop.claim", user="anna", template="tpl"))

    async def pass_(self, seconds: float) -> None:
        for _ in range(round(seconds / 5)):
            await self.log_ons.run_once()
            await self.clock.advance(5, settle=2)


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Guest]:
    desk = Guest(tmp_path)
    yield desk
    await desk.agent.stop()
    desk.grid.close()


async def test_who_logs_off_in_their_desktop_gives_it_back(desk: Guest) -> None:
    await desk.begin()
    desk.users = ["anna"]
    await desk.pass_(30)
    assert desk.one(D1).state is DesktopState.IN_USE
    desk.users = []
    await desk.pass_(30)
    assert desk.one(D1).state is DesktopState.RETIRED


async def test_who_has_not_logged_on_yet_has_not_logged_off(desk: Guest) -> None:
    await desk.begin()
    await desk.pass_(120)
    assert desk.one(D1).state is DesktopState.IN_USE


async def test_a_guest_that_boots_again_was_not_left(desk: Guest) -> None:
    await desk.begin()
    desk.users = ["anna"]
    await desk.pass_(30)
    desk.users = None
    await desk.pass_(15)
    desk.users = []
    await desk.pass_(120)
    assert desk.one(D1).state is DesktopState.IN_USE


async def test_a_template_that_keeps_its_desktops_is_not_asked(desk: Guest) -> None:
    await desk.begin(refresh="manual")
    desk.users = ["anna"]
    await desk.pass_(30)
    desk.users = []
    await desk.pass_(60)
    assert desk.one(D1).state is DesktopState.IN_USE


async def test_one_that_cannot_be_given_back_now_keeps_nobody_else_from_being_looked_at(
    desk: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    await desk.begin()
    desk.users = ["anna"]
    await desk.pass_(30)
    desk.users = []

    async def no_majority(*_: Any, **__: Any) -> Outcome:
        raise Unavailable("no majority")

    with monkeypatch.context() as patch:
        patch.setattr(desk.grid, "propose", no_majority)
        await desk.pass_(30)
    assert desk.one(D1).state is DesktopState.IN_USE
    await desk.pass_(15)
    assert desk.one(D1).state is DesktopState.RETIRED


@pytest.mark.parametrize(("system", "path"), [("debian", "/bin/sh"), ("mswindows", "msg.exe")])
async def test_a_message_reaches_whoever_is_logged_on(desk: Guest, system: str, path: str) -> None:
    await desk.begin()
    desk.system = system
    await guest.tell(desk.hypervisor, D1, "this 'desktop' closes; soon")
    assert desk.ran[-1]["path"] == path
    assert desk.ran[-1]["arg"][-1] == "this 'desktop' closes; soon"


async def test_an_agent_that_says_nonsense_is_no_user(desk: Guest) -> None:
    await desk.begin()
    desk.hypervisor.guest = lambda *_: {"value": "many"}
    with pytest.raises(Unavailable, match="no list"):
        await guest.logged_on(desk.hypervisor, D1)
    desk.hypervisor.guest = lambda *_: {"value": [3, {"user": "anna"}, {"login-time": 1}]}
    assert await guest.logged_on(desk.hypervisor, D1) == ANNA


async def test_an_agent_that_forbids_it_stops_nothing(desk: Guest) -> None:
    await desk.begin()

    def forbids(*_: Any) -> Mapping[str, Any]:
        raise Refused("guest-get-users has been disabled")

    desk.hypervisor.guest = forbids
    await desk.pass_(60)
    assert desk.one(D1).state is DesktopState.IN_USE


looks = st.lists(st.sampled_from([None, frozenset[str](), ANNA]), max_size=12)


@given(looks=looks)
def test_only_two_looks_with_nobody_after_somebody_are_a_log_off(looks: list[frozenset[str] | None]) -> None:
    seen = Seen(1)
    for look in looks:
        seen = after_look(seen, look, 0.0)
    awake = looks[max((n + 1 for n, look in enumerate(looks) if look is None), default=0) :]
    assert seen.was_left == (len(awake) > 2 and ANNA in awake and awake[-2:] == [frozenset()] * 2)


def test_a_silent_agent_is_asked_less_and_less() -> None:
    seen, waits = Seen(1), []
    for _ in range(8):
        seen = after_look(seen, None, 0.0)
        waits.append(seen.next_at)
    assert waits == [10, 20, 40, 80, 160, 300, 300, 300]
    assert after_look(seen, ANNA, 0.0).next_at == LOOK_S


async def test_of_a_personal_desktop_it_is_only_told_and_only_while_its_server_drains(desk: Guest) -> None:
    await desk.found(kind="personal")
    await desk.standby(D1)
    done(await desk.do("desktop.claim", user="anna", template="tpl"))
    desk.hypervisor.adopt(plain(desk.folder, D1, 1), 1)
    await desk.hypervisor.start(D1)
    desk.users = []

    def left() -> list[str]:
        return list(desk.log_ons.vitals()["extra"]["left"])

    await desk.pass_(60)
    assert left() == []
    done(await desk.do("server.drain", server=A))
    desk.users = None
    await desk.pass_(60)
    assert left() == [], "an agent that does not answer tells nothing"
    desk.users = ["anna"]
    await desk.pass_(400)
    assert left() == []
    desk.users = []
    await desk.pass_(5)
    assert left() == [], "one look may fall between two sessions"
    await desk.pass_(3 * LOOK_S)
    assert left() == [D1]
    assert desk.states()[D1] == "in_use", "what is somebody's is not given back"
    desk.users = ["anna"]
    await desk.pass_(2 * LOOK_S)
    assert left() == []
