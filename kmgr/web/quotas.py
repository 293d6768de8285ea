"""How many desktops people may have at once, as API and pages show and change it."""

from collections.abc import Mapping
from typing import Any

from kmgr.grid.outcomes import applied
from kmgr.grid.queries import settings
from kmgr.provision.allowance import SETTING, Whom, quotas
from kmgr.templates.queries import templates
from kmgr.web import present
from kmgr.web.records import Item
from kmgr.web.services import Services

WORDS = {Whom.USER: "{}", Whom.MEMBER: "each member of {}", Whom.GROUP: "all members of {} together"}


def shown(services: Services) -> list[Item]:
    """Return the quotas, each with what it means."""
    with services.grid.view() as db:
        found, names = quotas(db), {str(one.id): one.name for one in templates(db)}
    return [
        {
            "whom": one.whom,
            "subject": one.subject,
            "template": one.template or None,
            "template_name": names.get(one.template, ""),
            "most": one.most,
            "meaning": WORDS[one.whom].format(one.subject),
        }
        for one in found
    ]


def usual(services: Services) -> int:
    """Return how many desktops everybody may have whom no quota names; 0: as many as they like."""
    with services.grid.view() as db:
        return settings(db)[SETTING]


async def change(services: Services, by: str, values: Mapping[str, Any]) -> list[Item]:
    """Set a quota; returns all."""
    applied(await services.grid.propose("quota.set", {**_key(services, values), "most": values["most"]}, by=by))
    return shown(services)


async def drop(services: Services, by: str, values: Mapping[str, Any]) -> None:
    """Drop a quota; one that is not there is fine."""
    applied(await services.grid.propose("quota.drop", _key(services, values), by=by))


def _key(services: Services, values: Mapping[str, Any]) -> dict[str, Any]:
    wanted = values.get("template") or ""
    template = present.template_of(services, wanted)["id"] if wanted else ""
    return {"whom": values["whom"], "subject": values["subject"], "template": template}
