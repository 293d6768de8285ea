"""zstd for pieces of images: the system's own library, which dpkg itself cannot do without.

Python has it in its standard library from 3.14 on; then this file goes. Where the
library is missing, nothing is compressed and nothing compressed is asked for.
Calls let go of Python's lock. Blocking: called in threads.
"""

import ctypes
from typing import Any

# The quickest level: more would cost more processor time than it saves on any link but the slowest.
_LEVEL = 1


def _loaded() -> Any:
    try:
        library = ctypes.CDLL("libzstd.so.1")
    except OSError:
        return None
    room, length = ctypes.c_void_p, ctypes.c_size_t
    for name, arguments in (
        ("ZSTD_compressBound", (length,)),
        ("ZSTD_compress", (room, length, ctypes.c_char_p, length, ctypes.c_int)),
        ("ZSTD_decompress", (room, length, room, length)),
    ):
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, length
    library.ZSTD_isError.argtypes, library.ZSTD_isError.restype = (length,), ctypes.c_uint
    return library


_ZSTD = _loaded()


def available() -> bool:
    """Tell whether this server can compress and expand."""
    return _ZSTD is not None


def compress(data: bytes) -> bytes:
    """Return the bytes as one frame."""
    room = ctypes.create_string_buffer(_ZSTD.ZSTD_compressBound(len(data)))
    length = _ZSTD.ZSTD_compress(room, len(room), data, len(data), _LEVEL)
    if _ZSTD.ZSTD_isError(length):
        raise ValueError("zstd did not compress")
    return bytes(memoryview(room)[:length])


def expand(data: memoryview, into: memoryview) -> None:
    """Expand into room of exactly the length that must come out; raise `ValueError` if anything else would.

    Both lie in a bytearray. More than the room is never written, whatever the frame says of itself.
    """
    source = (ctypes.c_char * len(data)).from_buffer(data)
    target = (ctypes.c_char * len(into)).from_buffer(into)
    length = _ZSTD.ZSTD_decompress(target, len(into), source, len(data))
    if _ZSTD.ZSTD_isError(length) or length != len(into):
        raise ValueError(f"{len(data)} compressed bytes do not expand to {len(into)}")
