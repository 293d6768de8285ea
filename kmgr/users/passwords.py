"""Passwords of built-in accounts: Argon2id, in a thread, because hashing is meant to be slow.

Parameters are argon2-cffi's defaults (RFC 9106, low-memory profile: 64 MiB, 3
passes, 4 lanes). The only file that imports argon2.
"""

import asyncio
from functools import cache

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from kmgr.errors import Refused

LEAST_LENGTH = 8
MOST_LENGTH = 256

_hasher = PasswordHasher()


async def hash_password(password: str) -> str:
    """Return the Argon2id hash of a new password; raise `Refused` if it is too short to be one."""
    if not LEAST_LENGTH <= len(password) <= MOST_LENGTH:
        raise Refused(f"a password needs {LEAST_LENGTH} to {MOST_LENGTH} characters")
    return await asyncio.to_thread(_hasher.hash, password)


async def verify(password: str, password_hash: str | None) -> bool:
    """Tell whether the password fits; None or empty (no such account) takes as long and is never right."""
    right = await asyncio.to_thread(_fits, password[:MOST_LENGTH], password_hash)
    return right and bool(password_hash) and len(password) <= MOST_LENGTH


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
