"""The first words on a connection between two servers, and what each end makes of the other's.

Every recovery without a majority raises the grid's *epoch*. Servers of different
epochs hold different truths under the same name, so they never exchange anything
but these words: the older one is told why and stops acting, without touching its
desktops. Only a server whose log is still empty takes over the epoch it meets.

Pure.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, TypeAlias

from kmgr.whole import is_whole

# Raised when servers could no longer understand each other.
PROTOCOL = 1
MOST_BYTES = 4096
# The code of a refusal that is final.
REMOVED = "removed"
_RESET = "Run kmgr reset on it and let it join again; its images are kept"


@dataclass(frozen=True, slots=True)
class Greeting:
    """What a server says about itself. `end` is (term, index) of its log's last entry; `refused` is (code, words)."""

    version: str
    epoch: int = 0
    fresh: bool = False
    end: tuple[int, int] = (0, 0)
    recovered_at: int = 0
    recovered_by: str = ""
    protocol: int = PROTOCOL
    refused: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Welcome:
    """The two may talk."""


@dataclass(frozen=True, slots=True)
class Adopt:
    """The two may talk once this server, whose log is empty, belongs to this epoch."""

    epoch: int


@dataclass(frozen=True, slots=True)
class Refuse:
    """The other end must be sent away with these words."""

    code: str
    words: str


@dataclass(frozen=True, slots=True)
class Fenced:
    """This server has been left behind: the grid went on without it."""

    words: str


Verdict: TypeAlias = Welcome | Adopt | Refuse | Fenced


def judge(own: Greeting, other: Greeting) -> Verdict:
    """Decide what to do about the other end of a connection."""
    if other.protocol != own.protocol:
        return Refuse(
            "version",
            f"it runs kmgr {other.version} and speaks version {other.protocol} of the grid's protocol, the other end "
            f"runs {own.version} and speaks {own.protocol}: install the same version of kmgr on both",
        )
    if other.epoch > own.epoch:
        return Adopt(other.epoch) if own.fresh else Fenced(left_behind(other))
    if other.epoch < own.epoch and not other.fresh:
        return Refuse("epoch", left_behind(own))
    return Welcome()


def left_behind(newer: Greeting) -> str:
    """Return the sentence for a server of an older epoch."""
    when, where = "", ""
    if newer.recovered_at:
        when = f" on {datetime.fromtimestamp(newer.recovered_at / 1000, UTC):%d %b %Y, %H:%M} UTC"
    if newer.recovered_by:
        where = f" by server {newer.recovered_by}"
    return f"the grid was recovered without this server{when}{where}. {_RESET}"


def removed() -> str:
    """Return the sentence for a server that was taken out of the grid."""
    return f"this server was removed from the grid. {_RESET}"


def leaving() -> Refuse:
    """Return what a removed server is told until its vote has ended: it must not stop acting before."""
    return Refuse("leaving", "this server is being removed from the grid")


def refusing(own: Greeting, refusal: Refuse) -> Greeting:
    """Return the greeting that sends the other end away."""
    return replace(own, refused=(refusal.code, refusal.words))


def spell(greeting: Greeting) -> bytes:
    """Spell a greeting: four bytes of length, then JSON."""
    fields = {name: getattr(greeting, name) for name in Greeting.__slots__}
    data = json.dumps(fields, separators=(",", ":")).encode()
    return len(data).to_bytes(4) + data


def read(data: bytes) -> Greeting:
    """Read a greeting's JSON; raise `ValueError` if it is none."""
    try:
        raw: Mapping[str, Any] = json.loads(data)
        refused = raw.get("refused")
        return Greeting(
            version=str(raw["version"])[:40],
            epoch=_whole(raw["epoch"]),
            fresh=raw["fresh"] is True,
            end=_pair(raw["end"]),
            recovered_at=_whole(raw.get("recovered_at", 0)),
            recovered_by=str(raw.get("recovered_by", ""))[:70],
            protocol=_whole(raw["protocol"]),
            refused=None if refused is None else (str(refused[0])[:40], str(refused[1])[:1000]),
        )
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(f"its first words are no greeting: {error!r}") from error


def _pair(value: Any) -> tuple[int, int]:
    first, second = value
    return _whole(first), _whole(second)


def _whole(value: object) -> int:
    if not is_whole(value, 0, (1 << 60) - 1):
        raise ValueError(f"its first words are no greeting: {value!r} is no number")
    return value
