"""Templates' desktops as commands: fences, claims, and failures that stop a refill once."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from kmgr.grid.envelope import Applied
from kmgr.grid.queries import events
from kmgr.ids import TemplateId
from kmgr.provision.lifecycle import LIFECYCLE, Event
from kmgr.provision.model import DesktopState as S
from kmgr.provision.queries import asks, failures
from kmgr.templates.queries import template
from tests.lab.outcomes import rejected
from tests.lab.provision import A, B, Office, done

REPORTS = {"building": Event.STARTED, "ready": Event.ANSWERED, "failed": Event.FAILED}


@pytest.fixture
async def office(tmp_path: Path) -> AsyncIterator[Office]:
    office = Office(tmp_path)
    await office.found()
    yield office
    office.grid.close()


async def lead_to(office: Office, state: S) -> None:
    """Bring d-1 into a state by legal commands."""
    done(await office.place("d-1"))
    ways = {
        S.PLACED: (),
        S.BUILDING: ("building",),
        S.READY: ("building", "ready"),
        S.IN_USE: ("building", "ready"),
        S.BROKEN: ("failed",),
        S.RETIRED: ("building",),
    }
    for report in ways[state]:
        done(await office.report(report, "d-1", step="guest", cause="no answer"))
    if state is S.IN_USE:
        done(await office.do("desktop.claim", user="bea", template="tpl"))
    if state is S.RETIRED:
        done(await office.do("desktop.retire", desktop="d-1", why="a test"))
    assert office.one("d-1").state is state


@pytest.mark.parametrize("state", S)
@pytest.mark.parametrize("report", REPORTS)
async def test_a_report_follows_the_table_and_an_illegal_one_does_nothing(
    office: Office, state: S, report: str
) -> None:
    await lead_to(office, state)
    before = office.one("d-1")
    outcome = await office.report(report, "d-1", step="start", cause="no memory")
    then = LIFECYCLE[state].get(REPORTS[report])
    if then is None:
        rejected(outcome, "conflict")
        assert office.one("d-1") == before
    else:
        assert office.one("d-1").state is then


@pytest.mark.parametrize("report", [*REPORTS, "removed"])
async def test_a_stale_report_is_rejected_and_changes_nothing(office: Office, report: str) -> None:
    await lead_to(office, S.RETIRED if report == "removed" else S.BUILDING)
    before = office.one("d-1")
    more: dict[str, Any] = {"step": "s", "cause": "c"}
    said = await office.report(report, "d-1", 2, **more)
    assert "generation 1 on srv-a, not 2" in rejected(said, "conflict")
    other = await office.do(f"desktop.{report}", desktop="d-1", generation=1, server=B, **more)
    rejected(other, "conflict")
    rejected(await office.report(report, "d-none", **more), "not_found")
    assert office.one("d-1") == before


async def test_twice_is_once(office: Office) -> None:
    first = done(await office.place("d-1"))
    assert done(await office.place("d-1"))["desktop"] == first["desktop"]
    for report in ("building", "building", "ready", "ready"):
        done(await office.report(report, "d-1"))
    assert office.one("d-1").ready_at is not None
    for _ in range(2):
        done(await office.do("desktop.retire", desktop="d-1", why="a test"))
    done(await office.report("removed", "d-1"))
    rejected(await office.report("removed", "d-1"), "not_found")
    assert office.states() == {}


async def test_a_placement_that_came_too_late_is_rejected_with_the_reason(office: Office) -> None:
    assert "another version" in rejected(await office.place("d-1", version="ver-0"), "conflict")
    done(await office.do("server.drain", server=B))
    assert "takes no new desktops" in rejected(await office.place("d-1", server=B), "refused")
    done(await office.do("template.update", template="tpl", maximum=2))
    for name in ("d-1", "d-2"):
        done(await office.place(name))
    assert "its maximum of 2 desktops" in rejected(await office.place("d-3"), "refused")
    done(await office.do("template.update", template="tpl", enabled=False))
    assert "not refilled" in rejected(await office.place("d-3"), "refused")
    assert [office.one(name).name for name in ("d-1", "d-2")] == ["office-1", "office-2"]


async def test_a_claim_takes_the_least_used_server_then_who_waits_longest(office: Office) -> None:
    await office.standby("d-2")
    await office.standby("d-1")
    await office.standby("d-3", server=B)
    got = [done(await office.do("desktop.claim", user=user, template="tpl")) for user in ("ann", "bea", "cem")]
    assert [claim["desktop"] for claim in got] == ["d-2", "d-3", "d-1"]
    assert all(claim["new"] for claim in got)
    assert "no desktop is ready" in rejected(
        await office.do("desktop.claim", user="dan", template="tpl"), "none_ready"
    )


async def test_the_present_version_is_claimed_before_an_older_one(office: Office) -> None:
    await office.standby("d-1")
    await office.version("ver-2")
    done(await office.do("template.publish", template="tpl", version="ver-2"))
    done(await office.place("d-2", version="ver-2"))
    for report in ("building", "ready"):
        done(await office.report(report, "d-2"))
    assert done(await office.do("desktop.claim", user="ann", template="tpl"))["desktop"] == "d-2"
    assert done(await office.do("desktop.claim", user="bea", template="tpl"))["desktop"] == "d-1"


async def test_a_user_has_one_desktop_of_a_template_however_often_they_ask(office: Office) -> None:
    await office.standby("d-1")
    await office.standby("d-2")
    first = done(await office.do("desktop.claim", user="ann", template="tpl"))
    again = done(await office.do("desktop.claim", user="ann", template="tpl"))
    assert (again["desktop"], again["new"]) == (first["desktop"], False)
    assert office.one("d-2").state is S.READY


async def test_a_user_whose_server_is_lost_gets_another_desktop(office: Office) -> None:
    await office.standby("d-b", server=B)
    assert done(await office.do("desktop.claim", user="ann", template="tpl"))["desktop"] == "d-b"
    await office.standby("d-a")
    done(await office.do("server.lost", server=B))
    assert done(await office.do("desktop.claim", user="ann", template="tpl"))["desktop"] == "d-a"


async def test_a_standby_of_a_lost_server_is_given_to_nobody(office: Office) -> None:
    await office.standby("d-b", server=B)
    done(await office.do("server.lost", server=B))
    rejected(await office.do("desktop.claim", user="ann", template="tpl"), "none_ready")


def asked(office: Office) -> list[tuple[str, int, int]]:
    with office.grid.view() as db:
        return [(ask.user, ask.since, ask.at) for ask in asks(db, TemplateId("tpl"))]


async def test_who_finds_none_ready_is_noted_once_until_they_get_one(office: Office) -> None:
    begun = office.clock.now_ms()
    for _ in range(2):
        done(await office.do("desktop.ask", user="ann", template="tpl"))
    await office.clock.advance(60)
    done(await office.do("desktop.ask", user="bea", template="tpl"))
    done(await office.do("desktop.ask", user="ann", template="tpl"))
    now = office.clock.now_ms()
    assert asked(office) == [("ann", begun, now), ("bea", now, now)]
    await office.standby("d-1")
    done(await office.do("desktop.claim", user="ann", template="tpl"))
    assert [user for user, _, _ in asked(office)] == ["bea"]


async def test_who_has_a_desktop_or_could_have_one_asks_for_nothing(office: Office) -> None:
    await office.standby("d-1")
    done(await office.do("desktop.ask", user="ann", template="tpl"))
    done(await office.do("desktop.claim", user="ann", template="tpl"))
    done(await office.do("desktop.ask", user="ann", template="tpl"))
    assert asked(office) == []
    rejected(await office.do("desktop.ask", user="ann", template="tpl-none"), "not_found")
    done(await office.do("template.update", template="tpl", enabled=False))
    rejected(await office.do("desktop.ask", user="bea", template="tpl"), "refused")


async def test_who_asked_again_meanwhile_still_waits(office: Office) -> None:
    done(await office.do("desktop.ask", user="ann", template="tpl"))
    ((_, _, believed),) = asked(office)
    await office.clock.advance(60)
    done(await office.do("desktop.ask", user="ann", template="tpl"))
    done(await office.do("desktop.unask", user="ann", template="tpl", at=believed))
    ((_, _, now),) = asked(office)
    for _ in range(2):
        done(await office.do("desktop.unask", user="ann", template="tpl", at=now))
    assert asked(office) == []


async def test_nobody_waits_for_a_template_that_is_gone(office: Office) -> None:
    done(await office.do("desktop.ask", user="ann", template="tpl"))
    done(await office.do("template.delete", template="tpl"))
    assert asked(office) == []


async def test_only_its_user_gives_a_desktop_back(office: Office) -> None:
    await lead_to(office, S.IN_USE)
    rejected(await office.do("desktop.release", desktop="d-1", user="cem"), "not_allowed")
    assert office.one("d-1").state is S.IN_USE
    for _ in range(2):
        done(await office.do("desktop.release", desktop="d-1", user="bea"))
    assert office.one("d-1").state is S.RETIRED
    rejected(await office.do("desktop.release", desktop="d-none", user="bea"), "not_found")


async def broken_template(office: Office) -> str:
    with office.grid.view() as db:
        found = template(db, TemplateId("tpl"))
    assert found is not None
    return found.broken_cause


async def fail(office: Office, *names: str) -> None:
    for name in names:
        done(await office.place(name))
        done(await office.report("failed", name, step="guest", cause="no answer"))


async def test_failures_in_a_row_stop_the_template_once_with_one_alarm(office: Office) -> None:
    await fail(office, "d-1", "d-2")
    assert await broken_template(office) == ""
    for name in ("d-3", "d-4"):
        done(await office.place(name))
    await office.report("failed", "d-3", step="guest", cause="no answer")
    told = "3 desktops in a row failed, the last one at guest: no answer"
    assert await broken_template(office) == told
    await office.report("failed", "d-4", step="start", cause="no memory")
    assert await broken_template(office) == told
    with office.grid.view() as db:
        assert [event.text for event in events(db, limit=100) if event.kind == "alarm"] == [
            f"a template is not refilled any more: {told}"
        ]
        assert failures(db)[0].n == 4
    assert "not refilled" in rejected(await office.place("d-5"), "refused")


async def test_a_success_between_failures_starts_the_count_again(office: Office) -> None:
    await fail(office, "d-1", "d-2")
    await office.standby("d-3")
    await fail(office, "d-4", "d-5")
    assert await broken_template(office) == ""


@pytest.mark.parametrize("claimed", [True, False])
async def test_a_desktop_that_breaks_after_it_was_ready_does_not_count_against_its_template(
    office: Office, claimed: bool
) -> None:
    for name in ("d-1", "d-2", "d-3"):
        await office.standby(name)
        if claimed:
            done(await office.do("desktop.claim", user=f"user-{name}", template="tpl"))
    for name in ("d-1", "d-2", "d-3"):
        done(await office.report("failed", name, step="run", cause="gone"))
    assert await broken_template(office) == ""


async def test_a_retry_is_a_new_generation_without_its_former_user(office: Office) -> None:
    await lead_to(office, S.IN_USE)
    rejected(await office.do("desktop.retry", desktop="d-1"), "conflict")
    done(await office.report("failed", "d-1", step="run", cause="gone"))
    done(await office.do("desktop.retry", desktop="d-1"))
    found = office.one("d-1")
    assert (found.state, found.generation, found.user, found.step, found.cause) == (S.PLACED, 2, None, "", "")
    rejected(await office.report("ready", "d-1", 1), "conflict")
    rejected(await office.do("desktop.retry", desktop="d-none"), "not_found")


async def test_the_log_says_whether_what_a_server_found_is_wanted_there(office: Office) -> None:
    done(await office.place("d-1"))
    asked = [("d-1", A), ("d-1", B), ("d-none", A)]
    answers = [done(await office.do("desktop.stray", desktop=d, server=s))["wanted"] for d, s in asked]
    assert answers == [True, False, False]


async def test_desktops_of_a_removed_server_are_forgotten_and_of_no_other(office: Office) -> None:
    await office.standby("d-b", server=B)
    rejected(await office.do("desktop.forget", desktop="d-b"), "conflict")
    done(await office.do("server.remove", server=B))
    for _ in range(2):
        done(await office.do("desktop.forget", desktop="d-b"))
    assert office.states() == {}


async def test_a_template_with_users_is_not_deleted_and_names_them(office: Office) -> None:
    await lead_to(office, S.IN_USE)
    assert "office-1 (bea)" in rejected(await office.do("template.delete", template="tpl"), "conflict")
    done(await office.do("desktop.release", desktop="d-1", user="bea"))
    await office.standby("d-2")
    assert isinstance(await office.do("template.delete", template="tpl"), Applied)
    assert office.states() == {"d-1": "retired", "d-2": "retired"}


async def test_a_template_made_again_passes_over_names_that_desktops_of_the_former_one_still_have(
    office: Office,
) -> None:
    await office.standby("d-1")
    await office.standby("d-2")
    done(await office.do("template.delete", template="tpl"))
    fields = {"name": "office", "notes": "", "image": "img", "version": "ver-1", "refresh": "on_logout"}
    shape = {"vcpus": 1, "memory_mib": 64, "standby": 2, "maximum": 9}
    done(await office.do("template.create", template="tpl", **fields, **shape))
    assert done(await office.place("d-3"))["name"] == "office-3"  # office-1 and office-2 are not removed yet
    done(await office.report("removed", "d-1"))
    assert done(await office.place("d-4"))["name"] == "office-4"


async def test_a_desktop_says_whether_its_guest_booted_or_was_restored(office: Office) -> None:
    told: dict[str, dict[str, Any]] = {"cold": {}, "warm": {"origin": "warm"}, "odd": {"origin": "lukewarm"}}
    for name, more in told.items():
        done(await office.place(name))
        done(await office.report("building", name))
        done(await office.report("ready", name, **more))
    assert [str(office.one(name).origin) for name in ("cold", "warm", "odd")] == ["cold", "warm", "cold"]
    fresh = office.one("warm")
    assert (fresh.moving_to, fresh.connected_at, fresh.disconnected_at) == (None, None, None)
