"""What people do to the versions of a template, for API and pages alike; see `actions`."""

from collections.abc import Mapping
from typing import Any

from kmgr.errors import Conflict, KmgrError, Unavailable
from kmgr.grid.outcomes import applied
from kmgr.ids import TemplateId
from kmgr.provision.warming import AGAIN as CLONES_AGAIN
from kmgr.web import present, present_versions, present_warm
from kmgr.web.records import Item
from kmgr.web.services import Services

PASS, STOP = "pass", "stop"
_HOW = ("notes", "canary", "canary_percent", "watch_s", "patience_s")

Values = Mapping[str, Any]


async def publish(services: Services, by: str, template: str, values: Values) -> Item:
    """Make new desktops from another version (id or number), if wished after a canary; returns the template."""
    known = present.template_of(services, template)
    version = present_versions.version_of(services, known["id"], values["version"])["version"]
    how = {name: values[name] for name in _HOW if name in values}
    await _change(services, by, "template.publish", {"template": known["id"], "version": version, **how})
    return present.template_of(services, known["id"])


async def roll_back(services: Services, by: str, template: str, version: str | int | None = None) -> Item:
    """Go back to a version, the default before if none is given; a canary that goes on only ends then."""
    known = present.template_of(services, template)
    body = {"template": known["id"]}
    if version is not None:
        body["version"] = present_versions.version_of(services, known["id"], version)["version"]
    await _change(services, by, "template.roll_back", body)
    return present.template_of(services, known["id"])


async def decide(services: Services, by: str, template: str, verdict: str) -> Item:
    """Let a canary pass now, or stop it."""
    known = present.template_of(services, template)
    if known["canary"] is None:
        raise Conflict(f"No canary is under way in template {known['name']}.")
    body = {"template": known["id"], "version": known["canary"]["version"]}
    if verdict == PASS:
        await _change(services, by, "template.canary_passed", body)
    else:
        why = {"step": "", "cause": f"because {by} stopped it", "by_hand": True}
        await _change(services, by, "template.canary_stopped", {**body, **why})
    return present.template_of(services, known["id"])


async def tag(services: Services, by: str, template: str, name: str, version: str | int) -> Item:
    """Give a version a name; returns the version."""
    known = present.template_of(services, template)
    found = present_versions.version_of(services, known["id"], version)
    body = {"template": known["id"], "tag": name, "version": found["version"]}
    await _change(services, by, "template.tag", body)
    return present_versions.version_of(services, known["id"], found["version"])


async def untag(services: Services, by: str, template: str, name: str) -> None:
    """Take a name from whichever version has it."""
    known = present.template_of(services, template)
    await _change(services, by, "template.untag", {"template": known["id"], "tag": name})


async def set_dates(services: Services, by: str, template: str, version: str | int, values: Values) -> Item:
    """Say when a version ends (`soft_at`, `hard_at`; 0: never, missing: as it is); returns the version."""
    known = present.template_of(services, template)
    found = present_versions.version_of(services, known["id"], version)
    dates = {name: values.get(name, found[name]) or None for name in ("soft_at", "hard_at")}
    body = {"template": known["id"], "version": found["version"], **dates}
    await _change(services, by, "template.expiry", body)
    return present_versions.version_of(services, known["id"], found["version"])


async def try_clones(services: Services, by: str, template: str) -> list[str]:
    """Have servers that stopped trying to restore desktops of a template try again; returns their names."""
    known = present.template_of(services, template)
    asked = present_warm.stopped(services, TemplateId(known["id"]))
    failed = []
    for server, name in sorted(asked.items(), key=lambda one: one[1]):
        try:
            await services.requests.call(server, CLONES_AGAIN, {"template": known["id"], "by": by})
        except KmgrError as error:
            failed.append(f"{name}: {error.message}")
    if failed:
        raise Unavailable(f"Not every server could be asked ({'; '.join(failed)}). Try again once it is there.")
    return sorted(asked.values())


async def _change(services: Services, by: str, type: str, body: Values) -> None:
    applied(await services.grid.propose(type, body, by=by))
