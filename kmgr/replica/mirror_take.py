"""One cycle into a copy: what of the offers is wanted, and where it goes. Blocks; one thread at a time."""

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kmgr.errors import KmgrError, Refused
from kmgr.replica.grains import ZERO, GrainSet
from kmgr.replica.mirror import CopyPoint
from kmgr.replica.mirror_copy import Copy
from kmgr.replica.mirror_state import State, grains_of
from kmgr.replica.mirror_wire import Offer
from kmgr.replica.overlay_file import OverlayFile

logger = logging.getLogger(__name__)

_LOOK_BYTES = 64 << 20


class Taking:
    """A cycle under way. `seed` is a former disk to take equal grains from; `spare` raises when room runs out."""

    def __init__(self, copy: Copy, *, seed: Path | None, spare: Callable[[], None]) -> None:
        self.everything = False
        self.copy = copy
        self._spare = spare
        self._offered = GrainSet(grains_of(copy.identity))
        self._next = 0
        self._since_look = 0
        self._seed = _opened(seed) if seed is not None else None

    def wanted(self, offers: Sequence[Offer]) -> list[bool]:
        """Return which of the offered grains must be sent; zeros and what lies here already are done at once."""
        return [self._wants(offer) for offer in offers]

    def put(self, offers: Sequence[Offer], data: bytes) -> None:
        """Keep grains that came; raise `Refused` (`damaged`) if they are not what was offered."""
        view, at = memoryview(data), 0
        for offer in offers:
            grain = view[at : at + self.copy.length(offer.grain)]
            at += len(grain)
            if hashlib.sha256(grain).digest() != offer.digest:
                raise Refused(
                    f"grain {offer.grain} arrived with other bytes than were offered: the cycle is refused",
                    code="damaged",
                )
            self._write(offer, grain)
        if at != len(data):
            raise Refused(f"{len(data)} bytes came for grains of {at}: the cycle is refused", code="damaged")

    def commit(self, told: Mapping[str, Any]) -> None:
        """Make what was offered the copy's newest point."""
        identity = self.copy.identity
        try:
            state = State(
                CopyPoint(
                    identity.desktop,
                    identity.generation,
                    as_of=int(told["as_of"]),
                    sent_bytes=int(told["sent_bytes"]),
                    full=bool(told["full"]),
                    frozen=bool(told["frozen"]),
                ),
                cycle=str(told["cycle"])[:128],
                still=str(told["still"])[:128],
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise Refused(f"the end of the cycle makes no sense: {error!r}") from error
        self.copy.commit(state, offered=self._offered, everything=self.everything)

    def close(self) -> None:
        """Keep what came for the next attempt, as far as the disk takes it, and let go."""
        try:
            self.copy.save()
        except OSError as error:
            logger.info("what came of a broken cycle has to come again", extra={"cause": str(error)})
        finally:
            self.copy.close()
            if self._seed is not None:
                self._seed.__exit__()

    def _wants(self, offer: Offer) -> bool:
        if not self._next <= offer.grain < grains_of(self.copy.identity):
            raise Refused(f"grain {offer.grain} was offered out of order, or lies beyond the disk")
        self._next = offer.grain + 1
        self._offered.add(offer.grain)
        if not offer.digest:
            if self.copy.place(offer.grain) != ZERO:
                self.copy.zero(offer.grain)
            return False
        if self.copy.digest(offer.grain, read=self.everything) == offer.digest:
            if self.everything:
                self.copy.note(offer.grain, offer.digest)
            return False
        return not self._from_seed(offer)

    def _from_seed(self, offer: Offer) -> bool:
        if self._seed is None:
            return False
        try:
            data = self._seed.read(offer.grain)
        except (KmgrError, OSError):
            return False
        if not data or hashlib.sha256(data).digest() != offer.digest:
            return False
        self._write(offer, memoryview(data))
        return True

    def _write(self, offer: Offer, data: memoryview) -> None:
        self._since_look += len(data)
        if self._since_look >= _LOOK_BYTES:
            self._since_look = 0
            self._spare()
        self.copy.write(offer.grain, data, offer.digest)


def _opened(seed: Path) -> OverlayFile | None:
    """Open a former disk; one that cannot be read is none, everything travels then."""
    try:
        return OverlayFile(seed)
    except (KmgrError, OSError):
        return None
