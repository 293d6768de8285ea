"""`kmgr grid recover`, `backup`, `restore` and `kmgr reset`: what is done to a grid or a server from outside.

All but the backup work on the data folder of a server whose daemon does not run,
and hold its lock meanwhile.
"""

import asyncio
import shutil
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from kmgr import __version__
from kmgr.clock import Clock
from kmgr.control import ask
from kmgr.daemon import addresses, folder
from kmgr.daemon.founding import settle
from kmgr.entropy import new_id
from kmgr.errors import ConfigError, KmgrError, Refused, Unavailable
from kmgr.grid import authority, backup, identity, recover
from kmgr.grid.backup import Backup
from kmgr.grid.contacts import contacts
from kmgr.grid.envelope import Command
from kmgr.grid.fence import Greeting
from kmgr.grid.identity import Identity
from kmgr.grid.model import Server
from kmgr.grid.queries import grid_info
from kmgr.grid.recover import Finding, Origin
from kmgr.grid.standpoint import fenced_words
from kmgr.grid.store import Store
from kmgr.grid.wire import CALL, GridPort, Guardian
from kmgr.ids import CommandId, ServerId
from kmgr.registry import SCHEMAS

_PROBE_S = 4.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What another server said when it was called: term and index of its log's end, or why it would not talk."""

    server: Server
    end: tuple[int, int] = (0, 0)
    refusal: str = ""


def belonging(data_dir: Path) -> Identity:
    """Return the identity of a data folder whose server may act; `Refused` with the reason otherwise."""
    own = identity.load(data_dir)
    if own is None:
        raise Refused(f"the server in {data_dir} belongs to no grid: there is nothing to recover")
    if (words := fenced_words(data_dir)) is not None:
        raise Refused(words)
    return own


def examine(data_dir: Path, own: Identity) -> Finding:
    """Return what the folder knows."""
    return recover.examine(data_dir, own, SCHEMAS)


async def probe(data_dir: Path, own: Identity, finding: Finding) -> tuple[Answer, ...]:
    """Call all other servers that the state knows; return those that answer."""
    hints = {s.id: s.grid_address for s in finding.others} or dict(own.peers)
    known = contacts(finding.others, hints)
    port = GridPort(own, data_dir, contacts=lambda: known, guardian=_Asking(finding))

    async def call(server: Server) -> Answer | None:
        try:
            connection = await port.dial(server.id, CALL, timeout_s=_PROBE_S)
        except Unavailable as error:
            # "fenced" and "removed" are answers; "unavailable" is none.
            return Answer(server, refusal=error.message) if error.code != Unavailable.code else None
        end = connection.greeting.end if connection.greeting is not None else (0, 0)
        connection.cut()
        return Answer(server, end)

    found = await asyncio.gather(*(call(server) for server in finding.others))
    return tuple(answer for answer in found if answer is not None)


def refuse_if_needless(own: Identity, finding: Finding, answers: tuple[Answer, ...]) -> None:
    """Raise `Refused` if the grid can go on without a recovery, or another server should be recovered instead."""
    for answer in answers:
        if answer.refusal:
            raise Refused(f"{answer.refusal}. A recovery here would make a second grid of the same name")
    if finding.lacking(own.server, (answer.server.id for answer in answers)) == 0:
        there = (
            ", ".join(f"{a.server.name} ({a.server.grid_address})" for a in answers) or "none of the others is needed"
        )
        raise Refused(
            f"nothing has to be recovered: {there}, and with this server that is a majority of the "
            f"{len(finding.voters)} voters. Start kmgr here and the grid goes on"
        )
    best = max(answers, key=lambda answer: answer.end, default=None)
    # As in an election: an entry that was acknowledged anywhere is in the log with the newest last entry, known to be
    # agreed on there or not.
    if best is not None and best.end > finding.end:
        term, index = best.end
        raise Refused(
            f"server {best.server.name} ({best.server.grid_address}) has more of the grid's log (entry {index} of "
            f"term {term}, here it ends at {finding.last} of term {finding.last_term}): stop kmgr there and run "
            "kmgr grid recover there, then kmgr reset here"
        )


def go_on_alone(data_dir: Path, own: Identity, *, clock: Clock) -> int:
    """Rewrite the folder; the next start is that of the grid's only server. Returns the new epoch."""
    return recover.recover(data_dir, own, SCHEMAS, now_ms=clock.now_ms())


