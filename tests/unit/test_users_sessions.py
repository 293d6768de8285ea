"""Log-ins, log-outs, throttling and what happens to desktops when the last session ends."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kmgr.clock import ManualClock
from kmgr.errors import Unavailable
from kmgr.grid.leadership import Leading
from kmgr.ids import AccountName, ServerId
from kmgr.provision.model import DesktopState
from kmgr.provision.queries import desktops
from kmgr.users import queries
from kmgr.users.directories import directories_of
from kmgr.users.directory import AccountClosed, Directories, DirectoryUnreachable, WrongPassword
from kmgr.users.model import Person, Role
from kmgr.users.passwords import hash_password
from kmgr.users.sessions import GRACE_S, HOUSEKEEPING_S, KEEP_S, Sessions, Throttled
from tests.lab.people import RIGHT, SERVERS, FakeDirectory, Office

HOUR = 3600
SECRET = "secret"


class Entrance:
    """The sessions of three servers that share one directory."""

    def __init__(self, office: Office) -> None:
        self.office = office
        self.clock: ManualClock = office.clock
        self.directory = FakeDirectory()
        self.directory.add("anna", "secret", groups=["staff"])
        self.directory.add("ben", "secret")
        self.at = [Sessions(grid, lambda: self.directory, clock=office.clock) for grid in office.grids]

    async def log_in(self, name: str = "anna", password: str = SECRET, *, server: int = 0) -> str:
        token, _ = await self.at[server].log_in(name, password, address="10.0.0.9")
        return token

    async def claimed(self, user: str = "anna", template: str = "tpl-office") -> str:
        await self.office.standby(template)
        values = await self.office.do("desktop.claim", user=user, template=template)
        return str(values["desktop"])

    def in_use(self) -> list[str]:
        with self.office.grid.view() as db:
            return [d.id for d in desktops(db) if d.state is DesktopState.IN_USE]


@pytest.fixture
async def entrance(tmp_path: Path) -> AsyncIterator[Entrance]:
    office = Office(tmp_path)
    await office.open()
    yield Entrance(office)
    office.close()


@pytest.fixture
async def duty(entrance: Entrance) -> AsyncIterator[None]:
    task = asyncio.create_task(entrance.at[1].housekeeping(Leading(1, 0.0)))
    yield
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


# Logging in


async def test_a_session_is_valid_at_every_server(entrance: Entrance) -> None:
    token = await entrance.log_in(server=0)
    for sessions in entrance.at:
        found = sessions.session_of(token)
        assert found is not None
        assert (found.person.name, found.person.groups, found.server) == ("anna", ("staff",), SERVERS[0])
    assert entrance.at[1].session_of(token + "x") is None
    assert entrance.at[1].session_of("") is None


async def test_a_password_changed_a_moment_ago_at_another_server_counts_here(entrance: Entrance) -> None:
    office = entrance.office
    behind = office.grids[1]
    sessions = Sessions(behind, directories_of(behind), clock=office.clock)
    await office.account("olga", password="old password")
    office.log.cut_off.add(SERVERS[1])
    await office.do("account.password", name="olga", password_hash=await hash_password("new password"))
    office.log.cut_off.clear()  # its copy of the state is still the one of before
    with pytest.raises(WrongPassword):
        await sessions.log_in("olga", "old password", address="10.0.0.9")
    _, session = await sessions.log_in("olga", "new password", address="10.0.0.9")
    assert session.person.name == "olga"


async def test_a_server_that_cannot_make_sure_asks_the_directory_all_the_same(entrance: Entrance) -> None:
    entrance.office.log.cut_off.update(SERVERS[1:])
    with pytest.raises(Unavailable):  # by the log, which opens the session, and not before
        await entrance.log_in()
    assert entrance.directory.asked == ["anna"]


async def test_the_state_knows_no_token(entrance: Entrance) -> None:
    token = await entrance.log_in()
    assert not any(token.encode() in entry for entry in entrance.office.log.entries)


@pytest.mark.parametrize("typed", ["anna", "Anna", " ANNA ", "CORP\\anna"])
async def test_one_person_however_they_type_their_name(entrance: Entrance, typed: str) -> None:
    session = entrance.at[0].session_of(await entrance.log_in(typed))
    assert session is not None
    assert session.person.name == "anna"


@pytest.mark.parametrize(("name", "password"), [("", "x"), ("CORP\\", "x"), ("anna", ""), ("x" * 129, "x")])
async def test_what_cannot_be_a_log_in_asks_nobody(entrance: Entrance, name: str, password: str) -> None:
    with pytest.raises(WrongPassword):
        await entrance.log_in(name, password)
    assert entrance.directory.asked == []


async def test_a_session_ends_after_its_hours(entrance: Entrance) -> None:
    await entrance.office.do("setting.set", name="session_hours", value=2)
    token = await entrance.log_in()
    await entrance.clock.advance(2 * HOUR - 1)
    assert entrance.at[2].session_of(token) is not None
    await entrance.clock.advance(1)
    assert entrance.at[2].session_of(token) is None


async def test_refusals_and_dead_directories_are_told_apart_and_not_counted(entrance: Entrance) -> None:
    entrance.directory.closed["anna"] = "Your password has expired."
    for _ in range(20):
        with pytest.raises(AccountClosed, match="expired"):
            await entrance.log_in()
    entrance.directory.down = True
    for _ in range(20):
        with pytest.raises(DirectoryUnreachable):
            await entrance.log_in()


async def test_without_a_majority_nobody_logs_in_and_nothing_is_left_behind(entrance: Entrance) -> None:
    entrance.office.log.cut_off = set(SERVERS[1:])
    with pytest.raises(Unavailable):
        await entrance.log_in()
    with entrance.office.grid.view() as db:
        assert queries.sessions(db) == ()


# Wrong passwords


async def fail(entrance: Entrance, times: int, name: str = "anna", *, server: int = 0) -> None:
    for _ in range(times):
        with pytest.raises(WrongPassword):
            await entrance.log_in(name, "wrong", server=server)


async def test_after_n_wrong_passwords_a_name_waits_at_every_server(entrance: Entrance) -> None:
    await entrance.office.do("setting.set", name="login_tries", value=3)
    await entrance.office.do("setting.set", name="login_wait_s", value=30)
    await fail(entrance, 2, server=0)
    await fail(entrance, 1, server=1)
    for server in range(3):
        with pytest.raises(Throttled, match="Wait 30 s"):
            await entrance.log_in(server=server)
    await entrance.log_in("ben")
    await entrance.clock.advance(29.5)
    with pytest.raises(Throttled, match="Wait 1 s"):
        await entrance.log_in()
    await entrance.clock.advance(0.5)
    assert await entrance.log_in()


async def test_spelling_a_name_otherwise_gives_no_more_tries(entrance: Entrance) -> None:
    await entrance.office.do("setting.set", name="login_tries", value=3)
    for typed in ("anna", "ANNA", "x\\anna"):
        await fail(entrance, 1, typed)
    with pytest.raises(Throttled):
        await entrance.log_in()


async def test_the_right_password_forgets_wrong_ones(entrance: Entrance) -> None:
    await entrance.office.do("setting.set", name="login_tries", value=3)
    for _ in range(3):
        await fail(entrance, 2)
        await entrance.log_in()


async def test_guessing_in_parallel_gives_no_more_tries(entrance: Entrance) -> None:
    await entrance.office.do("setting.set", name="login_tries", value=3)
    guesses = [entrance.log_in("anna", f"guess {n}") for n in range(50)]
    answers = await asyncio.gather(*guesses, return_exceptions=True)
    assert sum(isinstance(answer, Throttled) for answer in answers) == 47
    assert len(entrance.directory.asked) == 3
    with pytest.raises(Throttled, match="Wait 60 s"):
        await entrance.log_in()


async def test_names_that_do_not_exist_wait_as_well(entrance: Entrance) -> None:
    await entrance.office.do("setting.set", name="login_tries", value=3)
    await fail(entrance, 3, "nobody")
    with pytest.raises(Throttled):
        await entrance.log_in("nobody", "wrong")


# Logging out


async def test_only_the_last_log_out_gives_the_desktop_back(entrance: Entrance) -> None:
    first, second = await entrance.log_in(server=0), await entrance.log_in(server=1)
    desktop = await entrance.claimed()
    others = await entrance.claimed("ben")
    await entrance.log_in("ben")
    await entrance.at[2].log_out(first)
    assert entrance.in_use() == [desktop, others]
    assert entrance.at[0].session_of(first) is None
    await entrance.at[2].log_out(second)
    assert entrance.in_use() == [others]
    await entrance.at[2].log_out(second)


async def test_a_log_out_leaves_the_desktops_of_others_to_the_duty(entrance: Entrance) -> None:
    token = await entrance.log_in()
    others = await entrance.claimed("ben")
    await entrance.at[0].log_out(token)
    assert entrance.in_use() == [others]


async def test_a_session_that_has_ended_by_itself_does_not_count(entrance: Entrance) -> None:
    await entrance.log_in()
    await entrance.clock.advance(11 * HOUR)
    late = await entrance.log_in()
    await entrance.claimed()
    await entrance.clock.advance(2 * HOUR)
    await entrance.at[0].log_out(late)
    assert entrance.in_use() == []


async def test_a_desktop_that_is_refreshed_by_hand_stays(entrance: Entrance, duty: None) -> None:
    await entrance.office.template("kept", refresh="manual")
    token = await entrance.log_in()
    desktop = await entrance.claimed(template="tpl-kept")
    await entrance.at[0].log_out(token)
    await entrance.clock.advance(10 * HOUSEKEEPING_S)
    assert entrance.in_use() == [desktop]


async def test_one_of_a_version_that_ended_goes_whatever_its_rules_are(entrance: Entrance, duty: None) -> None:
    await entrance.office.template("kept", refresh="manual")
    token = await entrance.log_in()
    desktop = await entrance.claimed(template="tpl-kept")
    of = {"template": "tpl-kept", "version": "ver-1"}
    await entrance.office.do("template.expiry", **of, soft_at=None, hard_at=entrance.clock.now_ms())
    await entrance.office.do("template.expire", **of, stand="ended")
    await entrance.clock.advance(10 * HOUSEKEEPING_S)
    assert entrance.in_use() == [desktop], "nobody is cut off"
    await entrance.at[0].log_out(token)
    await entrance.clock.advance(10 * HOUSEKEEPING_S)
    assert entrance.in_use() == []


# Sessions that end by themselves


async def test_a_night_away_gives_the_desktop_back(entrance: Entrance, duty: None) -> None:
    await entrance.log_in()
    desktop = await entrance.claimed()
    await entrance.clock.advance(12 * HOUR)
    assert entrance.in_use() == [desktop]
    await entrance.clock.advance(2 * HOUSEKEEPING_S + GRACE_S)
    assert entrance.in_use() == []
    with entrance.office.grid.view() as db:
        assert queries.sessions(db) == ()


async def test_who_logs_in_again_in_time_keeps_the_desktop(entrance: Entrance, duty: None) -> None:
    await entrance.log_in()
    desktop = await entrance.claimed()
    await entrance.clock.advance(12 * HOUR + 1)
    await entrance.log_in()
    await entrance.clock.advance(5 * HOUSEKEEPING_S)
    assert entrance.in_use() == [desktop]


async def test_one_of_two_sessions_is_enough(entrance: Entrance, duty: None) -> None:
    await entrance.log_in()
    desktop = await entrance.claimed()
    await entrance.clock.advance(11 * HOUR)
    await entrance.log_in(server=1)
    await entrance.clock.advance(3 * HOUR)
    assert entrance.in_use() == [desktop]


async def test_a_person_put_out_by_an_administrator_loses_the_desktop(entrance: Entrance, duty: None) -> None:
    await entrance.log_in()
    await entrance.claimed()
    await entrance.office.do("session.close_all", name="anna")
    await entrance.clock.advance(HOUSEKEEPING_S + GRACE_S)
    assert entrance.in_use() == []


async def test_a_new_leader_gives_everybody_their_time_again(entrance: Entrance) -> None:
    desktop = await entrance.claimed()
    for server in (0, 1):
        task = asyncio.create_task(entrance.at[server].housekeeping(Leading(server, 0.0)))
        await entrance.clock.advance(GRACE_S - 1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert entrance.in_use() == [desktop]


async def test_people_with_sessions_are_left_alone_for_a_whole_day(entrance: Entrance, duty: None) -> None:
    for name in ("anna", "ben"):
        await entrance.log_in(name)
        await entrance.claimed(name)
    before = len(entrance.office.log.entries)
    await entrance.clock.advance(11 * HOUR)
    assert len(entrance.office.log.entries) == before


# Built-in accounts and directories together


async def test_a_disabled_account_is_out_at_once(entrance: Entrance, duty: None) -> None:
    await entrance.office.account("root", role="admin")
    await entrance.office.account("clara")
    sessions = Sessions(entrance.office.grid, directories_of(entrance.office.grid), clock=entrance.clock)
    token, _ = await sessions.log_in("clara", RIGHT, address="10.0.0.9")
    await entrance.claimed("clara")
    await entrance.office.do("account.update", name="clara", disabled=True)
    assert entrance.at[2].session_of(token) is None
    with pytest.raises(AccountClosed):
        await sessions.log_in("clara", RIGHT, address="10.0.0.9")
    await entrance.clock.advance(HOUSEKEEPING_S + GRACE_S)
    assert entrance.in_use() == []


async def test_a_role_that_was_taken_away_is_gone_from_open_sessions(entrance: Entrance) -> None:
    for name in ("root", "clara"):
        await entrance.office.account(name, role="admin")
    sessions = Sessions(entrance.office.grid, directories_of(entrance.office.grid), clock=entrance.clock)
    token, opened = await sessions.log_in("clara", RIGHT, address="10.0.0.9")
    assert opened.person.role is Role.ADMIN
    await entrance.office.do("account.update", name="clara", role="user")
    now = sessions.session_of(token)
    assert now is not None
    assert now.person.role is Role.USER


# Sessions in use


async def test_a_session_that_is_used_goes_on_for_a_week_and_not_longer(entrance: Entrance) -> None:
    token = await entrance.log_in()
    session = entrance.at[0].session_of(token)
    assert session is not None
    before, hours = len(entrance.office.log.entries), 0
    while session is not None:
        await entrance.at[hours % 3].keep(session)
        await entrance.clock.advance(HOUR)
        hours += 1
        session = entrance.at[0].session_of(token)
    assert hours == 7 * 24
    # Once when more than six of twelve hours are gone, not at every use.
    assert len(entrance.office.log.entries) - before <= 24


async def test_a_session_that_nobody_uses_ends(entrance: Entrance) -> None:
    token = await entrance.log_in()
    session = entrance.at[0].session_of(token)
    assert session is not None
    await entrance.clock.advance(5 * HOUR)
    await entrance.at[0].keep(session)
    assert entrance.at[0].session_of(token) == session
    await entrance.clock.advance(7 * HOUR)
    assert entrance.at[0].session_of(token) is None


async def test_a_session_is_renewed_as_soon_as_there_is_a_majority_again(entrance: Entrance) -> None:
    token = await entrance.log_in()
    session = entrance.at[0].session_of(token)
    assert session is not None
    await entrance.clock.advance(10 * HOUR)
    entrance.office.log.cut_off = set(SERVERS[1:])
    await entrance.at[0].keep(session)
    entrance.office.log.cut_off = set()
    await entrance.at[0].keep(session)
    assert entrance.at[0].session_of(token) == session
    await entrance.clock.advance(KEEP_S)
    await entrance.at[0].keep(session)
    renewed = entrance.at[0].session_of(token)
    assert renewed is not None
    assert renewed.expires_at == entrance.clock.now_ms() + 12 * HOUR * 1000


async def test_directories_are_asked_in_order_until_one_knows_the_name() -> None:
    first, second = FakeDirectory("first"), FakeDirectory("second")
    both = Directories([first, second])
    second.add("ben", "secret")
    assert (await both.authenticate("ben", "secret")).source == "second"
    first.add("ben", "other")
    with pytest.raises(WrongPassword):
        await both.authenticate("ben", "secret")
    assert (await both.authenticate("ben", "other")).source == "first"
    with pytest.raises(WrongPassword):
        await both.authenticate("nobody", "x")


async def test_a_dead_directory_is_skipped_and_named_if_nobody_else_knows_the_name() -> None:
    first, second = FakeDirectory("first"), FakeDirectory("second")
    both = Directories([first, second])
    first.down = True
    second.add("ben", "secret")
    assert (await both.authenticate("ben", "secret")).name == "ben"
    with pytest.raises(WrongPassword):
        await both.authenticate("ben", "wrong")
    with pytest.raises(DirectoryUnreachable, match="first"):
        await both.authenticate("anna", "x")
    with pytest.raises(WrongPassword):
        await Directories([]).authenticate("anna", "x")


async def test_directories_are_read_from_the_state_at_each_log_in(entrance: Entrance) -> None:
    await entrance.office.account("root", role="admin")
    make = directories_of(entrance.office.grid)
    assert (await make().authenticate("root", RIGHT)).source == "built-in"
    with pytest.raises(WrongPassword):
        await make().authenticate("anna", "x")
    await entrance.office.do(
        "directory.set", directory="corp", urls=["ldaps://127.0.0.1:9"], base_dn="dc=x", ca_pem="", start_tls=False,
        user_filter="(uid={name})", bind_name="uid={name},dc=x", admin_group="",
    )  # fmt: skip
    with pytest.raises(DirectoryUnreachable, match=r"ldaps://127\.0\.0\.1:9"):
        await make().authenticate("anna", "x")
    assert (await make().authenticate("root", RIGHT)).name == "root"
    with pytest.raises(WrongPassword):
        await make().authenticate("root", "wrong")
    await entrance.office.do("directory.remove", directory="corp")
    with pytest.raises(WrongPassword):
        await make().authenticate("anna", "x")


def test_the_fake_is_a_person_like_any_other() -> None:
    fake = FakeDirectory()
    fake.add("anna", "x")
    assert fake.people["anna"][1] == Person(AccountName("anna"), "Anna", (), Role.USER, "corp")
    assert SERVERS[0] == ServerId("srv-a")


async def test_a_kept_desktop_survives_the_end_of_a_session_but_not_a_log_out(entrance: Entrance, duty: None) -> None:
    await entrance.office.do("template.update", template="tpl-office", policy={"keep_s": 3600})
    desktop = await entrance.claimed()
    await entrance.log_in()
    await entrance.office.do("session.close_all", name="anna")
    await entrance.clock.advance(GRACE_S + 2 * HOUSEKEEPING_S)
    assert entrance.in_use() == [desktop]
    await entrance.at[0].log_out(await entrance.log_in())
    assert entrance.in_use() == []
