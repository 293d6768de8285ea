"""Opens the state database; one that is damaged is put aside and made anew from the log, and that is said.

The state is disposable, the log and its snapshot are not: without them a damaged
state is a reason to stop.
"""

import logging
import sqlite3
from collections.abc import Iterable
from pathlib import Path

from kmgr.errors import ConfigError, Unavailable
from kmgr.grid.queries import grid_info
from kmgr.grid.store import Store

logger = logging.getLogger(__name__)

_BESIDE = ("", "-wal", "-shm")


def open_state(path: Path, schemas: Iterable[str], *, journal: Path) -> tuple[Store, str]:
    """Return the state database and, if it had to be made anew, a sentence that says so for the console."""
    schemas = tuple(schemas)
    why = _damage(path)
    if why is None:
        return Store(path, schemas), ""
    if not journal.exists():
        raise ConfigError(
            f"the state {path} is damaged ({why}) and the log {journal} that could make it anew is gone: remove "
            "this server from the grid at another one, run kmgr reset here, and let it join again"
        )
    for end in _BESIDE:
        beside = path.with_name(path.name + end)
        if beside.exists():
            beside.replace(path.with_name(f"{path.name}.damaged{end}"))
    words = (
        f"the state {path} was damaged ({why}) and has been made anew from the log; the damaged one lies beside it. "
        "Look after the disk"
    )
    logger.error("the state is made anew", extra={"cause": words})
    return Store(path, schemas), words


def refuse_foreign_state(store: Store, grid: str, data_dir: Path) -> None:
    """Raise `ConfigError` if the state in the folder is another grid's than its identity."""
    with store.view() as db:
        info = grid_info(db)
    if info is not None and info.id != grid:
        raise ConfigError(
            f"{data_dir} holds the log and state of the grid {info.name!r} ({info.id}), but its identity belongs to "
            f"another grid ({grid}): parts of two data folders were mixed. Put back the folder as it was, or run "
            "kmgr reset and let this server join again"
        )


def _damage(path: Path) -> str | None:
    """Return what is wrong with a database file, None if nothing is or there is none."""
    if not path.exists():
        return None
    try:
        connection = sqlite3.connect(path, isolation_level=None)
        try:
            verdict = str(connection.execute("pragma quick_check").fetchone()[0])
        finally:
            connection.close()
    except sqlite3.OperationalError as error:
        raise Unavailable(f"the state {path} cannot be opened: {error}. Make room, or look after the disk") from error
    except sqlite3.DatabaseError as error:
        return str(error)
    return None if verdict == "ok" else verdict.splitlines()[0]
