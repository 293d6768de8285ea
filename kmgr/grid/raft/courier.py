"""Carries snapshots to servers whose log ends before ours begins: one piece at a time, the next when it is asked for.

pysyncobj would queue as many pieces as fit into a beat and notice neither full
queues nor holes, and it puts what it received in place before looking at it.
Here a snapshot is checked and on the disk before it replaces anything.

Runs on the raft thread.
"""

import logging
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from kmgr.errors import ConfigError
from kmgr.grid.raft import snapshot
from kmgr.grid.raft.background import Background
from kmgr.grid.raft.logfile import put_in_place, sync_file
from kmgr.grid.raft.messages import NextPiece, Piece
from kmgr.grid.raft.snapshot import Snapshot
from kmgr.ids import ServerId

logger = logging.getLogger(__name__)

PIECE_BYTES = 1 << 20
# A transfer that nobody asked to go on for so long begins again.
STALLED_S = 3.0


@dataclass(slots=True)
class _Outgoing:
    file: BinaryIO
    index: int
    index_term: int
    size: int
    offset: int
    asked_at: float


@dataclass(slots=True)
class _Incoming:
    file: BinaryIO
    index: int
    size: int
    offset: int


class Courier:
    """Both ends of snapshot transfers; `send` gives a message to the link.

    `current` is index and term of the entry that this server's own snapshot ends with.
    """

    def __init__(
        self,
        path: Path,
        send: Callable[[ServerId, Piece | NextPiece], bool],
        *,
        background: Background,
        arrived: Callable[[Snapshot], None],
    ) -> None:
        self._path = path
        self._send = send
        self._background = background
        self._on_arrived = arrived
        self._checking = False
        self._arriving = path.with_name("incoming")
        self._outgoing: dict[ServerId, _Outgoing] = {}
        self._incoming: _Incoming | None = None
        self.current = (0, 0)

    def offer(self, server: ServerId, term: int, now: float) -> None:
        """Begin a transfer to a server, unless one is under way."""
        going = self._outgoing.get(server)
        if going is not None and now - going.asked_at < STALLED_S:
            return
        self.forget(server)
        file = self._path.open("rb")
        index, index_term = self.current
        self._outgoing[server] = _Outgoing(file, index, index_term, self._path.stat().st_size, 0, now)
        logger.info("a snapshot of the log is sent", extra={"server": server, "index": index})
        self._piece(server, self._outgoing[server], term)

    def go_on(self, server: ServerId, asked: NextPiece, now: float) -> None:
        """Send the piece that a server asks for."""
        going = self._outgoing.get(server)
        if going is None or going.index != asked.index:
            return
        going.asked_at, going.offset = now, asked.offset
        if going.offset < going.size:  # otherwise it has all and is checking it
            self._piece(server, going, asked.term)

    def forget(self, server: ServerId) -> None:
        """End the transfer to a server."""
        going = self._outgoing.pop(server, None)
        if going is not None:
            going.file.close()

    def take(self, server: ServerId, piece: Piece) -> None:
        """Store a piece and ask for the next one; `arrived` is given the snapshot when it is complete and checked."""
        if self._checking:
            self._send(server, NextPiece(piece.term, piece.index, piece.size))
            return
        if piece.offset == 0:
            self._drop_incoming()
            self._incoming = _Incoming(self._arriving.open("wb"), piece.index, piece.size, 0)
        arriving = self._incoming
        if arriving is None or (arriving.index, arriving.size) != (piece.index, piece.size):
            self._send(server, NextPiece(piece.term, piece.index, 0))
            return
        if piece.offset == arriving.offset:
            arriving.file.write(piece.data)
            arriving.offset += len(piece.data)
        if arriving.offset < arriving.size:
            self._send(server, NextPiece(piece.term, piece.index, arriving.offset))
            return
        self._drop_incoming()
        self._checking = True
        self._background.start(lambda _: self._check(), self._checked)

    def place(self, arrived: Snapshot) -> None:
        """Put what arrived in place of the older snapshot."""
        put_in_place(self._arriving, self._path)
        self.current = (arrived.last.index, arrived.last.term)

    def close(self) -> None:
        """Close all files."""
        for server in list(self._outgoing):
            self.forget(server)
        self._drop_incoming()

    def _piece(self, server: ServerId, going: _Outgoing, term: int) -> None:
        going.file.seek(going.offset)
        data = going.file.read(PIECE_BYTES)
        self._send(server, Piece(term, going.index, going.index_term, going.offset, going.size, data))

    def _drop_incoming(self) -> None:
        if self._incoming is not None:
            self._incoming.file.close()
            self._incoming = None

    def _check(self) -> Snapshot | None:
        try:
            found = snapshot.read(self._arriving)
        except (ConfigError, sqlite3.Error) as error:
            logger.warning("a snapshot of the log arrived damaged", extra={"cause": str(error)})
            return None
        sync_file(self._arriving)
        return found

    def _checked(self, found: Snapshot | None) -> None:
        self._checking = False
        if found is not None:
            self._on_arrived(found)
