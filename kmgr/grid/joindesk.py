"""Joining a grid, the grid's side: answers newcomers on the grid port of any server.

`grid.joining` shows the whole conversation. The order is what makes it safe: a try
is used up in the log before anybody learns whether it was right, so that no
number of servers asked at once gives a sixth; nothing is told before the
newcomer has proven the phrase; nothing changes before everything was looked at.
Runs in the daemon's loop.
"""

import asyncio
import os
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from sqlite_utils import Database

from kmgr.clock import Clock
from kmgr.config import KEYS
from kmgr.errors import Conflict, KmgrError, NotAllowed, Refused, Unavailable
from kmgr.grid import authority, preflight, queries, reach
from kmgr.grid.exchange import Exchange, Side
from kmgr.grid.identity import Identity
from kmgr.grid.join import SEALED_FOR, resume_text
from kmgr.grid.joining import WHOLE_S, WRONG_PHRASE, Talk, number, text, unhex
from kmgr.grid.model import (
    NEW_INVITATION,
    RUNNING,
    GridInfo,
    InvitationState,
    Server,
    ServerRole,
    ServerState,
    StoredInvitation,
)
from kmgr.grid.outcomes import applied
from kmgr.grid.port import Grid
from kmgr.grid.preflight import Candidate, Finding, GridSide
from kmgr.grid.wire import JOIN, Connection, GridPort
from kmgr.ids import ServerId

# Newcomers that are talked to at once. Those that have said nothing yet count apart, in all and from one address.
AT_ONCE = 8
SILENT, SILENT_FROM_ONE = 256, 16
_NONCE_BYTES = 32
_TOO_MANY = "too many servers ask to join at once: try again"

NeededMib = Callable[[Database], int]


