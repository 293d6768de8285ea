"""The grid as plain values: what lists of the API and pages show, as this server knows it.

Each function reads one `grid.view()` and returns dicts made by `records`.
"""

from collections import Counter
from collections.abc import Iterable

import kmgr.balancer.queries as balancer_queries
import kmgr.grid.queries as grid_queries
import kmgr.provision.queries as provision_queries
import kmgr.replica.queries as replica_queries
import kmgr.templates.queries as template_queries
import kmgr.users.queries as user_queries
from kmgr.balancer.maintenance import weigh
from kmgr.balancer.queries import drain_progress
from kmgr.balancer.redundancy import Maintenance
from kmgr.errors import NotFound
from kmgr.grid.island_rules import limits
from kmgr.grid.model import Server, ServerState
from kmgr.ids import DesktopId, TemplateId
from kmgr.provision.drain_rows import farewell, leaving, notices
from kmgr.provision.model import DesktopState
from kmgr.provision.outfit import pending
from kmgr.settings import SETTINGS
from kmgr.users.access import may_administer
from kmgr.users.broker import Offer
from kmgr.users.model import Session
from kmgr.web import present_copies, present_versions, records
from kmgr.web.present_images import image_of as image_of
from kmgr.web.present_images import images as images
from kmgr.web.present_images import version_of as version_of
from kmgr.web.records import Item, ServerNames
from kmgr.web.services import Services


def status(services: Services) -> Item:
    """Return what this server knows about the grid and the log, for everybody."""
    now = services.grid.status()
    with services.grid.view() as db:
        info = grid_queries.grid_info(db)
        own = grid_queries.server(db, services.own.server)
    return {
        "server": now.server,
        "name": own.name if own else services.own.name,
        "grid": info.name if info else services.own.grid_name,
        "version": services.version,
        "applied": now.applied,
        "term": now.term,
        "leader": now.leader,
        "majority": now.majority,
        "island": now.island,
        "island_since": now.island_since,
    }


def banner(services: Services) -> str:
    """Say what goes on and what waits while this server reaches no majority; empty if it does."""
    now = services.grid.status()
    if now.majority:
        return ""
    with services.grid.view() as db:
        known = grid_queries.servers(db)
    if now.island:
        return limits(known, services.own.server)
    return "You see its own copy. Nothing can be changed until more servers are back; desktops go on running."


def servers(services: Services) -> list[Item]:
    """Return the servers of the grid by name."""
    with services.grid.view() as db:
        found = grid_queries.servers(db)
        counts = Counter(d.server for d in provision_queries.desktops(db) if d.state is not DesktopState.RETIRED)
        heard, now, log = services.board.all(), services.clock.monotonic(), services.grid.status()
        until = notices(db)
        drains = {
            one.id: {"until": until.get(one.id)}
            | records.drain(drain_progress(db, heard, now, one.id, now_ms=services.clock.now_ms()))
            for one in found
            if one.state is ServerState.DRAINING
        }
    return [
        records.server(
            one,
            leader=log.leader,
            voters=log.voters,
            this=services.own.server,
            vitals=heard.get(one.id),
            desktops=counts[one.id],
            now=now,
        )
        | {"drain": drains.get(one.id)}
        for one in found
    ]


def templates(services: Services) -> list[Item]:
    """Return the templates by name, with the counts of their desktops."""
    with services.grid.view() as db:
        found = template_queries.templates(db)
        image_names = {one.id: one.name for one in replica_queries.images(db)}
        numbers = {one.id: one.number for one in replica_queries.versions(db)}
        given = user_queries.assignments(db)
        states: dict[TemplateId, Counter[DesktopState]] = {}
        for one in provision_queries.desktops(db):
            states.setdefault(one.template, Counter())[one.state] += 1
        rollouts = present_versions.rollouts(db)
    return [
        records.template(
            one,
            image_name=image_names.get(one.image, one.image),
            version_number=numbers.get(one.version),
            states=states.get(one.id, {}),
            given=[a for a in given if a.template == one.id],
        )
        | rollouts[one.id]
        for one in found
    ]


