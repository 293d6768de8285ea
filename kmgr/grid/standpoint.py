"""What this server says about itself on the grid port, and what it does when the grid went on without it.

A server that was left behind keeps its mark in `identity/fenced.json`: it starts
no log, no agents and no grid port again until `kmgr reset` has taken the mark away.
"""

import json
import logging
from collections.abc import Callable
from pathlib import Path

from kmgr import __version__
from kmgr.errors import Unavailable
from kmgr.grid import identity
from kmgr.grid.fence import Greeting
from kmgr.grid.raft.grid import RaftGrid
from kmgr.grid.standing import recovery
from kmgr.grid.wire import Guardian

logger = logging.getLogger(__name__)

FENCED = "fenced.json"


class Standpoint(Guardian):
    """The daemon's answers to the grid port; `left_behind` is called once with the words for people."""

    def __init__(self, grid: RaftGrid, data_dir: Path, *, left_behind: Callable[[str], None]) -> None:
        self._grid = grid
        self._data_dir = data_dir
        self._left_behind = left_behind
        self._told = False

    def greeting(self) -> Greeting:
        """Return what this server says about itself."""
        with self._grid.view() as db:
            last = recovery(db)
        return Greeting(
            __version__,
            epoch=self._grid.epoch,
            fresh=self._grid.fresh,
            end=self._grid.end,
            recovered_at=last.at if last else 0,
            recovered_by=last.name if last else "",
        )

    async def adopt(self, epoch: int) -> None:
        """Take over the epoch of the grid before anything of its log arrives."""
        await self._grid.adopt_epoch(epoch)

    def fenced(self, words: str) -> None:
        """Note that the grid went on without this server, and let the daemon know."""
        if not self._told:
            self._told = True
            try:
                identity.atomic_write(identity.folder(self._data_dir) / FENCED, json.dumps({"words": words}).encode())
            except Unavailable as error:  # it is told again after the next start
                logger.error("that this server was left behind cannot be noted", extra={"cause": error.message})
            logger.error("this server stops acting", extra={"cause": words})
            self._left_behind(words)


def fenced_words(data_dir: Path) -> str | None:
    """Return why this server must not act any more, None if it may."""
    try:
        return str(json.loads((identity.folder(data_dir) / FENCED).read_bytes())["words"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        return "the grid went on without this server. Run kmgr reset on it and let it join again"
