"""Fetch the rest of an arrival from its address: in goes, each where the former ended, if the other server can.

One from which hardly anything comes is given up, however it goes about that: there are few places for imports.

Runs in the daemon's loop. Whoever really talks HTTP is given (`Outgoing`).
"""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol

from kmgr.clock import Clock
from kmgr.errors import Refused, Unavailable
from kmgr.templates import addresses
from kmgr.templates.addresses import Answer
from kmgr.templates.arrivals import Arrivals

# So often in a row nothing may come before it is given up, and how long it waits in between at most.
TRIES = 8
_LONGEST_WAIT_S = 60.0
# What must come on average in each quarter of an hour that is spent waiting for the other server, pauses included.
# It is less than any line brings that somebody would send disks over.
SLOWEST_BYTES_S = 4096
WINDOW_S = 900.0
# A person waits for a file of checksums.
_SUMS_S = 60.0
_MOST_SUMS_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Open:
    """An answer whose body is still to come; `chunks` raises `Unavailable` if it breaks off."""

    answer: Answer
    chunks: AsyncIterator[bytes]


class _Steady:
    """Whether enough comes. Only the time counts in which the other server is waited for, not that of our disk."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._came = 0
        self.waited_s = 0.0

    async def rest(self, seconds: float) -> None:
        """Let the other server rest before it is asked again; raise `Unavailable` (`too_slow`) if too little came."""
        with self.waiting():
            await self._clock.sleep(seconds)
        self._check()

    async def counted(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """Yield what comes, and count it; raise `Unavailable` (`too_slow`) if it is too little."""
        while True:
            with self.waiting():
                chunk = await anext(chunks, None)
            if chunk is None:
                return
            self._came += len(chunk)
            self._check()
            yield chunk

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time in it."""
        since = self._clock.monotonic()
        try:
            yield
        finally:
            self.waited_s += self._clock.monotonic() - since

    def _check(self) -> None:
        if self.waited_s < WINDOW_S:
            return
        if self._came < SLOWEST_BYTES_S * self.waited_s:
            raise Unavailable(
                f"that server sends too slowly: {self._came >> 10} KiB came in {self.waited_s / 60:.0f} minutes, at "
                f"least {SLOWEST_BYTES_S >> 10} KiB a second must come. What came is kept: try again when it is "
                "quicker, or get the file by other means and upload it",
                code="too_slow",
            )
        self._came, self.waited_s = 0, 0.0


class Outgoing(Protocol):
    """Makes one request, follows nothing, and connects to no address of this server itself unless `own` says so."""

    def get(self, url: str, *, start: int, etag: str, own: bool) -> AbstractAsyncContextManager[Open]:
        """Ask for a file from byte `start` on, if it still is the one with that `etag`."""
        ...


class Downloader:
    """`own_allowed()` says whether this server's own addresses may be asked (a setting)."""

    def __init__(self, outgoing: Outgoing, clock: Clock, *, own_allowed: Callable[[], bool]) -> None:
        self._outgoing = outgoing
        self._clock = clock
        self._own_allowed = own_allowed

    async def checksum(self, url: str, file_name: str) -> str:
        """Return the SHA-256 that a file of checksums at an address has for a file name."""
        text, steady = bytearray(), _Steady(self._clock)
        async with self._following(url, steady, start=0, etag="") as opened:
            addresses.judge(opened.answer, start=0, etag="")
            async for chunk in steady.counted(opened.chunks):
                text += chunk
                if len(text) > _MOST_SUMS_BYTES:
                    raise Refused("the file of checksums is larger than 1 MiB: is it the right address?")
                if steady.waited_s > _SUMS_S:
                    raise Unavailable(
                        f"the file of checksums did not come within {_SUMS_S:g} s: try again later, or give the "
                        "SHA-256 itself",
                        code="too_slow",
                    )
        return addresses.sum_in(text.decode(errors="replace"), file_name)

    async def __call__(self, arrivals: Arrivals, id: str) -> None:
        """Return when all of an arrival is here; raise what stands against it."""
        failed, furthest, steady = 0, arrivals.get(id).offset, _Steady(self._clock)
        while True:
            try:
                if await self._go(arrivals, id, steady):
                    return
                again = 0.0
            except Unavailable as error:
                if error.code != "remote":
                    raise
                # One that begins anew again and again, and never comes further, is given up as well.
                at = arrivals.get(id).offset
                failed, furthest = (0, at) if at > furthest else (failed + 1, furthest)
                if failed >= TRIES:
                    raise
                again = min(2.0**failed, _LONGEST_WAIT_S)
            await steady.rest(again)

    async def _go(self, arrivals: Arrivals, id: str, steady: _Steady) -> bool:
        """Fetch in one go; True if that was all."""
        known = arrivals.get(id)
        if known.complete:
            return True
        async with self._following(known.url, steady, start=known.offset, etag=known.etag) as opened:
            begin = addresses.judge(opened.answer, start=known.offset, etag=known.etag)
            if (
                begin is None
                or begin.at != known.offset
                or begin.size_bytes != (known.size_bytes or begin.size_bytes)
            ):
                # Another file by now, or a server that cannot go on in the middle.
                if begin is None and not known.offset:
                    raise Refused(
                        "that server does not send the file from its beginning: try another address, or get it by "
                        "other means and upload it",
                        code="remote",
                    )
                known = await arrivals.change(id, offset=0, size_bytes=None, etag="")
            if begin is None or begin.at != known.offset:
                return False
            known = await arrivals.change(id, etag=begin.etag)
            if begin.size_bytes is not None and known.size_bytes is None:
                known = await arrivals.set_size(id, begin.size_bytes)
            known = await arrivals.append(id, begin.at, steady.counted(opened.chunks))
        if known.size_bytes is None:
            known = await arrivals.set_size(id, known.offset)
        if not known.complete:
            raise Unavailable("the download broke off: try again, and it goes on there", code="remote")
        return True

    def _following(self, url: str, steady: _Steady, *, start: int, etag: str) -> "_Following":
        return _Following(self._outgoing, url, steady, start=start, etag=etag, own=self._own_allowed())


class _Following:
    """A request and the redirects that it meets."""

    def __init__(self, outgoing: Outgoing, url: str, steady: _Steady, *, start: int, etag: str, own: bool) -> None:
        self._outgoing, self._url, self._start, self._etag, self._own = outgoing, url, start, etag, own
        self._steady = steady
        self._inner: AbstractAsyncContextManager[Open] | None = None

    async def __aenter__(self) -> Open:
        url = self._url
        for _ in range(addresses.MOST_REDIRECTS + 1):
            addresses.check_url(url)
            inner = self._outgoing.get(url, start=self._start, etag=self._etag, own=self._own)
            with self._steady.waiting():
                opened = await inner.__aenter__()
            if opened.answer.status not in (301, 302, 303, 307, 308):
                self._inner = inner
                return opened
            await inner.__aexit__(None, None, None)
            url = addresses.redirected(url, opened.answer.headers.get("location", ""))
        raise Refused(
            f"the address leads on more than {addresses.MOST_REDIRECTS} times: give the one at which it ends",
            code="remote",
        )

    async def __aexit__(self, *error: object) -> None:
        if self._inner is not None:
            await self._inner.__aexit__(None, None, None)
