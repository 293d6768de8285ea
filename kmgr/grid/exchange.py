"""The password exchange of a join (SPAKE2): the only file that knows the spake2 library.

Both sides run it over the phrase. What comes out is a key that is the same on
both sides only if the phrase was and nobody is between: the certificate that
each side saw in TLS is part of it. From then on every message carries a proof
that covers everything said before it, in both directions. Whoever does not know
the phrase learns nothing from taking part but whether one guess was right.

Blocking: each call computes for about 5 ms.
"""

import hashlib
from enum import StrEnum

from spake2 import SPAKE2_A, SPAKE2_B
from spake2.ed25519_basic import NotOnCurve
from spake2.spake2 import SPAKEError

from kmgr.errors import NotAllowed
from kmgr.grid import authority

_NAMES = {"idA": b"kmgr newcomer/1", "idB": b"kmgr grid/1"}


class Side(StrEnum):
    """The two ends of a join."""

    NEWCOMER = "newcomer"
    GRID = "grid"

    @property
    def other(self) -> "Side":
        """Return the other end."""
        return Side.GRID if self is Side.NEWCOMER else Side.NEWCOMER


class Exchange:
    """One side of one exchange; used once."""

    def __init__(self, side: Side, password: bytes) -> None:
        self.side = side
        kind = SPAKE2_A if side is Side.NEWCOMER else SPAKE2_B
        self._half = kind(password, **_NAMES)
        self.message: bytes = self._half.start()

    def finish(self, message: bytes, *, certificate_der: bytes, said: bytes) -> "Proofs":
        """Return the proofs of this join.

        `certificate_der` is the grid server's TLS certificate as this side sees it, `said` all that was sent in
        the open so far. Raises `NotAllowed` if the other side's message is none.
        """
        try:
            key: bytes = self._half.finish(message)
        except (SPAKEError, NotOnCurve, ValueError, AssertionError) as error:
            raise NotAllowed("the other side does not take part in the join as a kmgr would") from error
        heard = hashlib.sha256(hashlib.sha256(certificate_der).digest() + hashlib.sha256(said).digest()).digest()
        return Proofs(key, heard, self.side)


class Proofs:
    """Proves what this side says and checks what the other side says; each proof covers all that went before."""

    def __init__(self, key: bytes, heard: bytes, side: Side) -> None:
        self._keys = {side: authority.derive(key, f"kmgr join {side}/1") for side in Side}
        self._heard = heard
        self._side = side

    def prove(self, message: bytes) -> bytes:
        """Return the proof for the next message of this side."""
        self._heard = self._with(self._side, message)
        return authority.prove(self._keys[self._side], self._heard)

    def check(self, message: bytes, proof: bytes) -> bool:
        """Tell whether the next message of the other side is proven; if not, nothing counts as heard."""
        heard = self._with(self._side.other, message)
        if not authority.proven(self._keys[self._side.other], heard, proof):
            return False
        self._heard = heard
        return True

    def _with(self, side: Side, message: bytes) -> bytes:
        return hashlib.sha256(self._heard + side.encode() + b":" + message).digest()