class JoinDesk:
    """Answers newcomers. `images_mib` tells how much room the golden images in use need. Nothing to start or stop."""

    def __init__(
        self,
        port: GridPort,
        grid: Grid,
        *,
        own: Identity,
        version: str,
        clock: Clock,
        images_mib: NeededMib = lambda _: 0,
    ) -> None:
        self._port = port
        self._grid = grid
        self._own = own
        self._version = version
        self._clock = clock
        self._images_mib = images_mib
        self._room = asyncio.Semaphore(AT_ONCE)
        self._silent: Counter[str] = Counter()
        port.handle(JOIN, self._welcome)

    async def _welcome(self, connection: Connection) -> None:
        talk = Talk(connection)
        try:
            first = await self._first(talk, connection.remote)
            if self._room.locked():
                raise Unavailable(_TOO_MANY)
            async with self._room, asyncio.timeout(2 * WHOLE_S):
                if "resume" in first:
                    await self._resume(talk, first)
                else:
                    await self._talk(talk, first, connection.remote)
        except KmgrError as error:
            await talk.refuse(error)

    async def _first(self, talk: Talk, remote: str) -> Mapping[str, Any]:
        if self._silent.total() >= SILENT or self._silent[remote] >= SILENT_FROM_ONE:
            raise Unavailable(_TOO_MANY)
        self._silent[remote] += 1
        try:
            return await talk.receive()
        finally:
            self._silent[remote] -= 1
            if not self._silent[remote]:
                del self._silent[remote]

    async def _talk(self, talk: Talk, first: Mapping[str, Any], remote: str) -> None:
        info, invitation = self._open()
        await self._compare(talk, first, invitation, remote)
        await talk.send({"ca_cert_pem": info.ca_cert_pem, "grid_name": info.name, "members": self._members()})
        candidate, word = await self._asked(talk)
        findings = list(self._judged(candidate))
        if word:
            answered = await reach.ring(candidate.grid_address, word)
            findings += [answered] if answered is not None else []
        await talk.send({"findings": preflight.spelled(findings)})
        if preflight.stops(findings):
            return
        asked = await talk.receive(wait_s=WHOLE_S)
        server = candidate.server
        request_pem = text(asked, "request_pem").encode()
        cert_pem = self._signed(info, server, request_pem)
        await self._take_in(invitation, request_pem, candidate, authority.fingerprint(cert_pem))
        await talk.send(self._answer(info, server, cert_pem))

    def _open(self) -> tuple[GridInfo, StoredInvitation]:
        with self._grid.view() as db:
            info = _info(queries.grid_info(db))
            known = queries.invitations(db)
        found = next((one for one in known if one.state is InvitationState.OPEN), None)
        if found is not None and found.expires_at >= self._clock.now_ms():
            return info, found
        last = known[0] if known else None
        why = "no server is invited at present" if last is None else last.state.why_not
        raise NotAllowed(f"{why or 'this invitation has expired'}: {NEW_INVITATION}")

    async def _compare(self, talk: Talk, first: Mapping[str, Any], invitation: StoredInvitation, remote: str) -> None:
        """Run the exchange; return only if the newcomer knows the phrase and nobody is between."""
        password = authority.unseal(self._own.secret, invitation.sealed, purpose=SEALED_FOR)
        exchange = await asyncio.to_thread(Exchange, Side.GRID, password)
        await talk.send({"half": exchange.message.hex()})
        proofs = await asyncio.to_thread(
            exchange.finish, unhex(first, "half"), certificate_der=self._port.certificate_der, said=talk.said
        )
        subject = {"invitation": invitation.id}

        async def use_up_a_try() -> None:
            applied(await self._grid.propose("invitation.try", subject, by=self._own.server))

        talk.prove_with(proofs, first=False)
        try:
            await talk.receive(before_check=use_up_a_try)
        except NotAllowed as error:
            if error.code != WRONG_PHRASE:
                raise
            noted = await self._grid.propose("invitation.failed", {**subject, "remote": remote}, by=self._own.server)
            left = int(applied(noted)["tries_left"])
            told = f"{left} tries are left" if left else f"the invitation is locked now: {NEW_INVITATION}"
            raise NotAllowed(told, code=WRONG_PHRASE) from error
        applied(await self._grid.propose("invitation.proved", subject, by=self._own.server))

    def _members(self) -> dict[str, str]:
        with self._grid.view() as db:
            known = queries.servers(db)
        return {s.name: s.grid_address for s in known if s.state in RUNNING and s.id != self._own.server}

    async def _asked(self, talk: Talk) -> tuple[Candidate, str]:
        told = await talk.receive()
        problem = KEYS["name"].check(told.get("name"))
        if problem:
            raise Refused(f"the new server's name: {problem}")
        try:
            role = ServerRole(text(told, "role"))
        except ValueError as error:
            raise Refused(f"the new server's role: {error}") from error
        server = ServerId(text(told, "server"))
        if not server.startswith("srv-"):
            raise Refused("the new server has no id of the kind that kmgr makes")
        candidate = Candidate(
            server=server,
            name=text(told, "name"),
            grid_address=text(told, "grid_address"),
            web_address=text(told, "web_address"),
            role=role,
            version=text(told, "version"),
            now_ms=number(told, "now_ms"),
            disk_free_mib=number(told, "disk_free_mib"),
        )
        return candidate, text(told, "word") if told.get("ring") else ""

    def _judged(self, candidate: Candidate) -> tuple[Finding, ...]:
        with self._grid.view() as db:
            known = queries.servers(db)
            room = self._images_mib(db)
        return preflight.judge(candidate, GridSide(known, self._version, self._clock.now_ms(), room))

    async def _take_in(
        self,
        invitation: StoredInvitation,
        request_pem: bytes,
        candidate: Candidate,
        fingerprint: str,
    ) -> None:
        key = authority.request_key(request_pem)
        newcomer = {
            "server": candidate.server,
            "name": candidate.name,
            "grid_address": candidate.grid_address,
            "web_address": candidate.web_address,
            "version": candidate.version,
            "role": candidate.role.value,
            "key": key,
            "fingerprint": fingerprint,
        }
        body = {"invitation": invitation.id, "server": newcomer}
        try:
            applied(await self._grid.propose("invitation.redeem", body, by=candidate.server))
        except NotAllowed:
            # An earlier talk was cut off while this was on its way to the log, and it arrived there meanwhile.
            if not self._has_taken_in(invitation, candidate.server, key):
                raise

    def _has_taken_in(self, invitation: StoredInvitation, server: ServerId, key: str) -> bool:
        with self._grid.view() as db:
            row, known_key = queries.server(db, server), queries.key_hash(db, server)
            now = next((one for one in queries.invitations(db) if one.id == invitation.id), None)
        used = now is not None and now.used_by == server
        return used and row is not None and row.state is ServerState.JOINING and known_key == key

    async def _resume(self, talk: Talk, first: Mapping[str, Any]) -> None:
        """Answer a server whose join was cut off after the log took it in: its key proves that it is the one."""
        server, request_pem = ServerId(text(first, "resume")), text(first, "request_pem").encode()
        info, row, key_hash = self._known(server)
        if row is None:
            # This server may have been killed or cut off since, and not know yet what the others agreed on.
            await self._grid.barrier()
            info, row, key_hash = self._known(server)
        if row is None or row.state is ServerState.REMOVED:
            await talk.send({"state": "unknown" if row is None else "removed"})
            return
        if row.state is not ServerState.JOINING or key_hash != authority.request_key(request_pem):
            raise Conflict(
                f"server {row.name!r} is a member already: start with an empty data folder, or remove it first"
            )
        nonce = os.urandom(_NONCE_BYTES)
        await talk.send({"nonce": nonce.hex()})
        proof = unhex(await talk.receive(), "proof")
        if not authority.signed_by(request_pem, resume_text(nonce, self._port.certificate_der), proof):
            raise NotAllowed("this is not the server that asked to join: it does not have its key")
        # This certificate's fingerprint comes with the server's first announcement.
        await talk.send(self._answer(info, server, self._signed(info, server, request_pem)))

    def _known(self, server: ServerId) -> tuple[GridInfo, Server | None, str]:
        with self._grid.view() as db:
            return _info(queries.grid_info(db)), queries.server(db, server), queries.key_hash(db, server)

    def _signed(self, info: GridInfo, server: ServerId, request_pem: bytes) -> bytes:
        ca_key = authority.unseal(self._own.secret, info.ca_key_sealed)
        ca = authority.KeyAndCertificate(ca_key, info.ca_cert_pem.encode())
        return authority.sign_request(request_pem, server, ca, now_ms=self._clock.now_ms())

    def _answer(self, info: GridInfo, server: ServerId, cert_pem: bytes) -> dict[str, Any]:
        with self._grid.view() as db:
            known = {found.id: found for found in queries.servers(db)}
        mine: Server = known[server]
        peers = {s.id: s.grid_address for s in known.values() if s.state is not ServerState.JOINING and s != mine}
        return {
            "name": mine.name,
            "grid": info.id,
            "grid_name": info.name,
            "ca_cert_pem": info.ca_cert_pem,
            "cert_pem": cert_pem.decode(),
            "secret": self._own.secret.hex(),
            "peers": peers,
        }


def _info(info: GridInfo | None) -> GridInfo:
    if info is None:
        raise Unavailable("this server's grid is not set up yet: try again in a moment")
    return info
