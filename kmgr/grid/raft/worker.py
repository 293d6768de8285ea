"""The raft thread: runs `Core` rounds when something happened, and twenty times a second otherwise.

Between two rounds it turns the link: it waits there, and reads and writes the
connections itself. Others reach it in three ways: the link reports events, `call` runs
a function between two rounds, and `wake` says that a proposal waits. If a round fails, the
thread reports why and ends without touching the files again: the log on the disk
is what was promised, and nothing more is promised.
"""

import errno
import logging
import sqlite3
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from kmgr.errors import InvariantBroken, Unavailable
from kmgr.grid.link import Link
from kmgr.grid.raft.core import Core
from kmgr.ids import ServerId

logger = logging.getLogger(__name__)

T = TypeVar("T")


class DiskTrouble(str):
    """A reason to stop that lies in this server's disk, not in kmgr: it may be gone at the next start."""

    __slots__ = ()


class Worker:
    """Owns a `Core` on a thread of its own. The link may report to it before it has one."""

    def __init__(self, link: Link, *, shown: Callable[[], None], failed: Callable[[str], None]) -> None:
        self._link = link
        self._shown = shown
        self._failed = failed
        self._core: Core | None = None
        self._thread: threading.Thread | None = None
        self._ending = ""
        self._jobs: deque[Callable[[Core | None], None]] = deque()
        self._lock = threading.Lock()
        self._ended = False

    def start(self, core: Core) -> None:
        """Begin."""
        self._core = core
        self._thread = threading.Thread(target=self._run, args=(core,), name=f"raft {core.server}", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End after the present round, everything synced; blocks until it has."""
        self._end("stop")

    def abandon(self) -> None:
        """End after the present round without writing anything more, as a kill would."""
        self._end("abandon")

    def wake(self) -> None:
        """Begin the next round now."""
        self._link.wake()

    def call(self, job: Callable[[Core], T]) -> Future[T]:
        """Run a function between two rounds and return its result or exception."""
        future: Future[T] = Future()

        def run(core: Core | None) -> None:
            if not future.set_running_or_notify_cancel():
                return
            if core is None:
                future.set_exception(Unavailable("the log of this server has stopped"))
                return
            try:
                future.set_result(job(core))
            except Unavailable as error:
                future.set_exception(error)
            except Exception as error:
                future.set_exception(error)
                raise

        with self._lock:
            if not self._ended:
                self._jobs.append(run)
                self._link.wake()
                return future
        run(None)
        return future

    # The link's events; any thread, but frames are reported while the link is turned.

    def peer_up(self, server: ServerId) -> None:
        """A new connection to `server` stands."""
        self._post(lambda core: core.up(server))

    def peer_down(self, server: ServerId) -> None:
        """The connection to `server` is gone."""
        self._post(lambda core: core.down(server))

    def frame(self, server: ServerId, data: bytes) -> None:
        """`server` sent a frame."""
        self._note(lambda core: core.receive(server, data))

    def _post(self, report: Callable[[Core], None]) -> None:
        self._note(report)
        self._link.wake()

    def _note(self, report: Callable[[Core], None]) -> None:
        def run(core: Core | None) -> None:
            if core is not None:
                report(core)

        if not self._ended:
            self._jobs.append(run)

    def _run(self, core: Core) -> None:
        try:
            while not self._ending:
                self._round(core)
            if self._ending == "stop":
                core.close()
        except OSError as error:
            logger.error("the log stopped because of the disk", extra={"cause": str(error)})
            self._failed(DiskTrouble(f"the disk under the log failed: {error.strerror or error}. {_cure(error)}"))
        except sqlite3.DatabaseError as error:
            logger.error("the log stopped because of the state database", extra={"cause": str(error)})
            self._failed(
                DiskTrouble(
                    f"the state database failed: {error}. Make room or look after the disk; at the next start a "
                    "damaged one is made anew from the log"
                )
            )
        except InvariantBroken as error:
            # Only what came from a bug has a traceback that helps; a log of a newer version has none.
            logger.error("the log stopped", exc_info=error.__cause__, extra={"cause": error.message})
            self._failed(error.message)
        except Exception as error:
            logger.exception("the log stopped because of a bug")
            self._failed(f"the log of this server stopped: {error}")
        finally:
            self._finish(core)

    def _round(self, core: Core) -> None:
        for _ in range(len(self._jobs)):
            self._jobs.popleft()(core)
        before = core.shown
        rest = core.step()
        if core.shown is not before:
            self._shown()
        self._link.turn(0.0 if self._jobs or self._ending else rest)

    def _finish(self, core: Core) -> None:
        with self._lock:
            self._ended = True
        while self._jobs:
            self._jobs.popleft()(None)
        self._link.close()
        core.retire()
        self._shown()
        core.abandon()

    def _end(self, how: str) -> None:
        self._ending = how
        self._link.wake()
        if self._thread is not None:
            self._thread.join()


def _cure(error: OSError) -> str:
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT | errno.EFBIG:
            return "Make room there"
        case errno.EROFS:
            return (
                "Linux makes a disk with errors read-only: look into dmesg, mend or replace the disk, and mount it "
                "writable again"
            )
    return "Look into dmesg, and replace the disk if it is broken"
