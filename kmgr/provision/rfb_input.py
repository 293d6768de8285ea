"""What a viewer sends to a desktop's screen, read as far as needed to tell whether a person does something.

A viewer asks for pictures all the time, so bytes alone say nothing: keys, movements
of the pointer and pasted text do. The lengths are those of RFC 6143 and of the
extensions that noVNC and QEMU speak (rfbproto, community edition).

Rule 1: bytes come in any pieces. Rule 2: after a message that this file does not
know all that follows counts as input: somebody who works is never called idle.
Rule 3: nothing is kept but the few bytes of a message's head.

Pure.
"""

_VERSION = 12
# Without a password QEMU needs one byte for the kind of security and one for sharing the screen.
_HANDSHAKE = _VERSION + 1 + 1
_KEY, _POINTER, _CUT = 4, 5, 6
_ENCODINGS, _FENCE, _RESIZE, _QEMU = 2, 248, 251, 255
# Message → its length, where that is always the same.
_FIXED = {0: 20, 3: 10, _KEY: 8, 150: 10, 250: 4}
# QEMU's own: submessage → length. 0 is a key with its scan code; 1 is sound, where 2 sets the format.
_QEMU_KEY, _QEMU_SOUND = 0, 1
_QEMU_KEY_BYTES, _QEMU_SOUND_BYTES, _QEMU_FORMAT_BYTES = 12, 4, 10


class InputReader:
    """Follows one viewer's bytes; `feed` tells whether there was input among them."""

    def __init__(self) -> None:
        self._head = b""
        self._skip = _HANDSHAKE
        self._lost = False

    def feed(self, data: bytes) -> bool:
        """Take the next bytes; True if a person did something."""
        if self._lost:
            return bool(data)
        found = False
        at = 0
        while at < len(data):
            if self._skip:
                step = min(self._skip, len(data) - at)
                self._skip -= step
                at += step
                continue
            self._head += data[at : at + 1]
            at += 1
            length = _length(self._head)
            if length is None:
                continue
            if length < 0:
                self._lost = True
                return True
            found |= self._head[0] in (_KEY, _POINTER, _CUT) or self._head[:2] == bytes((_QEMU, _QEMU_KEY))
            self._skip = length - len(self._head)
            self._head = b""
        return found


def _length(head: bytes) -> int | None:
    """Return how long the message is whose first bytes are given: None needs more of them, -1 is unknown."""
    kind = head[0]
    if kind in _FIXED:
        return _FIXED[kind]
    if kind == _ENCODINGS:
        return 4 + 4 * int.from_bytes(head[2:4]) if len(head) >= 4 else None
    if kind == _POINTER:
        # With more than seven buttons the first bit says that another byte follows.
        return None if len(head) < 2 else 7 if head[1] & 0x80 else 6
    if kind == _CUT:
        # A negative length is of the extended clipboard.
        return 8 + abs(int.from_bytes(head[4:8], signed=True)) if len(head) >= 8 else None
    if kind == _FENCE:
        return 9 + head[8] if len(head) >= 9 else None
    if kind == _RESIZE:
        return 8 + 16 * head[6] if len(head) >= 7 else None
    return _qemu_length(head) if kind == _QEMU else -1


def _qemu_length(head: bytes) -> int | None:
    if len(head) < 2:
        return None
    if head[1] == _QEMU_KEY:
        return _QEMU_KEY_BYTES
    if head[1] != _QEMU_SOUND:
        return -1
    if len(head) < 4:
        return None
    return _QEMU_FORMAT_BYTES if int.from_bytes(head[2:4]) == 2 else _QEMU_SOUND_BYTES
