"""Logging in and out. A session is state, so that every server honours it; its token is known to its owner alone.

Runs in the daemon's loop.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from kmgr.clock import Clock
from kmgr.entropy import new_token
from kmgr.errors import NotLoggedIn, OutcomeUnknown, Unavailable
from kmgr.grid.leadership import Leading
from kmgr.grid.model import RUNNING
from kmgr.grid.outcomes import applied
from kmgr.grid.port import Grid
from kmgr.grid.queries import servers, settings
from kmgr.ids import DesktopId
from kmgr.provision.commands import ENDS_AT_LOGOUT
from kmgr.provision.model import Desktop, DesktopState, Purpose
from kmgr.provision.queries import desktops
from kmgr.templates.queries import templates
from kmgr.templates.version_queries import rollouts
from kmgr.users import queries
from kmgr.users.commands import LONGEST_SESSION_MS
from kmgr.users.directory import Directory, WrongPassword
from kmgr.users.model import Person, Session
from kmgr.users.model import normalised as normalised

HOUSEKEEPING_S = 60.0
# How long a person may be without any session before their pooled desktops go: they may be logging in again.
GRACE_S = 60.0
# How often a session in use is looked at.
KEEP_S = 60.0
# How long a log-in waits for the latest changes of the other servers.
MAKE_SURE_S = 1.0
_LONGEST_NAME = 128


class Throttled(NotLoggedIn):
    """Too many wrong passwords in a row: the name waits."""

    code = "throttled"


class Sessions:
    """The sessions of the grid, as this server opens, finds and closes them.

    `directory` is called at each log-in, because directories are configured while the grid runs.
    """

    def __init__(self, grid: Grid, directory: Callable[[], Directory], *, clock: Clock) -> None:
        self._grid = grid
        self._directory = directory
        self._clock = clock
        self._trying: Counter[str] = Counter()
        self._kept: dict[str, float] = {}

    async def log_in(self, name: str, password: str, *, address: str) -> tuple[str, Session]:
        """Return a new token and its session; raises what the directory says, told apart."""
        plain = normalised(name)
        if not plain or not password or len(plain) > _LONGEST_NAME:
            raise WrongPassword
        # A password changed or an account closed a moment ago at another server counts here. A server that cannot
        # make sure goes by what it knows.
        with suppress(Unavailable):
            await self._grid.barrier(timeout_s=MAKE_SURE_S)
        self._know_the_grid()
        with self._attempt(plain):
            try:
                person = await self._directory().authenticate(plain, password)
            except WrongPassword:
                await self._count_failure(plain)
                raise
        return await self._open(person, address)

    def session_of(self, token: str) -> Session | None:
        """Return the session of a token if it is one and has not ended."""
        with self._grid.view() as db:
            session = queries.session_by_hash(db, hash_of(token))
        return session if session is not None and session.expires_at > self._clock.now_ms() else None

    async def keep(self, session: Session) -> None:
        """Note that a session is in use: when less than half of its time is left, it is renewed.

        Call it as often as you like, it looks once a minute. What cannot be renewed now is tried again then.
        """
        now = self._clock.monotonic()
        if now - self._kept.get(session.hash, now - KEEP_S) < KEEP_S:
            return
        self._kept = {one: at for one, at in self._kept.items() if now - at < KEEP_S} | {session.hash: now}
        with self._grid.view() as db:
            whole_ms = settings(db)["session_hours"] * 3_600_000
        left_ms = session.expires_at - self._clock.now_ms()
        until = min(self._clock.now_ms() + whole_ms, session.created_at + LONGEST_SESSION_MS)
        half_used = 2 * left_ms < min(whole_ms, session.expires_at - session.created_at)
        if not half_used or until <= session.expires_at or not self._grid.status().majority:
            return
        body = {"hash": session.hash, "expires_at": until}
        with suppress(Unavailable, OutcomeUnknown):
            await self._grid.propose("session.renew", body, by=session.person.name)

    async def log_out(self, token: str) -> None:
        """End a session; pooled desktops that refresh on log-out go with their user's last session."""
        session = self.session_of(token)
        if session is None:
            return
        await self._grid.propose("session.close", {"hash": session.hash}, by=session.person.name)
        for desktop in self._unattended():
            if desktop.user == session.person.name:
                await self._release(desktop, by=session.person.name)

    async def housekeeping(self, _: Leading) -> None:
        """Remove ended sessions, and treat whose last session ended like who logged out: a leader's duty.

        A session ends by itself, or with its account, its password or an administrator's word. Its person has
        `GRACE_S` to log in again before the pooled desktops go that would have gone with a log-out. Where a template
        says how long desktops are kept for those who left, that counts instead (`users.over`).
        """
        since: dict[DesktopId, float] = {}
        while True:
            await self._expire()
            now = self._clock.monotonic()
            since = {desktop.id: since.get(desktop.id, now) for desktop in self._unattended(but_kept=True)}
            for desktop in self._unattended(but_kept=True):
                if now - since.get(desktop.id, now) >= GRACE_S:
                    await self._release(desktop, by=self._grid.server)
            await self._clock.sleep(HOUSEKEEPING_S)

    async def _expire(self) -> None:
        now = self._clock.now_ms()
        with self._grid.view() as db:
            due = any(session.expires_at < now for session in queries.sessions(db))
        if due:
            await self._grid.propose("session.expire", {}, by=self._grid.server)

    def _unattended(self, *, but_kept: bool = False) -> list[Desktop]:
        """Return the claimed desktops that end at log-out and whose users have no session.

        Those that are kept for a time after their user left are among them unless `but_kept`.

        Those of a lost server are left to whoever gives that server up; on an island all others are lost.
        """
        now = self._clock.now_ms()
        with self._grid.view() as db:
            running = {server.id for server in servers(db) if server.state in RUNNING}
            here = {session.person.name for session in queries.sessions(db) if session.expires_at > now}
            kept = {
                t.id
                for t in templates(db)
                if t.refresh not in ENDS_AT_LOGOUT or (but_kept and t.policy.keep_s is not None)
            }
            every = desktops(db)
            over = {(t, version) for t, rollout in rollouts(db).items() for version in rollout.over}
        claimed = (
            d
            for d in every
            if d.state is DesktopState.IN_USE and d.user is not None and not d.owned and d.purpose is Purpose.USE
        )
        # Of a version that ended or was withdrawn nothing is kept behind its user, whatever the template's rules are.
        ends = (d for d in claimed if d.template not in kept or (d.template, d.version) in over)
        return [d for d in ends if d.user not in here and d.server in running]

    async def _release(self, desktop: Desktop, *, by: str) -> None:
        # Looked at again just before: its user may have come back while another one was released.
        if desktop in self._unattended():
            body = {"desktop": desktop.id, "user": desktop.user}
            await self._grid.propose("desktop.release", body, by=by)

    def _know_the_grid(self) -> None:
        """Raise `Unavailable` on a server that just joined: it knows nobody yet, and no password would be right."""
        with self._grid.view() as db:
            if all(server.id != self._grid.server for server in servers(db)):
                raise Unavailable(
                    "This server has just joined and is still being told who may log in. Try again in a moment, or "
                    "log in at another server."
                )

    @contextmanager
    def _attempt(self, name: str) -> Iterator[None]:
        """Let one try of a name through, unless the name waits or is being tried too often at this very moment."""
        with self._grid.view() as db:
            until = queries.locked_until(db, name)
            tries = settings(db)["login_tries"]
        wait_s = (until - self._clock.now_ms() + 999) // 1000
        if wait_s > 0:
            raise Throttled(f"Too many wrong passwords for this name. Wait {wait_s} s and try again.")
        # Wrong tries are counted when the directory has answered, so those under way must not be more either.
        if self._trying[name] >= tries:
            raise Throttled("This name is being logged in too often at once. Wait a moment and try again.")
        self._trying[name] += 1
        try:
            yield
        finally:
            self._trying[name] -= 1
            if not self._trying[name]:
                del self._trying[name]

    async def _count_failure(self, name: str) -> None:
        with self._grid.view() as db:
            now = settings(db)
        body = {"name": name, "tries": now["login_tries"], "wait_s": now["login_wait_s"]}
        await self._grid.propose("login.failed", body, by=self._grid.server)

    async def _open(self, person: Person, address: str) -> tuple[str, Session]:
        token = new_token()
        with self._grid.view() as db:
            hours = settings(db)["session_hours"]
        body = {
            "hash": hash_of(token),
            "name": person.name,
            "display_name": person.display_name,
            "groups": list(person.groups),
            "role": person.role,
            "source": person.source,
            "address": address,
            "server": self._grid.server,
            "expires_at": self._clock.now_ms() + hours * 3_600_000,
        }
        applied(await self._grid.propose("session.open", body, by=person.name))
        session = self.session_of(token)
        if session is None:
            raise NotLoggedIn("the session ended as soon as it began: is this server's clock right?")
        return token, session


def hash_of(token: str) -> str:
    """Return what the state keeps of a token. It has 192 random bits, so a plain SHA-256 is enough."""
    return hashlib.sha256(token.encode()).hexdigest()
