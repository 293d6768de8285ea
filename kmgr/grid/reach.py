"""Reachability both ways, tried while a server joins: a bell at the newcomer's grid port, and a look at the members.

The newcomer's daemon does not run yet, so it listens on its grid port for the
length of the join and answers every connection with one random word; the server
of the grid connects there and compares. Runs in the loop of whoever joins.
"""

import asyncio
import contextlib
import errno
from collections.abc import Mapping
from types import TracebackType

from kmgr.grid import authority
from kmgr.grid.contacts import split_address
from kmgr.grid.preflight import Finding, stop, warn
from kmgr.grid.wire import JOIN

RING_S = 3.0
_LONGEST_WORD = 64


class Bell:
    """Listens on the newcomer's grid port and answers with `word`; `finding` says why it cannot, if it cannot."""

    def __init__(self, listen: tuple[str, int], word: str) -> None:
        self._listen = listen
        self._word = word
        self._server: asyncio.Server | None = None
        self.finding: Finding | None = None

    async def __aenter__(self) -> "Bell":
        """Listen."""
        host, port = self._listen
        try:
            self._server = await asyncio.start_server(self._answer, host or None, port)
        except OSError as error:
            why = (
                "is in use by another program" if error.errno == errno.EADDRINUSE else f"({error.strerror or error})"
            )
            cure = f"find out with `ss -ltnp 'sport = :{port}'`, or set another grid_port"
            self.finding = stop("reach", f"this server's grid port {host}:{port} {why}: {cure}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Free the port."""
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            writer.write(self._word.encode())
            await writer.drain()
        writer.close()


async def ring(address: str, word: str) -> Finding | None:
    """Connect to a newcomer's grid address and return what is wrong there, None if it answers with its word."""
    try:
        host, port = split_address(address)
        async with asyncio.timeout(RING_S):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                heard = await reader.read(_LONGEST_WORD)
            finally:
                writer.close()
    except ValueError:
        return None  # a malformed address is a finding of its own
    except OSError as error:
        why = "nothing answers" if isinstance(error, TimeoutError) else error.strerror or str(error)
        return stop(
            "reach",
            f"the grid cannot reach the new server back at {address} ({why}): check that no firewall blocks this "
            "port, or set grid_address to where the other servers reach this one",
        )
    if heard != word.encode():
        cure = "set grid_address to where the other servers reach this one"
        return stop("reach", f"at {address} another machine or program answers, not the new server: {cure}")
    return None


async def unreachable(members: Mapping[str, str], ca_cert_pem: bytes) -> list[Finding]:
    """Return a finding for each member (name → grid address) that this machine cannot reach."""
    looks = (_look(name, address, ca_cert_pem) for name, address in sorted(members.items()))
    return [finding for finding in await asyncio.gather(*looks) if finding is not None]


async def _look(name: str, address: str, ca_cert_pem: bytes) -> Finding | None:
    context = authority.stranger_context(alpn=[JOIN])
    try:
        host, port = split_address(address)
        async with asyncio.timeout(RING_S):
            _, writer = await asyncio.open_connection(host, port, ssl=context, ssl_handshake_timeout=RING_S)
            der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True) or b""
            writer.close()
    except (OSError, ValueError) as error:
        why = "it does not answer" if isinstance(error, TimeoutError) else str(error)
        cure = "check the network and firewall between the two, or it will count as lost for this server"
        return warn("reach", f"this server cannot reach {name} at {address} ({why}): {cure}")
    if authority.issued_to(der, ca_cert_pem) is None:
        return warn("reach", f"at {address}, the address of {name}, something else answers: check the network")
    return None
