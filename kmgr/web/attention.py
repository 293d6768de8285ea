"""What an open page of a desktop should know: its user's absence, asked of the desktop's own server, and its end."""

from kmgr.errors import NotAllowed
from kmgr.ids import DesktopId
from kmgr.provision.attendance import ATTENTION
from kmgr.provision.drain_rows import farewell, leaving
from kmgr.templates.policy import USUAL
from kmgr.templates.queries import template as find_template
from kmgr.users.model import Session
from kmgr.web import policy_words
from kmgr.web.records import Item
from kmgr.web.services import Services

_ASKED_S = 5.0


async def of_desktop(services: Services, session: Session, desktop: str, *, extend: bool = False) -> Item:
    """Return how a desktop stands with its idle rule, and when it ends if its server drains.

    `extend`: its user says that they are there.
    """
    found = services.broker.see(session.person, DesktopId(desktop))
    if found.user is not None and found.user != session.person.name:
        raise NotAllowed(f"Only {found.user} can say whether they are at {found.name}.")
    with services.grid.view() as db:
        made_from = find_template(db, found.template)
        leaves = leaving(db).get(found.id)
        text = "" if leaves is None else farewell(db, leaves)
    policy = made_from.policy if made_from is not None else USUAL
    body = {"desktop": found.id, "user": found.user, "extend": extend}
    told = await services.requests.call(found.server, ATTENTION, body, timeout_s=_ASKED_S)
    idleness = str(told["idleness"])
    words = policy_words.closed if idleness == "closed" else policy_words.idling
    return {
        "idleness": idleness,
        "left_s": round(float(told["left_s"])),
        "again_s": round(float(told["again_s"])),
        "then": str(told["then"]),
        "text": words(policy, found.kind),
        "farewell": text,
        "message": str(told.get("message", "")),
    }
