"""Joining a grid, the newcomer's side, and making the invitation that it needs.

`grid.joining` shows the whole conversation. Cut off anywhere, the grid is unchanged
or this server is a member and finishes by itself: before it asks, it notes which
grid it asks, and afterwards its key proves who it is (`finish_joining`).
Runs in the loop of the daemon or of `kmgr join`.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from kmgr.clock import Clock
from kmgr.entropy import new_id, new_token
from kmgr.errors import NotAllowed, Refused, Unavailable
from kmgr.grid import authority, identity, preflight, reach
from kmgr.grid.contacts import split_address
from kmgr.grid.exchange import Exchange, Side
from kmgr.grid.identity import Identity, Unfinished
from kmgr.grid.joining import (
    STEP_S,
    WHOLE_S,
    WRONG_PHRASE,
    JoinAnswer,
    Joined,
    Newcomer,
    Progress,
    Step,
    Talk,
    answer_from,
    mapping,
    text,
    unhex,
)
from kmgr.grid.outcomes import applied
from kmgr.grid.phrase import new_phrase, password_of
from kmgr.grid.port import Grid
from kmgr.grid.preflight import Finding, PreflightStopped
from kmgr.grid.wire import JOIN, Connection
from kmgr.ids import ServerId

VALID_S = 15 * 60
TRIES = 5
SEALED_FOR = "kmgr join phrase"
RESUME = "kmgr join resumed/1"
_JOIN_S = 60.0
# So many members besides the one that is asked are noted: each can finish the join if that one is gone.
_OTHERS = 4


@dataclass(frozen=True, slots=True)
class Invitation:
    """What a person carries to the new server; shown once, never stored. `replaced`: it ended an earlier one."""

    phrase: str = field(repr=False)
    expires_at: int
    replaced: bool = False


async def invite(grid: Grid, *, secret: bytes, by: str, clock: Clock) -> Invitation:
    """Make a one-time phrase for one new server, valid 15 minutes and five tries; it replaces an open one.

    Any server of the grid can then answer: what the phrase becomes is state, sealed with the grid secret.
    """
    phrase = new_phrase()
    expires_at = clock.now_ms() + VALID_S * 1000
    body = {
        "invitation": new_id("inv"),
        "sealed": authority.seal(secret, password_of(phrase), purpose=SEALED_FOR),
        "expires_at": expires_at,
        "tries": TRIES,
    }
    made = applied(await grid.propose("invitation.create", body, by=by))
    return Invitation(phrase, expires_at, bool(made["replaced"]))


async def join_grid(
    data_dir: Path,
    address: str,
    phrase: str,
    *,
    newcomer: Newcomer,
    clock: Clock,
    progress: Progress = lambda _: None,
) -> Joined:
    """Let this server join the grid that listens at `address` and write its identity; safe to repeat.

    Raises `PreflightStopped` with everything that is in the way, before anything has changed.
    """
    password = password_of(phrase)
    identity.refuse_if_used(data_dir)
    progress(Step.CONNECT)
    finished = await finish_joining(data_dir, address)
    if finished is not None:
        return Joined(finished)
    server, key_pem = identity.begin_joining(data_dir, ServerId(new_id("srv")))
    async with _connected(address) as talk:
        progress(Step.COMPARE)
        hello = await _compared(talk, address, Exchange(Side.NEWCOMER, password), newcomer.version)
        progress(Step.LOOK)
        me = _told(server, newcomer, talk.local_host)
        ca_cert_pem = text(hello, "ca_cert_pem").encode()
        findings = await _looked(talk, hello, newcomer, me, now_ms=clock.now_ms())
        if preflight.stops(findings):
            raise PreflightStopped(findings)
        others = [str(at) for at in mapping(hello.get("members")).values()]
        identity.note_asking(data_dir, address, ca_cert_pem, others=others[:_OTHERS])
        progress(Step.ASK)
        await talk.send({"request_pem": authority.certificate_request(key_pem, server).decode()})
        answer = answer_from(await talk.receive(wait_s=WHOLE_S))
        progress(Step.WRITE)
        return Joined(_written(data_dir, server, key_pem, answer), preflight.ordered(findings))


async def finish_joining(data_dir: Path, address: str = "") -> Identity | None:
    """Finish a join that was cut off after it had asked; None if there is none, or the grid did not take it in.

    No phrase is needed: the grid knows this server's key, and this server the grid's CA. If the server that was
    asked is away the next one is: any server of the grid can finish what another one began.
    """
    begun = identity.unfinished(data_dir)
    if begun is None:
        return None
    again = address in ("", begun.address)
    away: Unavailable | None = None
    for place in (begun.address, *begun.others) if again else (address,):
        try:
            async with _connected(place) as talk:
                if authority.issued_to(talk.certificate(), begun.ca_cert_pem) is not None:
                    return await _resumed(data_dir, talk, begun)
                if address:
                    return None  # another grid's address was given this time
        except Unavailable as error:
            away = away or error
    if away is not None:
        raise away
    return None


async def _resumed(data_dir: Path, talk: Talk, begun: Unfinished) -> Identity | None:
    request = authority.certificate_request(begun.key_pem, begun.server)
    await talk.send({"resume": begun.server, "request_pem": request.decode()})
    told = await talk.receive()
    if told.get("state") == "removed":
        identity.discard_unfinished(data_dir)
    if "nonce" not in told:
        return None
    proof = authority.sign(begun.key_pem, resume_text(unhex(told, "nonce"), talk.certificate()))
    await talk.send({"proof": proof.hex()})
    return _written(data_dir, begun.server, begun.key_pem, answer_from(await talk.receive(wait_s=WHOLE_S)))


def resume_text(nonce: bytes, certificate_der: bytes) -> bytes:
    """Return what a server that finishes its join signs: fresh, and for this connection only."""
    return RESUME.encode() + nonce + hashlib.sha256(certificate_der).digest()


@asynccontextmanager
async def _connected(address: str) -> AsyncIterator[Talk]:
    try:
        host, port = split_address(address)
    except ValueError as error:
        raise Refused(f"{error}: give the grid address of a server of the grid, like 192.0.2.10:8440") from error
    talk: Talk | None = None
    try:
        async with asyncio.timeout(_JOIN_S):
            async with asyncio.timeout(STEP_S):
                reader, writer = await asyncio.open_connection(
                    host, port, ssl=authority.stranger_context(alpn=[JOIN]), ssl_handshake_timeout=STEP_S
                )
            try:
                yield (talk := Talk(Connection(None, address, reader, writer)))
            finally:
                writer.close()
    except (OSError, EOFError, ValueError) as error:
        why = str(error) or type(error).__name__
        if talk is not None and talk.heard and not isinstance(error, ValueError):
            raise Unavailable(
                f"the server at {address} stopped or was cut off in the middle of the join ({why}): do the same "
                "again, with the same four words; the join goes on where it was"
            ) from error
        raise Unavailable(
            f"no server of a grid answers at {address} ({why}): "
            "check the address, that kmgr runs there, and that no firewall is between"
        ) from error


async def _compared(talk: Talk, address: str, exchange: Exchange, version: str) -> dict[str, object]:
    """Run the exchange; return the grid's first proven message."""
    await talk.send({"half": exchange.message.hex(), "version": version})
    half = unhex(await talk.receive(), "half")
    proofs = await asyncio.to_thread(exchange.finish, half, certificate_der=talk.certificate(), said=talk.said)
    talk.prove_with(proofs, first=True)
    await talk.send({})
    try:
        hello = await talk.receive(wait_s=WHOLE_S)
    except NotAllowed as error:
        if error.code != WRONG_PHRASE:
            raise
        raise NotAllowed(
            f"the phrase is wrong, or {address} is not a server of the grid that showed it; nothing was given away. "
            f"Compare the four words and the address ({error.message})",
            code=WRONG_PHRASE,
        ) from error
    if authority.issued_to(talk.certificate(), text(hello, "ca_cert_pem").encode()) is None:
        raise NotAllowed(f"the server at {address} has a certificate that is not its own grid's: report this")
    return hello