def back_up(data_dir: Path, file: Path) -> Mapping[str, Any]:
    """Ask the running daemon for a copy of its state and pack it with the grid's secrets."""
    own = identity.load(data_dir)
    if own is None:
        raise Refused(f"the server in {data_dir} belongs to no grid: there is nothing to back up")
    told = asyncio.run(ask(data_dir, "copy-state", wait_s=600))
    state = Path(told["path"])
    try:
        backup.pack(file, _described(own, told), state)
    finally:
        state.unlink(missing_ok=True)
    return told


def restore(file: Path, data_dir: Path, name: str, values: Mapping[str, Any], *, clock: Clock) -> Backup:
    """Make an unused folder the first server of a grid that was backed up; cut off anywhere, it can be repeated."""
    identity.refuse_if_used(data_dir)
    with backup.opened(file) as source:
        folder.go_on_as_its_owner(data_dir)
        folder.prepare(data_dir)
        with folder.locked(data_dir):
            return _restored(source, data_dir, name, values, clock=clock)


def _restored(source: BinaryIO, data_dir: Path, name: str, values: Mapping[str, Any], *, clock: Clock) -> Backup:
    config = settle(data_dir, name, values)
    _discard_log(data_dir)
    state = data_dir / "state.sqlite"
    found = backup.unpack(source, state)
    own = _identity_of(found, name, state, clock=clock)
    newcomer = {
        "server": own.server,
        "name": name,
        "grid_address": addresses.grid_address(config),
        "web_address": addresses.web_address(config),
        "version": __version__,
        "fingerprint": own.fingerprint,
    }
    added = Command("server.add", CommandId(new_id("cmd")), clock.now_ms(), own.server, newcomer)
    with closing(Store(state, SCHEMAS)) as store:
        recover.begin_from(data_dir, own, store, found.origin, added)
    identity.write(data_dir, own)
    return found


def reset(data_dir: Path) -> str:
    """Make a server a newcomer again: its identity, log and state go, its settings and golden images stay."""
    own = identity.load(data_dir)
    place = identity.folder(data_dir)
    # The mark of an identity goes first: without it, the rest is a half-made one.
    (place / identity.IDENTITY).unlink(missing_ok=True)
    if place.is_dir():
        for path in sorted(place.iterdir()):
            if not path.name.startswith("web."):
                path.unlink()
    _discard_log(data_dir)
    return own.grid_name if own is not None else ""


def _discard_log(data_dir: Path) -> None:
    for name in ("raft", "island"):
        shutil.rmtree(data_dir / name, ignore_errors=True)
    for path in data_dir.glob("state.sqlite*"):
        path.unlink()


class _Asking(Guardian):
    def __init__(self, finding: Finding) -> None:
        self._finding = finding

    def greeting(self) -> Greeting:
        """Say what the folder's server would say."""
        return Greeting(__version__, epoch=self._finding.epoch, end=self._finding.end)


def _described(own: Identity, told: Mapping[str, Any]) -> Backup:
    return Backup(
        grid=own.grid,
        grid_name=own.grid_name,
        server=own.name,
        at=int(told["at"]),
        version=__version__,
        origin=Origin(int(told["applied"]), int(told["term"]), int(told["epoch"])),
        ca_cert_pem=own.ca_cert_pem,
        secret=own.secret,
    )


def _identity_of(found: Backup, name: str, state: Path, *, clock: Clock) -> Identity:
    with closing(Store(state, SCHEMAS)) as store:
        info = grid_info(store.writer)
    if info is None:
        raise ConfigError("the backup holds no grid yet: use a later one")
    try:
        ca = authority.KeyAndCertificate(
            authority.unseal(found.secret, info.ca_key_sealed), info.ca_cert_pem.encode()
        )
    except KmgrError as error:
        raise ConfigError(f"the backup's secret does not open its grid's key: {error.message}") from error
    server, key_pem = ServerId(new_id("srv")), authority.new_key()
    request = authority.certificate_request(key_pem, server)
    cert_pem = authority.sign_request(request, server, ca, now_ms=clock.now_ms())
    return Identity(server, name, found.grid, found.grid_name, key_pem, cert_pem, ca.cert_pem, found.secret)
