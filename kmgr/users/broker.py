"""From "I want a desktop" to a desktop: entitlement, claim, or an honest word about the wait.

Runs in the daemon's loop; the claim itself is a log entry, so that one user
gets one desktop however many servers they ask at once.
"""

from contextlib import suppress
from dataclasses import dataclass
from statistics import median
from typing import TypeAlias

from sqlite_utils import Database

from kmgr.clock import Clock
from kmgr.errors import NotAllowed, NotFound, OutcomeUnknown, Unavailable
from kmgr.grid.envelope import Rejected
from kmgr.grid.model import PLACEABLE, RUNNING
from kmgr.grid.outcomes import applied
from kmgr.grid.port import Grid
from kmgr.grid.queries import servers
from kmgr.ids import DesktopId
from kmgr.provision.lifecycle import LIVING
from kmgr.provision.model import Desktop, DesktopState, Purpose
from kmgr.provision.queries import asks, desktops
from kmgr.provision.queries import desktop as find_desktop
from kmgr.templates.model import Refresh, Template
from kmgr.templates.queries import template as find_template
from kmgr.templates.queries import template_called, templates
from kmgr.users import access
from kmgr.users.model import Person, Verdict
from kmgr.users.queries import assignments

# How often a waiting person's request is repeated; the balancer bears two that are lost.
ASK_AGAIN_S = 60.0
# Told when nothing was ever built here: a guess that is rather too long than too short.
_UNKNOWN_BUILD_S = 60


@dataclass(frozen=True, slots=True)
class Ready:
    """The user's desktop. `new` tells that it was claimed just now."""

    desktop: Desktop
    new: bool


@dataclass(frozen=True, slots=True)
class Wait:
    """No desktop is ready: ask again. `estimate_s` is None if nothing is on its way; `reason` is for the user."""

    estimate_s: int | None
    reason: str


Answer: TypeAlias = Ready | Wait


@dataclass(frozen=True, slots=True)
class Offer:
    """A template that a person may use, their desktop of it if they have one, and how many stand by."""

    template: Template
    desktop: Desktop | None
    standby: int
    reason: str


