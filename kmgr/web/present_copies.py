"""The safe copies of personal desktops as plain values: where, how old, and what is wrong, in words.

How old a copy is comes with its server's heartbeat, because the log hears of it
only now and then; without a heartbeat the log's last word counts.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sqlite_utils import Database

from kmgr.balancer.place import lacking, machines
from kmgr.balancer.protection import bad_on
from kmgr.grid.model import RUNNING, Vitals
from kmgr.grid.queries import servers, settings
from kmgr.ids import AccountName, DesktopId, ServerId, TemplateId
from kmgr.provision.causes import Trouble
from kmgr.provision.copy_commands import loss
from kmgr.provision.losses import Loss, losses
from kmgr.provision.model import Copy, CopyState, Desktop, TakeOver
from kmgr.provision.outfit import machine_in
from kmgr.provision.queries import copies, take_overs, tenures
from kmgr.provision.rhythm import alarming
from kmgr.templates.policy import USUAL
from kmgr.web import records, words
from kmgr.web.records import Item, ServerNames, TemplateNames
from kmgr.web.services import Services

_LIVE = (CopyState.WANTED, CopyState.READY)
_HELD = (
    "when the grid lost {0}, it had the right to go on without the others; once you say that it is switched off "
    "(here, or by kmgr off {0}), the desktop starts from this copy"
)
_BAD = (
    "it is compared with the desktop's disk from beginning to end now, and what is wrong is brought again; look "
    "after the disk of {0}: smartctl and dmesg tell more"
)
_GONE = (
    "What you had open there, and what you had saved only on that desktop, is gone; what is on a network drive is "
    "there. You get a new desktop."
)
# For how long a person is told what the last start from a copy cost them.
TOLD_MS = 86_400_000


@dataclass(frozen=True, slots=True)
class Sight:
    """One reading of all copies and heartbeats: what the texts are made from."""

    copies: Mapping[DesktopId, tuple[Copy, ...]]
    taken: Mapping[DesktopId, TakeOver]
    running: frozenset[ServerId]
    tenures: frozenset[ServerId]
    names: ServerNames
    heard: Mapping[ServerId, Vitals]
    target_s: int
    now_ms: int
    now: float

    def desktop(self, one: Desktop, templates: TemplateNames) -> Item:
        """Present a desktop with how it is protected, and what its last start from a safe copy left out."""
        protection, taken_over = self.protection(one), self.taken_over(one)
        return records.desktop(
            one, templates=templates, servers=self.names, protection=protection, taken_over=taken_over
        )

    def protection(self, desktop: Desktop) -> Item | None:
        """Say how a personal desktop is protected; None for one that is not personal or nobody's."""
        if not desktop.owned:
            return None
        mine = self.copies.get(desktop.id, ())
        starting = [c for c in mine if c.state is CopyState.STARTING and c.server == desktop.server]
        live = [c for c in mine if c.state in _LIVE and c.generation == desktop.generation]
        if starting and desktop.trouble is Trouble.BAD_COPY:
            text = f"the safe copy on {self._name(desktop.server)} has gone bad, nothing was started from it"
            return _protection("none", starting[0].server, self.names, text, starting[0].as_of)
        if starting:
            text = f"starts from its safe copy on {self._name(desktop.server)}"
            return _protection("starting", starting[0].server, self.names, text, starting[0].as_of)
        ready = max((c for c in live if c.state is CopyState.READY), key=lambda c: c.as_of or 0, default=None)
        age_s, cause = self._told(desktop)
        if ready is None:
            return self._unprotected(live, cause)
        if self._is_bad(ready) and desktop.server in self.running:
            text = f"the safe copy on {self._name(ready.server)} has gone bad"
            item = _protection("late", ready.server, self.names, text, ready.as_of)
            return {**item, "age_s": age_s, "cause": cause or _BAD.format(self._name(ready.server))}
        age = age_s if age_s is not None else max(0, (self.now_ms - (ready.as_of or 0)) // 1000)
        text = f"safe copy on {self._name(ready.server)}, {words.span(age)} old"
        if missing := self._missing(desktop, ready):
            item = _protection("late", ready.server, self.names, text, ready.as_of)
            return {**item, "age_s": age, "cause": f"it cannot be started there: {missing}"}
        if desktop.server in self.tenures and desktop.server not in self.running:
            item = _protection("held", ready.server, self.names, text, ready.as_of)
            return {**item, "age_s": age, "cause": _HELD.format(self._name(desktop.server))}
        late = alarming(age, self.target_s)
        why = cause if late else ""
        if late and desktop.server not in self.running:
            why = why or f"{self._name(desktop.server)} is lost: the desktop goes on from this copy"
        item = _protection("late" if late else "safe", ready.server, self.names, text, ready.as_of)
        return {**item, "age_s": age, "cause": why}

    def superseded(self, desktop: Desktop) -> list[Item]:
        """Return the former disks that are kept, the newest first."""
        former = {CopyState.SUPERSEDED}
        if desktop.server not in self.running or desktop.trouble is Trouble.BAD_COPY:
            former.add(CopyState.LEFT)
        mine = [c for c in self.copies.get(desktop.id, ()) if c.state in former]
        return [
            {
                "server": copy.server,
                "server_name": self._name(copy.server),
                "generation": copy.generation,
                "since": copy.changed_at,
            }
            for copy in sorted(mine, key=lambda c: (-c.generation, c.server))
        ]

    def taken_over(self, desktop: Desktop) -> Item | None:
        """Say what the last start from a safe copy left out; None if there was none of late."""
        last = self.taken.get(desktop.id)
        if last is None or last.as_of is None or self.now_ms - last.at > TOLD_MS:
            return None
        return {
            "at": last.at,
            "from": self._name(last.source),
            "to": self._name(last.target),
            "as_of": last.as_of,
            "lost_s": max(0, -(-(last.heard_at - last.as_of) // 1000)),
            "text": f"server {self._name(last.source)} was lost: {loss(last.as_of, last.heard_at)}.",
        }

    def lost(self, one: Loss) -> Item | None:
        """Say what a user lost with a server and its pooled desktop; None if that is long ago."""
        if self.now_ms - one.at > TOLD_MS:
            return None
        name = self._name(one.server)
        return {
            "at": one.at,
            "desktop": one.desktop,
            "server_name": name,
            "text": f"Your desktop {one.desktop} was lost with server {name}. {_GONE}",
        }

    def _unprotected(self, live: Iterable[Copy], cause: str) -> Item:
        coming = next(iter(live), None)
        if coming is None:
            return {**_protection("none", None, self.names, "no safe copy yet", None), "cause": cause}
        verb = "is to be made" if cause else "is being made"
        text = f"the first safe copy {verb} on {self._name(coming.server)}"
        return {**_protection("making", coming.server, self.names, text, None), "cause": cause}

    def _is_bad(self, copy: Copy) -> bool:
        return copy.desktop in bad_on(self.heard.get(copy.server))

    def _missing(self, desktop: Desktop, copy: Copy) -> str:
        """Say what the copy's server lacks to make the desktop's machine, by its last word; empty if nothing."""
        there = self.heard.get(copy.server)
        lacks = lacking(machine_in(desktop.outfit, USUAL), machines(there)) if there is not None else None
        return f"{self._name(copy.server)} {lacks}" if lacks else ""

    def _told(self, desktop: Desktop) -> tuple[int | None, str]:
        vitals = self.heard.get(desktop.server)
        told = vitals.extra.get("copies", {}).get(desktop.id) if vitals else None
        if vitals is None or not isinstance(told, list) or len(told) != 2:
            return None, ""
        age = told[0]
        return (age + round(self.now - vitals.heard_at) if isinstance(age, int) else None), str(told[1])

    def _name(self, server: ServerId) -> str:
        return self.names.get(server, server)


def lost_by(db: Database, user: AccountName, sight: Sight) -> Mapping[TemplateId, Item]:
    """Return what a user lost of late with a server, by template."""
    told = {one.template: sight.lost(one) for one in losses(db, user)}
    return {template: item for template, item in told.items() if item is not None}


def look(services: Services, db: Database) -> Sight:
    """Read all that is needed, in the view of the caller."""
    known = servers(db, removed=True)
    held: dict[DesktopId, list[Copy]] = {}
    for copy in copies(db):
        held.setdefault(copy.desktop, []).append(copy)
    return Sight(
        copies={desktop: tuple(mine) for desktop, mine in held.items()},
        taken={one.desktop: one for one in take_overs(db)},
        running=frozenset(server.id for server in known if server.state in RUNNING),
        tenures=tenures(db),
        names={server.id: server.name for server in known},
        heard=services.board.all(),
        target_s=settings(db)["copy_target_s"],
        now_ms=services.clock.now_ms(),
        now=services.clock.monotonic(),
    )


def _protection(state: str, server: ServerId | None, names: ServerNames, text: str, as_of: int | None) -> Item:
    return {
        "state": state,
        "server": server,
        "server_name": "" if server is None else names.get(server, server),
        "age_s": None,
        "as_of": as_of,
        "text": text,
        "cause": "",
    }
