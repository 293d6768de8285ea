"""The rules of a template: shown beside its versions, changed in a dialog, and the grid's time zone."""

from collections.abc import Mapping
from typing import Any

from aiohttp import web

from kmgr.templates.machine import Firmware, Hardware
from kmgr.templates.policy import VIDEO_MIB, Clones, Day, IdleThen, Refresh, Seed
from kmgr.web import auth, calendar_text, forms, html_env, policies
from kmgr.web.forms import Form
from kmgr.web.records import Item
from kmgr.web.services import SERVICES

_DAYS_MIN, _WEEK_MIN = 30 * 1440, 7 * 1440


def add_routes(app: web.Application) -> None:
    """Add what is done with rules and the time zone."""
    at = "/console/templates/{template}"
    app.add_routes(
        [
            web.get(f"{at}/rules", show),
            web.get(f"{at}/policy", ask),
            web.post(f"{at}/policy", change),
            web.get("/console/settings/zone", ask_zone),
            web.post("/console/settings/zone", change_zone),
        ]
    )


async def show(request: web.Request) -> web.Response:
    """Show what the rules mean."""
    return html_env.dialog(request, "console/part/policy.html", rules=_rules(request))


async def ask(request: web.Request) -> web.Response:
    """Show the form."""
    rules = _rules(request)
    found = policies.template_with_rules(request.app[SERVICES], rules["template"])
    values = {
        "rules": rules,
        "kind": str(found.kind),
        "days": list(Day),
        "calendar": calendar_text.written(found.policy.calendar),
        "example": calendar_text.EXAMPLE,
        "properties": "\n".join(f"{name} = {value}" for name, value in found.policy.properties),
    }
    return html_env.dialog(request, "console/dialog/policy.html", **values)


async def change(request: web.Request) -> web.Response:
    """Change what was changed in the form."""
    by, rules = auth.require_admin(request).person.name, _rules(request)
    wanted = forms.checked(await forms.read_form(request), lambda form: _values(form, rules["policy"]))
    changed = {name: value for name, value in wanted.items() if value != rules["policy"][name]}
    if not changed:
        return html_env.done(request, "Nothing was changed.", to=_page(rules))
    await policies.change(request.app[SERVICES], by, rules["template"], changed)
    return html_env.done(request, f"The rules of {rules['name']} were changed.", to=_page(rules))


async def ask_zone(request: web.Request) -> web.Response:
    """Show the time zone's form."""
    auth.require_admin(request)
    return html_env.dialog(request, "console/dialog/zone.html", zone=policies.zone(request.app[SERVICES]))


async def change_zone(request: web.Request) -> web.Response:
    """Choose another time zone."""
    by, form = auth.require_admin(request).person.name, await forms.read_form(request)
    name = form.text("zone", "the time zone")
    form.check()
    found = await policies.change_zone(request.app[SERVICES], by, name)
    return html_env.done(request, f"It is {found['clock']} in {found['zone']}.", to="/console/settings")


def _rules(request: web.Request) -> Item:
    auth.require_admin(request)
    return policies.shown(request.app[SERVICES], request.match_info["template"])


def _page(rules: Item) -> str:
    return f"/console/templates/{rules['template']}"


def _values(form: Form, before: Mapping[str, Any]) -> dict[str, Any]:
    ramps, problems = calendar_text.read(form.text("calendar"))
    for problem in problems:
        form.add_problem(problem)
    return {
        **(_leaving(form, before) if form.text("refresh") else {}),
        "idle_s": _minutes(form, "idle_min", "the idle time in minutes", _WEEK_MIN),
        "idle_warning_s": form.number("idle_warning_s", "the warning in seconds", least=10, most=3600),
        "idle_then": form.choice("idle_then", "what follows on idling", IdleThen),
        "calendar": ramps,
        "holidays": sorted(form.words("holidays")),
        "holiday_standby": form.number("holiday_standby", "ready on a holiday", least=0, most=1000),
        "suspend_standby": form.ticked("suspend_standby"),
        "network": form.text("network"),
        "devices": {
            **{name: form.ticked(name) for name in ("clipboard", "sound")},
            "video_mib": _video(form, before["devices"]["video_mib"]),
        },
        **(_machine(form) if form.text("firmware") else {}),
        "instant_clone": Clones.AUTO if form.ticked("clones") else Clones.NEVER,
        "name_pattern": form.text("name_pattern", "the computer name"),
        "seed": form.choice("seed", "the first-boot program", Seed),
        "seed_data": form.text("seed_data"),
        "properties": _properties(form),
    }


def _leaving(form: Form, before: Mapping[str, Any]) -> dict[str, Any]:
    refresh = form.choice("refresh", "when it is made anew", Refresh)
    days = [day for day in Day if form.ticked(f"schedule_{day}")]
    schedule = {"days": days, "at": form.text("schedule_at")} if refresh == Refresh.SCHEDULE else before["schedule"]
    kept = _minutes(form, "keep_min", "the minutes it is kept", _DAYS_MIN)
    return {"refresh": refresh, "schedule": schedule, "keep_s": kept}


def _video(form: Form, before: int) -> int:
    sizes = [str(size) for size in VIDEO_MIB]
    chosen = form.choice("video_mib", "the largest screen", sizes) if form.text("video_mib") else str(before)
    return int(chosen) if chosen in sizes else before


def _machine(form: Form) -> dict[str, Any]:
    firmware = form.choice("firmware", "what a desktop starts by", Firmware)
    hardware = form.choice("hardware", "disk and network card", Hardware)
    return {"machine": {"firmware": firmware, "tpm": form.ticked("tpm"), "hardware": hardware}}


def _minutes(form: Form, name: str, label: str, most: int) -> int | None:
    return 60 * form.number(name, label, least=0, most=most) if form.text(name) else None


def _properties(form: Form) -> dict[str, str]:
    found = {}
    for line in form.text("properties").splitlines():
        name, is_pair, value = line.partition("=")
        if is_pair:
            found[name.strip()] = value.strip()
        elif line.strip():
            form.add_problem(f"the property {line.strip()!r}: write it like name = value")
    return found