class Broker:
    """Answers what a person may use and gives it to them."""

    def __init__(self, grid: Grid, *, clock: Clock) -> None:
        self._grid = grid
        self._clock = clock
        self._asked: dict[tuple[str, str], float] = {}

    def offers(self, person: Person) -> tuple[Offer, ...]:
        """Return the templates that a person may use, by name; one that is switched off only while they have it."""
        with self._grid.view() as db:
            given = assignments(db)
            known = templates(db)
            giving = {server.id for server in servers(db) if server.state in PLACEABLE}
            every = desktops(db)
            mine = {template.id: _own(db, person, template) for template in known}
        found = []
        for template in known:
            verdict = access.may_use(person, template.id, given)
            own = mine[template.id]
            if verdict.allowed and (template.enabled or own is not None):
                of_it = (d for d in every if d.template == template.id and d.server in giving)
                ready = sum(d.state is DesktopState.READY for d in of_it)
                found.append(Offer(template, own, ready, verdict.reason))
        return tuple(found)

    def verdict(self, person: Person, wanted: str) -> Verdict:
        """Tell whether a person may use a template (id or name), and why."""
        template = self._template(wanted)
        with self._grid.view() as db:
            return access.may_use(person, template.id, assignments(db, template.id))

    async def open(self, person: Person, wanted: str) -> Answer:
        """Give a person a desktop of a template (id or name), or say how long it will take."""
        template = self._template(wanted)
        verdict = self.verdict(person, template.id)
        if not verdict.allowed:
            raise NotAllowed(f"You may not use {template.name}: {verdict.reason}. Ask your administrator.")
        with self._grid.view() as db:
            own = _own(db, person, template)
        if not template.enabled and own is None:
            raise NotAllowed(f"{template.name} is switched off at present. Ask your administrator.")
        body = {"user": person.name, "template": template.id, "groups": list(person.groups)}
        try:
            outcome = await self._grid.propose("desktop.claim", body, by=person.name)
        except Unavailable:
            # Without a majority nobody gets anything new, but what one has can be opened.
            if own is None or own.personal:
                raise
            return Ready(own, new=False)
        if isinstance(outcome, Rejected) and outcome.code == "none_ready":
            await self._ask(person, template)
            return self._wait(person, template)
        if isinstance(outcome, Rejected) and outcome.code == "away":
            return Wait(None, outcome.detail)
        if isinstance(outcome, Rejected) and outcome.code == "quota":
            raise NotAllowed(outcome.detail, code="quota")
        values = applied(outcome)
        with self._grid.view() as db:
            desktop = find_desktop(db, DesktopId(values["desktop"]))
        if desktop is None:
            return self._wait(person, template)
        return Ready(desktop, bool(values["new"]))

    async def delete(self, person: Person, desktop: DesktopId, *, lose: str) -> None:
        """Delete a personal desktop with its user's work; `lose` is that user's name, as a confirmation."""
        verdict = access.may_administer(person)
        if not verdict.allowed:
            raise NotAllowed(f"A personal desktop is deleted by an administrator: {verdict.reason}.")
        body = {"desktop": desktop, "why": f"{person.name} ordered it", "lose": lose}
        applied(await self._grid.propose("desktop.retire", body, by=person.name))

    def see(self, person: Person, desktop: DesktopId) -> Desktop:
        """Return a desktop that a person may see; others do not exist for them."""
        with self._grid.view() as db:
            found = find_desktop(db, desktop)
        if found is None or not access.may_have(person, found.user).allowed:
            raise NotFound(f"there is no desktop {desktop}, or it is not yours")
        return found

    async def release(self, person: Person, desktop: DesktopId) -> None:
        """Give a desktop back: it is thrown away and a fresh one is made."""
        found = self.see(person, desktop)
        if found.user == person.name:
            self._may_give_back(person, found)
            body = {"desktop": desktop, "user": person.name}
            applied(await self._grid.propose("desktop.release", body, by=person.name))
            return
        body = {"desktop": desktop, "why": f"{person.name} ordered it"}
        applied(await self._grid.propose("desktop.retire", body, by=person.name))

    def _may_give_back(self, person: Person, desktop: Desktop) -> None:
        """Raise `NotAllowed` where a template's desktops are never made anew, but for an administrator."""
        with self._grid.view() as db:
            made_from = find_template(db, desktop.template)
        never = made_from is not None and made_from.refresh is Refresh.NEVER
        if never and not access.may_administer(person).allowed:
            raise NotAllowed(
                f"Desktop {desktop.name} is kept for you: desktops of its template are never made anew. Ask your "
                "administrator."
            )

    def _template(self, wanted: str) -> Template:
        with self._grid.view() as db:
            return template_called(db, wanted)

    async def _ask(self, person: Person, template: Template) -> None:
        """Have a desktop made for somebody who waits: they ask here every few seconds, the log once a minute.

        On an island that cannot be noted, and nobody waits to hear so: what was agreed is made all the same.
        """
        if self._grid.status().island:
            return
        now, key = self._clock.monotonic(), (person.name, template.id)
        self._asked = {one: at for one, at in self._asked.items() if now - at < ASK_AGAIN_S}
        with self._grid.view() as db:
            noted = any(ask.user == person.name for ask in asks(db, template.id))
        if noted and key in self._asked:
            return
        # It could not be told now: they ask again in a few seconds.
        with suppress(Unavailable, OutcomeUnknown):
            body = {"user": person.name, "template": template.id, "groups": list(person.groups)}
            await self._grid.propose("desktop.ask", body, by=person.name)
            self._asked[key] = now

    def _wait(self, person: Person, template: Template) -> Wait:
        with self._grid.view() as db:
            every = desktops(db, template=template.id)
            before = [ask.user for ask in asks(db, template.id)]
            giving = any(server.state in PLACEABLE and not server.is_witness for server in servers(db))
        if template.broken_cause:
            return Wait(None, f"{template.name} cannot be prepared at present. Your administrator has been told.")
        # Others who wait longer are likely to get what is ready first.
        turn = before.index(person.name) if person.name in before else len(before)
        coming = [d for d in every if d.state in (DesktopState.PLACED, DesktopState.BUILDING)]
        if len(coming) > turn:
            return self._coming(template, every, coming, turn)
        if sum(d.state in LIVING for d in every) >= template.maximum:
            told = "in use or on their way to others" if coming else "in use"
            return Wait(None, f"All {template.maximum} desktops of {template.name} are {told}. Try again later.")
        if not giving:
            return Wait(None, "No server can make a desktop at present. Try again later, or ask your administrator.")
        return Wait(None, f"No desktop of {template.name} is ready yet. A new one is begun as soon as there is room.")

    def _coming(self, template: Template, every: tuple[Desktop, ...], coming: list[Desktop], turn: int) -> Wait:
        # One that is tried or boots again keeps its first stamp, which says nothing about how long that takes.
        built = [(d.ready_at - d.created_at) / 1000 for d in every if d.ready_at is not None and d.generation == 1]
        usual = median(built) if built else _UNKNOWN_BUILD_S
        fresh = {d.id for d in coming if d.generation == 1 and d.ready_at is None}
        begun = sorted(d.created_at if d.id in fresh else d.changed_at for d in coming)[turn]
        waited = (self._clock.now_ms() - begun) / 1000
        # What is overdue is not "ready in 0 s": count the usual time once again, then promise nothing.
        left = usual - waited if waited < usual else 2 * usual - waited
        if left <= 0:
            return Wait(None, f"A desktop of {template.name} is being prepared, but takes longer than usual.")
        return Wait(max(1, round(left)), "Your desktop is being prepared.")


def _own(db: Database, person: Person, template: Template) -> Desktop | None:
    """Return the desktop that a claim would find again; a personal one also while its server is lost."""
    alive = {server.id for server in servers(db) if server.state in RUNNING}
    found = [
        d
        for d in desktops(db, template=template.id, user=person.name)
        if d.owned or (d.state is DesktopState.IN_USE and d.server in alive and d.purpose is Purpose.USE)
    ]
    return min(found, key=lambda d: (d.claimed_at or 0, d.id), default=None)
