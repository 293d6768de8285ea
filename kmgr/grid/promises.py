"""What this server remembers, away from its log, of how far the log had come: an older copy put back is noticed.

`identity/promised.json` holds a term and a committed entry, written at start and
stop and once in a while between. A log that has less is not the one that this
server's votes and acknowledgements were given from. What happened since the last
note cannot be told, nor can a whole data folder put back together with this file.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from kmgr.errors import ConfigError
from kmgr.grid.identity import atomic_write

FILE = "promised.json"


@dataclass(frozen=True, slots=True)
class Promise:
    """A term this server has been in, and an entry it knew to be committed."""

    term: int
    committed: int


def read(path: Path) -> Promise | None:
    """Return the last note, None if there is none; a damaged one counts as none: the log is checked too."""
    try:
        raw = json.loads(path.read_bytes())
        return Promise(int(raw["term"]), int(raw["committed"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def note(path: Path, promise: Promise) -> None:
    """Remember, if it is more than what is remembered."""
    known = read(path)
    if known is None or (promise.term, promise.committed) > (known.term, known.committed):
        atomic_write(path, json.dumps({"term": promise.term, "committed": promise.committed}).encode())


def refuse_lost_log(path: Path, log: Path) -> None:
    """Raise `ConfigError` if there was a log here and there is none now."""
    known = read(path)
    if known is not None and known.committed > 1 and not log.exists():
        raise ConfigError(
            f"the log {log} is gone; it was at entry {known.committed}. This server must not go on under its id "
            "without it: remove it from the grid at another server, run kmgr reset here, and let it join again. If "
            "this is the grid's only server, run kmgr grid restore with a backup"
        )


def check(path: Path, *, term: int, last: int, log: Path) -> None:
    """Raise `ConfigError` if a log has less than what was promised from it."""
    known = read(path)
    if known is None or (term >= known.term and last >= known.committed):
        return
    raise ConfigError(
        f"the log {log} is older than this server remembers: it ends at entry {last} in term {term}, and was at "
        f"entry {known.committed} in term {known.term} before. Was an older copy put back? What this server promised "
        "the others since then is gone, so it must not go on under its id: remove it from the grid at another "
        "server, run kmgr reset here, and let it join again. If this is the grid's only server, run kmgr grid "
        "restore with a backup"
    )