def template_of(services: Services, wanted: str) -> Item:
    """Return one template by id or name."""
    every = templates(services)
    by_name = (one for one in every if one["name"] == wanted)
    by_id = (one for one in every if one["id"] == wanted)
    found = next(by_id, None) or next(by_name, None)
    if found is None:
        raise NotFound(f"there is no template {wanted}")
    return found


def assignments(services: Services, template: str) -> list[Item]:
    """Return who may use a template (by id)."""
    with services.grid.view() as db:
        if template_queries.template(db, TemplateId(template)) is None:
            raise NotFound(f"there is no template {template}")
        return [records.assignment(one) for one in user_queries.assignments(db, TemplateId(template))]


def desktops(services: Services, session: Session, *, own: bool = False) -> list[Item]:
    """Return the desktops by name: all for an administrator (unless `own`), their own for others."""
    person = session.person
    every = may_administer(person).allowed and not own
    with services.grid.view() as db:
        found = provision_queries.desktops(db, user=None if every else person.name)
        template_names = {one.id: one.name for one in template_queries.templates(db)}
        sight = present_copies.look(services, db)
    return [sight.desktop(one, template_names) for one in found]


def desktop_of(services: Services, session: Session, desktop_id: str) -> Item:
    """Return one desktop that this person may see, with what it waits for as its server last told."""
    found = services.broker.see(session.person, DesktopId(desktop_id))
    with services.grid.view() as db:
        template_names = {one.id: one.name for one in template_queries.templates(db)}
        sight = present_copies.look(services, db)
        made_from = template_queries.template(db, found.template)
        mine = found.user == session.person.name and not found.personal
        lost = present_copies.lost_by(db, session.person.name, sight).get(found.template) if mine else None
    vitals = services.board.all().get(found.server)
    told = "" if vitals is None else str(vitals.extra.get("waiting", {}).get(found.id, ""))
    waiting = services.waiting(found.id) if found.server == services.own.server else told
    shown = sight.desktop(found, template_names)
    later = list(pending(found, made_from)) if made_from is not None else []
    return {**shown, "waiting": waiting, "superseded": sight.superseded(found), "pending": later, "lost": lost}


def offers(services: Services, session: Session) -> list[Item]:
    """Return what this person may use, by name."""
    with services.grid.view() as db:
        sight = present_copies.look(services, db)
        endings = present_versions.endings(db)
        farewells = {one.desktop: farewell(db, one) for one in leaving(db).values()}
        lost = present_copies.lost_by(db, session.person.name, sight)

    def shown(one: Offer) -> Item:
        names = {one.template.id: one.template.name}
        ending = "" if one.desktop is None else endings.get((one.desktop.template, one.desktop.version), "")
        if one.desktop is not None:
            ending = farewells.get(one.desktop.id, ending)
        own = sight.desktop(one.desktop, names) if one.desktop else None
        return {**records.offer(one, desktop=own), "ending": ending, "lost": lost.get(one.template.id)}

    return [shown(one) for one in services.broker.offers(session.person)]


def sessions(services: Services, asking: Session) -> list[Item]:
    """Return the living sessions, newest first: all for an administrator, their own for others."""
    every = may_administer(asking.person).allowed
    now = services.clock.now_ms()
    with services.grid.view() as db:
        found = user_queries.sessions(db)
        names = _server_names(grid_queries.servers(db, removed=True))
    return [
        records.session(one, servers=names, current=asking.hash)
        for one in found
        if one.expires_at > now and (every or one.person.name == asking.person.name)
    ]


def accounts(services: Services) -> list[Item]:
    """Return the built-in accounts by name."""
    with services.grid.view() as db:
        return [records.account(one) for one in user_queries.accounts(db)]


def account_of(services: Services, name: str) -> Item:
    """Return one built-in account."""
    return _found(accounts(services), "name", name, "account")


def directories(services: Services) -> list[Item]:
    """Return the configured directories in the order in which they are asked."""
    with services.grid.view() as db:
        return [records.directory(one) for one in user_queries.directories(db)]


def settings(services: Services) -> list[Item]:
    """Return the grid-wide settings with their limits and meaning."""
    with services.grid.view() as db:
        values = grid_queries.settings(db)
    return [
        {
            "name": name,
            "value": values[name],
            "default": one.default,
            "least": one.least,
            "most": one.most,
            "help": one.help,
        }
        for name, one in sorted(SETTINGS.items())
    ]


