"""Whoever guesses passwords of many people is held up by where they come from.

A name that is guessed at waits everywhere (`users.sessions`); here an address
waits, whatever the names, at this server. Memory only, and little of it: the
addresses that guessed last are kept, a network of IPv6 (/64) counts as one.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Network, ip_address
from math import ceil

from aiohttp import hdrs, web

from kmgr.clock import Clock
from kmgr.errors import KmgrError
from kmgr.users.directory import WrongPassword

MOST_WRONG = 20
WITHIN_S = 60.0
MOST_WAITING = 500
MOST_ADDRESSES = 4096


class TooMany(KmgrError):
    """Too many log-ins come from one address: it waits for `retry_after_s`."""

    code = "too_many"
    http_status = 429

    def __init__(self, what: str, retry_after_s: int) -> None:
        super().__init__(f"{what} from your network address. Wait {retry_after_s} s and try again.")
        self.retry_after_s = retry_after_s


@dataclass(slots=True)
class _Source:
    """What came from one address: when it was wrong, how many log-ins are being answered, how many wait for that."""

    wrong: deque[float] = field(default_factory=deque)
    trying: int = 0
    waiting: int = 0
    answered: asyncio.Event = field(default_factory=asyncio.Event)

    def forget_before(self, moment: float) -> None:
        """Drop what was wrong longer ago."""
        while self.wrong and self.wrong[0] <= moment:
            self.wrong.popleft()

    def tell(self) -> None:
        """Wake those that wait: one more was answered."""
        self.answered.set()
        self.answered = asyncio.Event()


class Flood:
    """The wrong log-ins of the last minute, by where they came from."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._sources: OrderedDict[str, _Source] = OrderedDict()

    def __len__(self) -> int:
        return len(self._sources)

    @asynccontextmanager
    async def attempt(self, address: str) -> AsyncIterator[None]:
        """Let one log-in through, and note it if it was wrong; raise `TooMany` if its address must wait.

        Those that are being answered may all turn out to be wrong, so only so many are at once. Others take turns:
        a whole school may come from one address at eight o'clock.
        """
        key = source_of(address)
        source = self._sources.setdefault(key, _Source())
        try:
            await self._turn(source)
        except BaseException:
            self._forget(key, source)
            raise
        source.trying += 1
        try:
            yield
        except WrongPassword:
            source.wrong.append(self._clock.monotonic())
            self._sources.move_to_end(key)
            raise
        finally:
            source.trying -= 1
            source.tell()
            self._forget(key, source)

    async def _turn(self, source: _Source) -> None:
        while True:
            now = self._clock.monotonic()
            source.forget_before(now - WITHIN_S)
            if len(source.wrong) >= MOST_WRONG:
                raise TooMany("Too many wrong log-ins came", max(1, ceil(source.wrong[0] + WITHIN_S - now)))
            if len(source.wrong) + source.trying < MOST_WRONG:
                return
            if source.waiting >= MOST_WAITING:
                raise TooMany("Too many log-ins come at once", 1)
            source.waiting += 1
            try:
                await source.answered.wait()
            finally:
                source.waiting -= 1

    def _forget(self, key: str, source: _Source) -> None:
        if not source.wrong and not source.trying and not source.waiting and self._sources.get(key) is source:
            del self._sources[key]
        while len(self._sources) > MOST_ADDRESSES:
            self._sources.popitem(last=False)


def retry_after(error: Exception | None) -> dict[str, str]:
    """Return the header that tells programs how long to wait, if an error is about that."""
    return {hdrs.RETRY_AFTER: str(error.retry_after_s)} if isinstance(error, TooMany) else {}


def source_of(address: str) -> str:
    """Return what counts as one source: an IPv4 address, a network of IPv6, or whatever else it is called."""
    try:
        found = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    plain = found if isinstance(found, IPv4Address) else found.ipv4_mapped
    return str(plain) if plain is not None else str(IPv6Network((int(found), 64), strict=False))


FLOOD: web.AppKey[Flood] = web.AppKey("flood", Flood)
