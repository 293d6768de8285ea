"""Requests that this server makes for people: plain GETs, every connection's address looked at before it is made.

The address is checked where the socket is made, after names were resolved: neither
a name that resolves to this server nor a number written in an odd way gets past.
"""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import psutil

from kmgr.errors import Refused, Unavailable
from kmgr.templates.addresses import Answer, address_problem
from kmgr.templates.download import Open

_CONNECT_S = 15
# A server of which nothing comes for so long is asked again.
_SILENT_S = 60.0
# What comes before the file must be here by then, however it trickles.
_ANSWER_S = 120.0
_CHUNK = 1 << 18
_AddrInfo = tuple[int, int, int, str, tuple[str, int] | tuple[str, int, int, int]]


class WebOutgoing:
    """Talks HTTP for `templates.download`."""

    def __init__(self, *, silent_s: float = _SILENT_S, answer_s: float = _ANSWER_S) -> None:
        self._answer_s = answer_s
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S, sock_read=silent_s)

    @asynccontextmanager
    async def get(self, url: str, *, start: int, etag: str, own: bool) -> AsyncIterator[Open]:
        """Ask for a file from byte `start` on; closed with the block."""
        headers = {"Accept-Encoding": "identity", "User-Agent": "kmgr"}
        if start:
            headers["Range"] = f"bytes={start}-"
            headers |= {"If-Range": etag} if etag else {}
        try:
            connector = aiohttp.TCPConnector(socket_factory=_allowed if own else _foreign, force_close=True)
            async with aiohttp.ClientSession(
                connector=connector, timeout=self._timeout, auto_decompress=False, trust_env=False
            ) as session:
                async with asyncio.timeout(self._answer_s):
                    answer = await session.get(url, headers=headers, allow_redirects=False)
                async with answer:
                    told = {name.lower(): value for name, value in answer.headers.items()}
                    yield Open(Answer(answer.status, told), _chunks(answer))
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            raise Unavailable(f"{url} cannot be fetched: {_told(error)}", code="remote") from error


async def _chunks(answer: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    try:
        async for chunk in answer.content.iter_chunked(_CHUNK):
            yield chunk
    except (aiohttp.ClientError, OSError, asyncio.IncompleteReadError) as error:
        raise Unavailable(f"the download broke off: {_told(error)}", code="remote") from error


def _told(error: Exception) -> str:
    return str(error) or ("no answer came in time" if isinstance(error, TimeoutError) else type(error).__name__)


def _allowed(info: _AddrInfo) -> socket.socket:
    return socket.socket(info[0], info[1], info[2])


def _foreign(info: _AddrInfo) -> socket.socket:
    own = {one.address.partition("%")[0] for found in psutil.net_if_addrs().values() for one in found}
    if problem := address_problem(str(info[4][0]), own=own):
        raise Refused(
            f"this address may not be fetched by the server: {problem}. An administrator may allow that with the"
            " setting import_own_addresses",
            code="own_address",
        )
    return _allowed(info)
