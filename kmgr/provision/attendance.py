"""Who looks at this server's desktops: told to the log when that changes, and ended when nobody does anything.

Every screen passes here, so this server knows when the last key was pressed. The
page in the browser asks (`attention`) when there may be something to say and shows
the warning with its button; a guest agent that can shows it in the guest as well.

Memory only, but for the two facts of the log. Runs in the daemon's loop.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from kmgr.clock import Clock
from kmgr.errors import KmgrError, NotFound
from kmgr.grid.envelope import Rejected
from kmgr.grid.port import Grid, Requests
from kmgr.ids import DesktopId, ServerId
from kmgr.provision.drain_rows import farewell, leaving
from kmgr.provision.idle import Idleness, Verdict, judge, unreported
from kmgr.provision.model import Desktop, DesktopState, Purpose
from kmgr.provision.notices import Notices
from kmgr.provision.queries import desktop as find_desktop
from kmgr.provision.queries import desktops
from kmgr.provision.rfb_input import InputReader
from kmgr.rounds import rounds
from kmgr.templates.policy import USUAL, IdleThen, Policy
from kmgr.templates.queries import template as find_template

logger = logging.getLogger(__name__)

ATTENTION = "attention"
MESSAGE = "message"
PERIOD_S = 1.0
# How long it is remembered why a screen was closed, for a page that asks.
_REMEMBERED_S = 3600.0
# How long a message is there for a page that asks: somebody who comes back from lunch still reads it.
MESSAGE_S = 3600.0

Tell: TypeAlias = Callable[[Desktop, str], Awaitable[None]]


@dataclass(eq=False, slots=True)
class Viewer:
    """One open screen; `cut` is set when it is to be closed."""

    reader: InputReader = field(default_factory=InputReader)
    cut: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(slots=True)
class _Watched:
    """What is known of a desktop that is looked at."""

    active_at: float
    viewers: list[Viewer] = field(default_factory=list)
    warned: bool = False


class Attendance:
    """The open screens of this server's desktops. `tell` shows a message in a guest, as well as it can."""

    def __init__(self, grid: Grid, *, clock: Clock, tell: Tell | None = None) -> None:
        self._grid = grid
        self._clock = clock
        self._tell = tell
        self._watched: dict[DesktopId, _Watched] = {}
        self._gone_at: dict[DesktopId, float] = {}
        self._closed: dict[DesktopId, tuple[float, int]] = {}
        self._telling: set[asyncio.Task[None]] = set()
        self._notices = Notices()
        self._messages: dict[DesktopId, tuple[float, str, str]] = {}

    @contextmanager
    def open(self, desktop: DesktopId) -> Iterator[Viewer]:
        """Note a screen as open for as long as the block runs."""
        now, viewer = self._clock.monotonic(), Viewer()
        known = self._watched.setdefault(desktop, _Watched(now))
        known.viewers.append(viewer)
        known.active_at, known.warned = now, False
        self._gone_at.pop(desktop, None)
        self._closed.pop(desktop, None)
        try:
            yield viewer
        finally:
            known.viewers.remove(viewer)
            if not known.viewers and self._watched.get(desktop) is known:
                del self._watched[desktop]
                self._gone_at[desktop] = self._clock.monotonic()

    def heard(self, desktop: DesktopId, viewer: Viewer, data: bytes) -> None:
        """Take what a viewer sends to the desktop."""
        if viewer.reader.feed(data):
            self.touch(desktop)

    def touch(self, desktop: DesktopId) -> None:
        """Note that somebody is there."""
        if (known := self._watched.get(desktop)) is not None:
            known.active_at, known.warned = self._clock.monotonic(), False

    def watched(self) -> frozenset[DesktopId]:
        """Return the desktops that somebody looks at now."""
        return frozenset(self._watched)

    def serve(self, requests: Requests) -> None:
        """Answer calls about this server's desktops.

        `attention`: body: desktop, user, extend? (true: I am there); values: idleness (or "closed": for nobody's
        being there), left_s, again_s, then, message. `message`: body: desktop, user, text; values: why_not_in_guest
        (empty: it was told), and whether a page is open that shows it.
        """
        requests.serve(ATTENTION, self._attention)
        requests.serve(MESSAGE, self._message)

    async def run(self) -> None:
        """Look every second until cancelled."""
        await rounds(self.run_once, "a look at the open screens was cut short", every_s=PERIOD_S, clock=self._clock)

    async def run_once(self) -> None:
        """Report what the log does not know, warn whom nobody hears, and close what is over."""
        now = self._clock.monotonic()
        with self._grid.view() as db:
            here = desktops(db, server=self._grid.server)
            policies = {
                d.id: found.policy if (found := find_template(db, d.template)) else USUAL
                for d in here
                if d.id in self._watched
            }
            due = self._notices.due(here, leaving(db), lambda one: farewell(db, one), now_ms=self._clock.now_ms())
            for desktop, text in due:
                self._say(desktop, text)
        for desktop in here:
            if desktop.is_open and desktop.id not in self._watched:
                self._gone_at.setdefault(desktop.id, now)
        known = {desktop.id for desktop in here}
        self._gone_at = {d: at for d, at in self._gone_at.items() if d in known}
        self._closed = {d: (at, of) for d, (at, of) in self._closed.items() if now - at < _REMEMBERED_S}
        self._messages = {d: said for d, said in self._messages.items() if now - said[0] < MESSAGE_S}
        # A server without a majority keeps this to itself; the difference is still there when it has one again.
        if self._can_report():
            for command, desktop in unreported(here, self._watched, self._gone_at, now):
                await self._report(command, desktop)
        for desktop in here:
            used = desktop.state is DesktopState.IN_USE and desktop.purpose is Purpose.USE
            if used and (seen := self._watched.get(desktop.id)) is not None:
                await self._mind(desktop, seen, policies[desktop.id])

    async def _mind(self, desktop: Desktop, seen: _Watched, policy: Policy) -> None:
        verdict = judge(policy, self._clock.monotonic() - seen.active_at)
        if verdict.idleness is Idleness.WARNED and not seen.warned:
            seen.warned = True
            self._warn(desktop, verdict, policy)
        if verdict.idleness is Idleness.OVER:
            await self._end(desktop, seen, policy)

    def _warn(self, desktop: Desktop, verdict: Verdict, policy: Policy) -> None:
        what = "given back" if policy.idle_then is IdleThen.LOG_OUT and not desktop.personal else "closed"
        text = (
            f"Nobody has done anything here for a while: this desktop is {what} in {round(verdict.left_s)} seconds."
        )
        self._say(desktop, f"{text} Press a key or move the pointer to go on.")

    def _say(self, desktop: Desktop, text: str) -> None:
        task = asyncio.ensure_future(self._told(desktop, text))
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)

    async def _told(self, desktop: Desktop, text: str) -> None:
        # A guest that cannot be told is told by the page in the browser alone.
        with suppress(KmgrError):
            if self._tell is not None:
                await self._tell(desktop, text)

    async def _end(self, desktop: Desktop, seen: _Watched, policy: Policy) -> None:
        minutes = (policy.idle_s or 0) // 60
        why = f"nobody did anything at it for {minutes} minute{'' if minutes == 1 else 's'}"
        if policy.idle_then is IdleThen.LOG_OUT and not desktop.personal:
            await self._give_back(desktop, why)
        self._closed[desktop.id] = (self._clock.monotonic(), desktop.generation)
        for viewer in seen.viewers:
            viewer.cut.set()
        logger.info("an idle screen was closed", extra={"desktop": desktop.name, "user": desktop.user, "why": why})

    async def _give_back(self, desktop: Desktop, why: str) -> None:
        body = {
            "desktop": desktop.id,
            "user": desktop.user,
            "generation": desktop.generation,
            "connected_at": desktop.connected_at,
            "disconnected_at": desktop.disconnected_at,
            "why": why,
        }
        if self._grid.status().island:  # it would be refused there, perhaps late: others' screens are looked at, too
            logger.info("an idle desktop is kept", extra={"desktop": desktop.name, "cause": "an island"})
            return
        try:
            outcome = await self._grid.propose("desktop.over", body, by=self._grid.server)
            kept = outcome.detail if isinstance(outcome, Rejected) else ""
        except KmgrError as error:  # its screen closes all the same
            kept = error.message
        if kept:
            logger.info("an idle desktop is kept", extra={"desktop": desktop.name, "cause": kept})

    def _can_report(self) -> bool:
        status = self._grid.status()
        return status.majority and not status.island

    async def _report(self, command: str, desktop: Desktop) -> None:
        body = {"desktop": desktop.id, "generation": desktop.generation, "server": self._grid.server}
        outcome = await self._grid.propose(command, body, by=self._grid.server)
        if isinstance(outcome, Rejected):
            logger.info("a report came too late", extra={"desktop": desktop.name, "cause": outcome.detail})

    def _theirs(self, body: Mapping[str, Any]) -> tuple[Desktop, Policy]:
        with self._grid.view() as db:
            desktop = find_desktop(db, DesktopId(str(body["desktop"])))
            made_from = find_template(db, desktop.template) if desktop is not None else None
        if desktop is None or desktop.server != self._grid.server or desktop.user != body["user"]:
            raise NotFound("the desktop is not on this server, or not theirs any more")
        return desktop, made_from.policy if made_from is not None else USUAL

    async def _message(self, _: ServerId, body: Mapping[str, Any]) -> Mapping[str, Any]:
        desktop, _policy = self._theirs(body)
        text = str(body["text"])
        self._messages[desktop.id] = (self._clock.monotonic(), str(desktop.user), text)
        why = "this server asks no guests"
        if self._tell is not None:
            try:
                await self._tell(desktop, text)
                why = ""
            except KmgrError as error:
                why = error.message
        return {"why_not_in_guest": why, "page": desktop.id in self._watched}

    def _said(self, desktop: Desktop) -> str:
        at, user, text = self._messages.get(desktop.id, (0.0, "", ""))
        return text if user == desktop.user and self._clock.monotonic() - at < MESSAGE_S else ""

    async def _attention(self, _: ServerId, body: Mapping[str, Any]) -> Mapping[str, Any]:
        desktop, policy = self._theirs(body)
        message = self._said(desktop)
        if body.get("extend"):
            self.touch(desktop.id)
        seen = self._watched.get(desktop.id)
        if seen is not None:
            verdict = judge(policy, self._clock.monotonic() - seen.active_at)
        elif self._closed.get(desktop.id, (0.0, 0))[1] == desktop.generation:
            return {"idleness": "closed", "left_s": 0.0, "again_s": 0.0, "then": policy.idle_then, "message": message}
        else:
            verdict = Verdict(Idleness.NO_RULE)
        return {
            "idleness": verdict.idleness,
            "left_s": verdict.left_s,
            "again_s": verdict.again_s,
            "then": policy.idle_then,
            "message": message,
        }
