"""The rules of a template on the console, in the API and in the portal: plain words, changed, shown."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmgr.templates.model import Kind
from kmgr.templates.policy import Day, IdleThen, Policy, Refresh, Schedule, policy_of
from kmgr.web import calendar_text, policy_words
from tests.lab.people import SERVERS
from tests.lab.web_lab import ADMIN, USER, Said, Site, WebLab
from tests.unit.test_templates_policy import policies
from tests.unit.test_web_console import HTMX, act, refused
from tests.unit.test_web_desktops import mine

AT = "/templates/tpl-office/policy"
FORM = {
    "refresh": "on_logout", "keep_min": "", "schedule_at": "03:00", "idle_min": "", "idle_warning_s": "60",
    "idle_then": "disconnect", "calendar": "", "holidays": "", "holiday_standby": "0", "network": "",
    "clones": "1", "name_pattern": "{template}-{number}",
    "seed": "none", "properties": "", "seed_data": "",
}  # fmt: skip


async def got(site: Site, path: str, who: str) -> Said:
    """Fetch a page, or the content of a dialog."""
    dialogs = HTMX if path.startswith("/console/templates/") else {}
    return await site.send("GET", path, headers={**await site.cookie(who), **dialogs})


async def rules(site: Site) -> dict[str, Any]:
    status, found = await site.ask("GET", AT, who=ADMIN)
    assert status == 200, found
    return dict(found)


async def test_an_untouched_form_changes_nothing(site: Site) -> None:
    before = await rules(site)
    assert await act(site, "/templates/tpl-office/policy", **FORM) == "Nothing was changed."
    assert await rules(site) == before


async def test_all_rules_are_changed_in_one_form(lab: WebLab, site: Site) -> None:
    changed = {
        **FORM, "keep_min": "15", "idle_min": "30", "idle_then": "log_out", "suspend_standby": "1",
        "calendar": "mon-fri 07:30-16:00 4, 20 min earlier\n2026-12-24 08:00-12:00 1", "holidays": "2026-12-25",
        "holiday_standby": "1", "name_pattern": "pc-{number}", "seed": "nocloud", "properties": "site = hall 3",
        "seed_data": "timezone: Europe/Berlin", "sound": "1",
    }  # fmt: skip
    assert await act(site, "/templates/tpl-office/policy", **changed) == "The rules of office were changed."
    policy = (await rules(site))["policy"]
    assert (policy["keep_s"], policy["idle_s"], policy["idle_then"]) == (900, 1800, "log_out")
    assert policy["calendar"][0] == {
        "days": ["mon", "tue", "wed", "thu", "fri"], "dates": [], "start": "07:30", "end": "16:00", "standby": 4,
        "early_min": 20,
    }  # fmt: skip
    assert (policy["holidays"], policy["properties"]) == (["2026-12-25"], {"site": "hall 3"})
    assert policy["devices"] == {"clipboard": False, "sound": True, "video_mib": 16}
    said = await got(site, "/console/templates/tpl-office/policy", ADMIN)
    assert "mon-fri 07:30-16:00 4, 20 min earlier" in said.text
    shown = await got(site, "/console/templates/tpl-office/rules", ADMIN)
    assert "kept for you for 15 minutes" in shown.text
    assert "asleep until somebody comes" in shown.text


async def test_all_that_is_wrong_in_a_form_is_named_at_once(site: Site) -> None:
    wrong = {**FORM, "keep_min": "soon", "calendar": "sometimes", "properties": "nothing", "holiday_standby": "many"}
    said = await refused(site, "/templates/tpl-office/policy", **wrong)
    for part in ("minutes it is kept", "ine 1 of the calendar", "ready on a holiday", "name = value"):
        assert part in said.text
    said = await refused(site, "/templates/tpl-office/policy", **{**FORM, "refresh": "never", "keep_min": "5"})
    assert "made anew only by hand, or never" in said.text


async def test_the_api_tells_every_problem_too(site: Site) -> None:
    status, said = await site.ask("PATCH", AT, {"keep_s": -1, "idle_s": 3}, who=ADMIN)
    assert status == 400
    assert "kept after a disconnect" in said["error"]["message"]
    assert "idle time" in said["error"]["message"]
    assert (await site.ask("PATCH", AT, {"keep_s": 60}, who=USER))[0] == 403


async def test_the_time_zone_is_chosen_on_the_settings_page(site: Site) -> None:
    text = await act(site, "/settings/zone", zone="Europe/Berlin")
    assert text.endswith("in Europe/Berlin.")
    assert "no time zone" in (await refused(site, "/settings/zone", zone="Mars/Olympus")).text
    page = await got(site, "/console/settings", ADMIN)
    assert "Time zone: Europe/Berlin" in page.text


async def test_the_portal_says_how_long_a_desktop_that_was_left_is_kept(lab: WebLab, site: Site) -> None:
    await site.ask("PATCH", AT, {"keep_s": 900}, who=ADMIN)
    desktop = await mine(lab, site)
    for what in ("connected", "disconnected"):
        await lab.office.do(f"desktop.{what}", desktop=desktop, generation=1, server=SERVERS[0])
    _, found = await site.ask("GET", "/offers", who=USER)
    assert found["items"][0]["kept_until"] == lab.clock.now_ms() + 900_000
    page = await got(site, "/", USER)
    assert "it is kept for you until" in page.text
    assert ", left it" in (await got(site, f"/console/desktops/{desktop}", ADMIN)).text
    await lab.office.do("desktop.connected", desktop=desktop, generation=1, server=SERVERS[0])
    assert ", is at it since" in (await got(site, f"/console/desktops/{desktop}", ADMIN)).text
    assert "kept for you for 15 minutes, on any computer" in page.text


async def test_a_template_that_refreshes_on_a_schedule_keeps_that_when_its_size_is_changed(site: Site) -> None:
    await site.ask("PATCH", AT, {"refresh": "schedule", "schedule": {"days": ["sun"], "at": "04:00"}}, who=ADMIN)
    form = await got(site, "/console/templates/tpl-office/edit", ADMIN)
    assert 'name="refresh" value="schedule"' in form.text


async def test_what_waits_for_the_next_start_is_shown_on_desktop_and_template(lab: WebLab, site: Site) -> None:
    desktop = await mine(lab, site)
    await lab.office.standby()
    await lab.office.do("template.update", template="tpl-office", vcpus=4, policy={"network": "blue"})
    _, shown = await site.ask("GET", f"/desktops/{desktop}", who=USER)
    assert shown["pending"] == ["4 virtual CPUs instead of 1", "the network blue"]
    page = await got(site, f"/console/desktops/{desktop}", ADMIN)
    assert "Applies at its next start" in page.text
    assert "4 virtual CPUs instead of 1, the network blue." in page.text
    assert (await rules(site))["pending"] == [shown["name"]]
    part = await got(site, "/console/templates/tpl-office/rules", ADMIN)
    assert "wait on 1 of its desktops" in part.text
    report = {"desktop": desktop, "generation": 1, "server": SERVERS[0]}
    await lab.office.do("desktop.outfitted", **report)
    assert (await rules(site))["pending"] == []


# The words and the calendar's text alone


def _scheduled(*days: Day, keep_s: int | None = None) -> Policy:
    return Policy(refresh=Refresh.SCHEDULE, schedule=Schedule(days, 60), keep_s=keep_s)


@pytest.mark.parametrize(
    ("policy", "kind", "part"),
    [
        (Policy(), Kind.PERSONAL, "stays as you left it"),
        (Policy(), Kind.POOLED, "as long as you are logged in"),
        (Policy(keep_s=600), Kind.POOLED, "for 10 minutes, on any computer"),
        (Policy(refresh=Refresh.MANUAL), Kind.POOLED, "until you give it back"),
        (Policy(refresh=Refresh.NEVER), Kind.POOLED, "kept for you"),
        (_scheduled(*tuple(Day)[:5]), Kind.POOLED, "Monday to Friday at 01:00"),
        (_scheduled(Day.SUN, keep_s=3600), Kind.POOLED, "for 1 hour"),
    ],
)  # fmt: skip
def test_what_happens_when_i_leave(policy: Policy, kind: Kind, part: str) -> None:
    assert part in policy_words.leaving(policy, kind)


def test_what_happens_when_i_do_nothing() -> None:
    rule = Policy(idle_s=1800, idle_then=IdleThen.LOG_OUT)
    assert policy_words.idling(Policy(), Kind.POOLED) == ""
    assert "given back and thrown away" in policy_words.idling(rule, Kind.POOLED)
    assert "its screen closes" in policy_words.idling(rule, Kind.PERSONAL)
    assert "given back" in policy_words.closed(rule, Kind.POOLED)
    assert "as you left it" in policy_words.closed(rule, Kind.PERSONAL)


@given(policy=policies)
def test_a_calendar_is_written_as_it_is_read(policy: Policy) -> None:
    ramps, problems = calendar_text.read(calendar_text.written(policy.calendar))
    assert problems == []
    assert policy_of({"calendar": ramps}).calendar == policy.calendar


@given(text=st.text() | st.from_regex(r"[a-z]{3}-?[a-z]* \d+:\d+-\d+:\d+ \d+"))
def test_any_text_is_read_or_refused_by_line(text: str) -> None:
    ramps, problems = calendar_text.read(text)
    assert len(ramps) + len(problems) == sum(bool(line.strip()) for line in text.splitlines())
    json.dumps(ramps)
