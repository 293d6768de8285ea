"""What both sides of a join share: who asks, what is answered, and the messages between.

    newcomer                                      a server of the grid
    ── TLS, word kmgr-join/1 ──────────────────▶
    ── first half of the exchange ─────────────▶   an invitation is open?
    ◀── second half ────────────────────────────
    ══ proof ══════════════════════════════════▶   invitation.try, then: is it right?
    ◀══ proof, CA certificate, members ═════════   is it right? only now is anything told
    ══ what this server is and has ════════════▶   preflight: looks, and calls back
    ◀══ findings ═══════════════════════════════   nothing has changed so far
    ══ request for a certificate ══════════════▶   invitation.redeem: it is a member
    ◀══ certificate, grid secret, addresses ════   the newcomer writes its identity

Every message with a double line carries a proof over all that was said before
it and over the server's TLS certificate (`grid.exchange`). A message is four
bytes of length and JSON. Runs in the loop of the daemon or of `kmgr join`.
"""

import asyncio
import json
import ssl
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, TypeAlias

from kmgr.errors import KmgrError, NotAllowed
from kmgr.grid.exchange import Proofs
from kmgr.grid.handlers import error_body, error_from
from kmgr.grid.identity import Identity
from kmgr.grid.model import ServerRole
from kmgr.grid.preflight import Finding
from kmgr.grid.wire import Connection
from kmgr.ids import ServerId
from kmgr.whole import is_whole

STEP_S = 10.0
# The grid looks at the newcomer, or waits for its log, before it answers.
WHOLE_S = 30.0
WRONG_PHRASE = "wrong_phrase"
_MAX_MESSAGE = 64 * 1024
_LONGEST_TEXT = 600


class Step(StrEnum):
    """How far a join is, in words for people."""

    CONNECT = "connecting to the grid"
    COMPARE = "comparing the phrase"
    LOOK = "checking both sides"
    ASK = "asking to be taken in"
    WRITE = "writing this server's identity"


Progress: TypeAlias = Callable[[Step], None]


@dataclass(frozen=True, slots=True)
class Newcomer:
    """A server that wants to join.

    An address without a host (`:8440`) gets the one it reaches the grid from. `listen` is where the grid's servers
    will reach its grid port; it listens there during the join. `findings` are what it noticed about itself.
    """

    name: str
    grid_address: str
    web_address: str
    version: str
    listen: tuple[str, int]
    role: ServerRole = ServerRole.SERVER
    disk_free_mib: int = 0
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True, slots=True)
class JoinAnswer:
    """What the grid gave a newcomer."""

    name: str
    grid: str
    grid_name: str
    ca_cert_pem: str
    cert_pem: str
    secret: str = field(repr=False)
    peers: Mapping[ServerId, str]


@dataclass(frozen=True, slots=True)
class Joined:
    """A join that is done: who this server is now, and what the preflight warned of."""

    identity: Identity
    warnings: tuple[Finding, ...] = ()


def answer_from(message: Mapping[str, Any]) -> JoinAnswer:
    """Read the grid's answer."""
    texts = {name: text(message, name) for name in ("name", "grid", "grid_name", "ca_cert_pem", "cert_pem", "secret")}
    peers = {ServerId(server): str(address) for server, address in mapping(message.get("peers")).items()}
    return JoinAnswer(**texts, peers=peers)


class Talk:
    """The messages of one join: in the open at first, proven as soon as both sides have a key."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._said = b""
        self._heard = False
        self._proofs: Proofs | None = None
        self._proves = False

    @property
    def said(self) -> bytes:
        """Return everything that was said in the open, in both directions."""
        return self._said

    @property
    def heard(self) -> bool:
        """True once the other side has said anything that this protocol knows."""
        return self._heard

    @property
    def local_host(self) -> str:
        """Return the address of this machine that the connection is made from."""
        return str(self._connection.writer.get_extra_info("sockname")[0])

    def certificate(self) -> bytes:
        """Return the TLS certificate (DER) of the other end."""
        tls: ssl.SSLObject = self._connection.writer.get_extra_info("ssl_object")
        return tls.getpeercert(binary_form=True) or b""

    def prove_with(self, proofs: Proofs, *, first: bool) -> None:
        """Take only proven messages from now on, and prove what is sent.

        Only one side may prove itself `first`. The other one says nothing with a proof (not even why it refuses)
        before it was shown one, or a stranger could test a guess against it for nothing.
        """
        self._proofs = proofs
        self._proves = first

    async def send(self, message: Mapping[str, Any]) -> None:
        """Send one message."""
        plain = json.dumps(message)
        if self._proofs is None:
            self._said += plain.encode()
        elif self._proves:
            plain = json.dumps({"told": plain, "proof": self._proofs.prove(plain.encode()).hex()})
        data = plain.encode()
        self._connection.writer.write(len(data).to_bytes(4) + data)
        await self._connection.writer.drain()

    async def refuse(self, error: KmgrError) -> None:
        """Send an error instead of an answer."""
        await self.send(error_body(error))

    async def receive(
        self, *, wait_s: float = STEP_S, before_check: Callable[[], Awaitable[None]] | None = None
    ) -> dict[str, Any]:
        """Return the next message; raise the error that it brings, and `NotAllowed` if its proof is wrong.

        `before_check` is called when the message is here but nobody knows yet whether its proof is right.
        """
        async with asyncio.timeout(wait_s):
            size = int.from_bytes(await self._connection.reader.readexactly(4))
            if size > _MAX_MESSAGE:
                raise ValueError("it does not speak kmgr's join protocol")
            data = await self._connection.reader.readexactly(size)
        message = mapping(json.loads(data))
        self._heard = True
        if self._proofs is None:
            self._said += data
        elif "error" not in message:
            if before_check is not None:
                await before_check()
            message = self._proven(message, self._proofs)
        if "error" in message:
            raise _error(mapping(message["error"]))
        return message

    def _proven(self, message: Mapping[str, Any], proofs: Proofs) -> dict[str, Any]:
        plain = text(message, "told").encode()
        if not proofs.check(plain, unhex(message, "proof")):
            raise NotAllowed("the proof is wrong", code=WRONG_PHRASE)
        self._proves = True
        return mapping(json.loads(plain))


def mapping(value: object) -> dict[str, Any]:
    """Return a JSON object; raise ValueError if it is none."""
    if not isinstance(value, dict):
        raise ValueError("not a kmgr of this kind")
    return value


def text(message: Mapping[str, Any], name: str) -> str:
    """Return a text of a message; raise ValueError if it is not there."""
    value = message.get(name)
    if not isinstance(value, str):
        raise ValueError(f"a join message without {name}")
    return value


def number(message: Mapping[str, Any], name: str) -> int:
    """Return a whole number of a message; raise ValueError if it is not there."""
    value = message.get(name)
    if not is_whole(value):
        raise ValueError(f"a join message without {name}")
    return value


def unhex(message: Mapping[str, Any], name: str) -> bytes:
    """Return bytes of a message, spelled in hexadecimal; raise ValueError if they are not there."""
    return bytes.fromhex(text(message, name))


def _error(raw: Mapping[str, Any]) -> KmgrError:
    # Whoever sends an error in the open may be anybody: no control characters, no flood.
    told = "".join(c for c in str(raw.get("message", "")) if c.isprintable())[:_LONGEST_TEXT]
    return error_from({**raw, "message": told or "the other side refused"})