def events(
    services: Services,
    before: int | None = None,
    limit: int = 50,
    kind: str | None = None,
    subject: str | None = None,
) -> list[Item]:
    """Return lines of the history, newest first; `before` (an event's `n`) continues an earlier page."""
    with services.grid.view() as db:
        found = grid_queries.events(db, before=before, limit=limit, kind=kind or None, subject=subject or None)
        names = _server_names(grid_queries.servers(db, removed=True))
    return [records.event(one, servers=names) for one in found]


def imports(services: Services) -> list[Item]:
    """Return the imports that failed on this server within the last hour, then those that run; each oldest first."""
    importer = services.importer
    jobs = (*importer.failed(), *services.reception.progress(), *importer.running())
    return [records.importing(one) for one in jobs]


def importing(services: Services, import_id: str) -> Item:
    """Return one import of this server."""
    return records.importing(services.reception.find(import_id))


def redundancy(services: Services) -> Item:
    """Return whether any one server may be lost now (`ok`), and in `sentences` why, or what to do."""
    heard, now = services.board.all(), services.clock.monotonic()
    with services.grid.view() as db:
        found = balancer_queries.redundancy_now(db, heard, services.grid.status().voters, now)
    return {"ok": found.ok, "sentences": list(found.sentences)}


def reasons_against(services: Services, action: Maintenance) -> list[str]:
    """Return what would be weaker after a drain or a removal, sentence by sentence."""
    return list(weigh(services.grid, services.board, action, clock=services.clock).reasons)


def shortages(services: Services) -> list[Item]:
    """Return which templates have too few desktops and cannot be refilled now: template, missing, reason."""
    heard, now = services.board.all(), services.clock.monotonic()
    with services.grid.view() as db:
        found = balancer_queries.shortages_now(db, heard, now, at_ms=services.clock.now_ms())
    return [{"template": one.template, "missing": one.missing, "reason": one.reason} for one in found]


def overview(services: Services) -> Item:
    """Return the console's first page: counts, redundancy, problems of all servers, imports, the latest events."""
    every_server, every_template = servers(services), templates(services)
    counted = [one for one in every_server if one["role"] == "server"]
    with services.grid.view() as db:
        states = Counter(one.state for one in provision_queries.desktops(db))
        now = services.clock.now_ms()
        people_now = len({one.person.name for one in user_queries.sessions(db) if one.expires_at > now})
    return {
        "status": status(services),
        "banner": banner(services),
        "servers": {str(state): _having(counted, "state", state) for state in _SHOWN_STATES},
        "desktops": {str(state): states.get(state, 0) for state in DesktopState},
        "templates": len(every_template),
        "people": people_now,
        "redundancy": redundancy(services),
        "problems": _problems(every_server, every_template, shortages(services)),
        "imports": imports(services),
        "events": events(services, limit=10),
    }


_SHOWN_STATES = (ServerState.UP, ServerState.DRAINING, ServerState.JOINING, ServerState.LOST)


def _problems(servers: Iterable[Item], templates: Iterable[Item], short: Iterable[Item]) -> list[Item]:
    """Say what needs a person: `{"kind": server|template, "id", "name", "text"}` each."""
    found = []
    for one in servers:
        texts = list(one["problems"])
        if one["state"] == ServerState.LOST:
            texts = ["This server is lost: the other servers do not hear from it"]
        found += [{"kind": "server", "id": one["id"], "name": one["name"], "text": text} for text in texts]
    reasons = {one["template"]: one["reason"] for one in short}
    for one in templates:
        text = one["broken_cause"] or reasons.get(one["id"], "")
        if text:
            found.append({"kind": "template", "id": one["id"], "name": one["name"], "text": text})
    return found


def _server_names(records: Iterable[Server]) -> ServerNames:
    return {one.id: one.name for one in records}


def _having(items: Iterable[Item], field: str, value: str) -> int:
    return sum(one[field] == value for one in items)


def _found(items: Iterable[Item], field: str, value: str, what: str) -> Item:
    for one in items:
        if one[field] == value:
            return one
    raise NotFound(f"there is no {what} {value}")
