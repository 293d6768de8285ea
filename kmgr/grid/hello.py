"""What a stranger offers to speak, read from the first bytes of its TLS handshake before anybody answers it.

Who shakes hands depends on it: asyncio, or the log's own thread (`gate`). It decides
nothing else. What was really agreed on is looked at again after the handshake.

* Five bytes head a record: 22 for a handshake, two of version, two of length.
* The ClientHello in it: 1, three bytes of length, two of version, 32 of chance, then
  session, ciphers and compressions, each behind its length, then the extensions.
* Extension 16 lists protocols: two bytes of length, then words of one byte of length each (RFC 7301).

Pure.
"""

RECORD = 5
_HANDSHAKE, _CLIENT_HELLO, _ALPN = 22, 1, 16


def needed(data: bytes) -> int:
    """Return how many bytes must be there to read what is offered; 0 if these never begin a handshake."""
    if data[:1] not in {b"", bytes((_HANDSHAKE,))}:
        return 0
    return RECORD if len(data) < RECORD else RECORD + int.from_bytes(data[3:RECORD])


def offered(data: bytes) -> frozenset[bytes]:
    """Return the protocols that a ClientHello names; none if it is no hello, or larger than one record."""
    words = set()
    record = _Reader(data[RECORD:])
    try:
        if record.number(1) != _CLIENT_HELLO:
            return frozenset()
        hello = _Reader(record.block(3))
        hello.skip(2 + 32)
        for size in (1, 2, 1):
            hello.block(size)
        extensions = _Reader(hello.block(2))
        while extensions.left:
            kind, body = extensions.number(2), extensions.block(2)
            if kind == _ALPN:
                names = _Reader(_Reader(body).block(2))
                while names.left:
                    words.add(names.block(1))
    except ValueError:
        return frozenset()
    return frozenset(words)


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def skip(self, size: int) -> bytes:
        if size > self.left:
            raise ValueError("the hello ends too early")
        self._at += size
        return self._data[self._at - size : self._at]

    def number(self, size: int) -> int:
        return int.from_bytes(self.skip(size))

    def block(self, size: int) -> bytes:
        return self.skip(self.number(size))