def _told(server: ServerId, newcomer: Newcomer, local_host: str) -> dict[str, object]:
    return {
        "server": server,
        "name": newcomer.name,
        "grid_address": _filled(newcomer.grid_address, local_host),
        "web_address": _filled(newcomer.web_address, local_host),
        "version": newcomer.version,
        "role": newcomer.role.value,
        "disk_free_mib": newcomer.disk_free_mib,
    }


async def _looked(
    talk: Talk, hello: dict[str, object], newcomer: Newcomer, me: dict[str, object], *, now_ms: int
) -> list[Finding]:
    """Let both sides look at each other; return everything that was noticed."""
    word = new_token()
    members = {name: str(at) for name, at in mapping(hello.get("members")).items()}
    async with reach.Bell(newcomer.listen, word) as bell:
        await talk.send({**me, "now_ms": now_ms, "word": word, "ring": bell.finding is None})
        theirs, far = await asyncio.gather(
            talk.receive(wait_s=WHOLE_S), reach.unreachable(members, text(hello, "ca_cert_pem").encode())
        )
    own = [bell.finding] if bell.finding is not None else []
    raw = theirs.get("findings")
    if not isinstance(raw, list):
        raise ValueError("a join message without findings")
    try:
        return [*preflight.read(raw), *own, *far, *newcomer.findings]
    except (KeyError, TypeError) as error:
        raise ValueError("a join message with findings of another kind") from error


def _written(data_dir: Path, server: ServerId, key_pem: bytes, answer: JoinAnswer) -> Identity:
    joined = Identity(
        server=server,
        name=answer.name,
        grid=answer.grid,
        grid_name=answer.grid_name,
        key_pem=key_pem,
        cert_pem=answer.cert_pem.encode(),
        ca_cert_pem=answer.ca_cert_pem.encode(),
        secret=bytes.fromhex(answer.secret),
        peers=answer.peers,
    )
    identity.write(data_dir, joined)
    return joined


def _filled(address: str, local: str) -> str:
    if not address.startswith(":"):
        return address
    return f"[{local}]{address}" if ":" in local else f"{local}{address}"
