"""kill -9 of a newcomer at every step of its join, and connections cut there: a full member, or no trace."""

import asyncio
import signal
import sys
from pathlib import Path

from kmgr.errors import Unavailable
from kmgr.grid import identity
from kmgr.grid.join import finish_joining
from kmgr.grid.queries import invitations
from tests.lab.join_lab import Fresh, Office

ROOT = Path(__file__).parents[2]
# More than a join has of either; each loop ends by itself when a join was not killed any more.
MOST = 40


class Watcher:
    """A wire to the grid that does something when the n-th piece of data passes; TLS goes through untouched."""

    def __init__(self, office: Office, piece: int) -> None:
        self._office = office
        self._piece = piece
        self._seen = 0
        self.victim: asyncio.subprocess.Process | None = None
        self.struck = False
        self.address = ""
        self._quiet = asyncio.Event()

    async def open(self) -> None:
        """Listen."""
        self._listener = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._listener.sockets[0].getsockname()[1]}"

    async def close(self) -> None:
        """Return when the grid's end has noticed that it is over."""
        self._listener.close()
        await asyncio.wait_for(self._quiet.wait(), 20)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, port = self._office.address.split(":")
        far_reader, far_writer = await asyncio.open_connection(host, int(port))
        await asyncio.gather(
            self._pass_on(reader, far_writer), self._pass_on(far_reader, writer), return_exceptions=True
        )
        self._quiet.set()

    async def _pass_on(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(65536):
                if self._seen == self._piece:
                    self.struck = True
                    if self.victim is None:
                        return  # cut: both ends see the end of the connection
                    self.victim.send_signal(signal.SIGKILL)
                    await self.victim.wait()
                self._seen += 1
                target.write(data)
                await target.drain()
        finally:
            target.close()


async def child(folder: Path, address: str, phrase: str, port: int, step: int = -1) -> asyncio.subprocess.Process:
    """Start a newcomer as a process."""
    words = (str(folder), address, phrase, str(port), str(step))
    return await asyncio.create_subprocess_exec(sys.executable, "-m", "tests.lab.joiner", *words, cwd=ROOT, stderr=-3)


async def settled(office: Office, fresh: Fresh, *, where: str) -> None:
    """Check what a join that was killed left, do what the daemon does at its start, and join again if need be."""
    try:
        await finish_joining(fresh.data_dir, office.address)
    except Unavailable as error:
        raise AssertionError(f"killed {where}: {error.message}") from error
    own = identity.load(fresh.data_dir)
    assert ("b" in office.names()) == (own is not None), f"killed {where}: neither a member nor no trace"
    if own is None:
        with office.grid.view() as db:
            assert invitations(db)[0].used_by is None, f"killed {where}: the invitation is used up"
        own = (await fresh.join(office, await office.phrase())).identity
    assert office.names() == ["a", "b"], f"killed {where}"
    row = next(one for one in office.rows() if one.name == "b")
    assert row.id == own.server and own.secret == office.own.secret


async def test_killed_before_every_change_of_a_file(tmp_path: Path) -> None:
    members = 0
    for step in range(MOST):
        office, folder = Office(tmp_path / f"grid{step}"), tmp_path / f"file{step}"
        await office.start()
        fresh = Fresh(folder)
        process = await child(folder, office.address, await office.phrase(), fresh.newcomer.listen[1], step)
        status = await asyncio.wait_for(process.wait(), 30)
        members += "b" in office.names()
        if status != 0:
            assert status == -signal.SIGKILL
            await settled(office, fresh, where=f"before file step {step}")
        await office.stop()
        if status == 0:
            break
    assert status == 0 and step >= 8, f"only {step} steps: nothing was killed"
    assert 1 < members < step, "kills fell on one side of the log entry only"


async def test_killed_before_every_piece_on_the_wire(tmp_path: Path) -> None:
    members = 0
    for piece in range(MOST):
        office, folder = Office(tmp_path / f"grid{piece}"), tmp_path / f"wire{piece}"
        await office.start()
        fresh, watcher = Fresh(folder), Watcher(office, piece)
        await watcher.open()
        watcher.victim = await child(folder, watcher.address, await office.phrase(), fresh.newcomer.listen[1])
        status = await asyncio.wait_for(watcher.victim.wait(), 30)
        await watcher.close()
        members += "b" in office.names()
        if watcher.struck and status != 0:
            await settled(office, fresh, where=f"before piece {piece}")
        await office.stop()
        if not watcher.struck:
            break
    assert not watcher.struck and piece >= 8, f"only {piece} pieces: nothing was killed"
    assert 1 <= members < piece, "kills fell on one side of the log entry only"


async def test_cut_before_every_piece_on_the_wire(tmp_path: Path) -> None:
    for piece in range(MOST):
        office, folder = Office(tmp_path / f"grid{piece}"), tmp_path / f"wire{piece}"
        await office.start()
        fresh, watcher = Fresh(folder), Watcher(office, piece)
        await watcher.open()
        cut = False
        try:
            await fresh.join_at(watcher.address, await office.phrase())
        except Unavailable:
            cut = True
        await watcher.close()
        if cut:
            await settled(office, fresh, where=f"before piece {piece}")
        await office.stop()
        if not watcher.struck:
            break
    assert not watcher.struck and piece >= 8, f"only {piece} pieces: nothing was cut"
