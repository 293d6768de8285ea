"""How a witness stays small: memory that it let go of goes back to the system at once.

The C library keeps what was freed for whoever comes next, and from the first large piece that is
freed it takes all of that size from one heap, where a single small piece that lives on
keeps everything below it. A log of few large entries (a megabyte of rows that are copied,
written, compressed and forgotten) then leaves a third more than the program itself takes.
"""

import ctypes

# From malloc.h of the GNU C library; see mallopt(3).
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
# Pieces from this size on are mapped one by one, and unmapped when they are freed.
LARGE_BYTES = 64 << 10


def give_back_memory() -> None:
    """Have freed memory given back from now on, in this process; another C library than GNU's is left as it is."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, LARGE_BYTES)
        mallopt(_TRIM_THRESHOLD, LARGE_BYTES)
