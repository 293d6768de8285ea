"""Passwords of built-in accounts: Argon2id, in threads of its own, because hashing is meant to be slow.

Parameters are argon2-cffi's defaults (RFC 9106, low-memory profile: 64 MiB, 3
passes, 4 lanes). When a school begins its day, a hundred people log in at once:
they wait for each other here, and nothing else of the daemon waits for them. The
only file that imports argon2.
"""

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from kmgr.errors import Refused

LEAST_LENGTH = 8
MOST_LENGTH = 256

T = TypeVar("T")

_hasher = PasswordHasher()
# Each takes four lanes: more at once would make nobody's log-in quicker, and take all processors from the grid.
_AT_ONCE = max(1, (os.cpu_count() or 1) // 2)
# The loop's own threads are the heartbeat's too: a server whose threads all hash looks lost to the others.
_THREADS = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="passwords")


async def hash_password(password: str) -> str:
    """Return the Argon2id hash of a new password; raise `Refused` if it is too short to be one."""
    if not LEAST_LENGTH <= len(password) <= MOST_LENGTH:
        raise Refused(f"a password needs {LEAST_LENGTH} to {MOST_LENGTH} characters")
    return await _apart(lambda: _hasher.hash(password))


async def verify(password: str, password_hash: str | None) -> bool:
    """Tell whether the password fits; None or empty (no such account) takes as long and is never right."""
    right = await _apart(lambda: _fits(password[:MOST_LENGTH], password_hash))
    return right and bool(password_hash) and len(password) <= MOST_LENGTH


async def _apart(work: Callable[[], T]) -> T:
    return await asyncio.get_running_loop().run_in_executor(_THREADS, work)


@cache
def _nobodys() -> str:
    """Return what is verified when a name does not exist, so that the answer takes as long as for one that does."""
    return _hasher.hash("nobody has this password")


def _fits(password: str, password_hash: str | None) -> bool:
    # Made at the first check of all, whoever's it is, and not at import: each kmgr command would wait for it.
    instead = _nobodys()
    try:
        return _hasher.verify(password_hash or instead, password)
    except (VerificationError, InvalidHashError):
        return False
