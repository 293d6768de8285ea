"""What is known of a safe copy beside its bytes: of which disk it is, at which point it is, and how that is spelled.

The identity and the points stand in the index (`mirror_index`); up to where the
index was finished stands at the beginning of `sums`, so that one of which the end
was lost is known to be none. Nothing here touches a file.
"""

import json
import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kmgr.errors import Unavailable
from kmgr.ids import DesktopId, VersionId
from kmgr.replica.grains import GRAIN, ZERO, grain_count
from kmgr.replica.mirror import CopyPoint

_FINISHED = struct.Struct(">8sQ")
_MAGIC = b"kmgrends"
FINISHED_BYTES = _FINISHED.size
_POINT = ("desktop", "generation", "as_of", "sent_bytes", "full", "frozen")


@dataclass(frozen=True, slots=True)
class Identity:
    """Of which disk this is the copy: a desktop's generation, and the version that its overlay lies on."""

    desktop: DesktopId
    generation: int
    version: VersionId
    manifest_hash: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class State:
    """The newest point, and what the next cycle can go on from.

    `cycle` names the state of the source from which changes are counted, empty if
    everything must be compared; `still` is what the disk's file looked like if
    the desktop was powered off. Both are empty once the copy was found to be bad.
    """

    point: CopyPoint
    cycle: str
    still: str

    @property
    def distrusted(self) -> bool:
        """Whether some of the copy was found to be bad, and no cycle has compared all of it since."""
        return not self.cycle and not self.still


def damaged(folder: Path, why: str) -> Unavailable:
    """Return what is told of a copy that cannot be used."""
    return Unavailable(
        f"the safe copy in {folder} is damaged: {why}. The next cycle from the desktop's own disk makes it anew",
        code="damaged",
    )


def point_of(head: Mapping[str, Any]) -> CopyPoint:
    """Return the point that a frame of the index says."""
    return CopyPoint(**head["point"])


def head_of(state: State) -> Mapping[str, Any]:
    """Return what a frame of the index says of a point."""
    point = asdict(state.point)
    # What a start costs is no matter of the copy.
    return {"point": {name: point[name] for name in _POINT}, "cycle": state.cycle, "still": state.still}


def identity_from(raw: Mapping[str, Any]) -> Identity:
    """Read an identity that another server sent; raise ValueError if it is none."""
    spelled = json.dumps(raw)
    wanted = {"desktop": str, "generation": int, "version": str, "manifest_hash": str, "size_bytes": int}
    for name, kind in wanted.items():
        if type(raw.get(name)) is not kind:
            raise ValueError(f"{name} is missing or no {kind.__name__}: {spelled[:200]}")
    if not 0 < raw["size_bytes"] <= GRAIN * (ZERO - 2) or raw["generation"] < 0:
        raise ValueError(f"its numbers cannot be right: {spelled[:200]}")
    return Identity(**{name: raw[name] for name in wanted})


def grains_of(identity: Identity) -> int:
    """Return how many grains the disk has."""
    return grain_count(identity.size_bytes)


def spell_finished(end: int) -> bytes:
    """Spell up to where the index was finished."""
    return _FINISHED.pack(_MAGIC, end)


def finished(told: bytes) -> int:
    """Return up to where the index was finished, by the first bytes of `sums`; 0 if they do not say."""
    if len(told) < _FINISHED.size:
        return 0
    magic, end = _FINISHED.unpack_from(told)
    return int(end) if magic == _MAGIC else 0
