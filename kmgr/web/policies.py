"""The rules of a template as API and pages show and change them, with what they mean now."""

from collections.abc import Mapping
from typing import Any

from kmgr.grid.outcomes import applied
from kmgr.grid.zone import check_zone, local_time, zone_name
from kmgr.provision.model import Desktop, DesktopState
from kmgr.provision.outfit import machine_in, pending
from kmgr.provision.queries import desktops
from kmgr.templates.calendar import steps, wanted_standby
from kmgr.templates.machine import limits
from kmgr.templates.model import Template
from kmgr.templates.policy import as_values
from kmgr.templates.queries import template_called
from kmgr.web import policy_words
from kmgr.web.records import Item
from kmgr.web.services import Services


def template_with_rules(services: Services, wanted: str) -> Template:
    """Return a template by id or name."""
    with services.grid.view() as db:
        return template_called(db, wanted)


def shown(services: Services, wanted: str) -> Item:
    """Return a template's policy, what it means in words, and how many desktops it keeps ready now and today."""
    found = template_with_rules(services, wanted)
    with services.grid.view() as db:
        at, zone = local_time(db, services.clock.now_ms()), zone_name(db)
        own = desktops(db, template=found.id)
    waiting = [one.name for one in own if _stays(one) and pending(one, found)]
    policy = found.policy
    return {
        "template": found.id,
        "name": found.name,
        "policy": as_values(policy),
        "leaving": policy_words.leaving(policy, found.kind),
        "idling": policy_words.idling(policy, found.kind),
        "pending": waiting,
        "machine": policy_words.machine(policy.machine),
        "limits": list(limits(policy.machine)),
        "unlike": [one.name for one in own if machine_in(one.outfit, policy) != policy.machine],
        "time_zone": zone,
        "standby_now": min(found.maximum, wanted_standby(policy, found.standby, at)),
        "steps": [
            {
                "at": round(step.at.timestamp() * 1000),
                "clock": f"{step.at:%a %H:%M}",
                "standby": min(found.maximum, step.standby),
            }
            for step in steps(policy, found.standby, at)
        ],
    }


def _stays(desktop: Desktop) -> bool:
    """Tell whether a desktop will start again: what nobody has is made anew instead."""
    return desktop.owned or desktop.state is DesktopState.IN_USE


async def change(services: Services, by: str, wanted: str, values: Mapping[str, Any]) -> Item:
    """Change some rules of a template; raises all that is wrong with them at once."""
    found = template_with_rules(services, wanted)
    body = {"template": found.id, "policy": dict(values)}
    applied(await services.grid.propose("template.update", body, by=by))
    return shown(services, found.id)


def zone(services: Services) -> Item:
    """Return the grid's time zone and what time it is there."""
    with services.grid.view() as db:
        at, name = local_time(db, services.clock.now_ms()), zone_name(db)
    return {"zone": name, "clock": f"{at:%Y-%m-%d %H:%M}"}


async def change_zone(services: Services, by: str, name: str) -> Item:
    """Choose the grid's time zone."""
    applied(await services.grid.propose("grid.zone", {"zone": check_zone(name)}, by=by))
    return zone(services)
