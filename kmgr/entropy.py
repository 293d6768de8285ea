"""Everything that must not be guessed or repeated: ids, tokens, words of a phrase.

Only proposers call this; appliers and decisions never may (an import contract
holds it), because every server must reach the same state from the same log.
"""

import secrets
from collections.abc import Sequence

# Crockford's base32 without i, l, o, u: nothing that is misread aloud or on a small screen.
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"


def new_id(prefix: str) -> str:
    """Return `prefix-` and 12 characters, 60 random bits: unique in any grid for practical purposes."""
    return f"{prefix}-{_letters(12)}"


def new_token() -> str:
    """Return a secret of 192 bits that is safe in URLs and headers."""
    return secrets.token_urlsafe(24)


def pick(words: Sequence[str], count: int) -> tuple[str, ...]:
    """Return so many words of a list by chance; one may come twice."""
    return tuple(secrets.choice(words) for _ in range(count))


def _letters(count: int) -> str:
    # Five bits of each byte, all from one call: the kernel takes longer to be asked than to answer.
    return "".join(_ALPHABET[byte % len(_ALPHABET)] for byte in secrets.token_bytes(count))
